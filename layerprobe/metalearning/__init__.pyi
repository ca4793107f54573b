from . import quadratic as quadratic
from . import synthetic as synthetic
from ._episodes import Episode as Episode
from ._episodes import EpisodeSampler as EpisodeSampler
from ._episodes import Part as Part
from ._episodes import Parts as Parts
from ._episodes import split_classes as split_classes
