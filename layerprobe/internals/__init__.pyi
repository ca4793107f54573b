from ._interventions import interventions as interventions
from ._label_variance import LabelVariance as LabelVariance
from ._label_variance import label_variance as label_variance
from ._probes import control_labels as control_labels
from ._probes import probe_layers as probe_layers
from ._random_change import random_change as random_change
from ._weights import compare_weights as compare_weights
