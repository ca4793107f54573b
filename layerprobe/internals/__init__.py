"""What adaptation changed inside: label variance and linear probes of layers, changes of weights, which layers are needed."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
