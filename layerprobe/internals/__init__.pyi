from ._interventions import interventions as interventions
from ._probes import probe_layers as probe_layers
from ._random_change import random_change as random_change
from ._weights import compare_weights as compare_weights
