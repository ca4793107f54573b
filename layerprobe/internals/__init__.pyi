from ._interventions import interventions as interventions
from ._probes import probe_layers as probe_layers
from ._weights import compare_weights as compare_weights
