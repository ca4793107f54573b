from layerprobe.internals._interventions import interventions as interventions
from layerprobe.internals._label_variance import LabelVariance as LabelVariance
from layerprobe.internals._label_variance import label_variance as label_variance
from layerprobe.internals._probes import probe_layers as probe_layers
from layerprobe.internals._weights import compare_weights as compare_weights
