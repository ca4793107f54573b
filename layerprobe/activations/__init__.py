"""Activations of an encoder: captured in one pass over the examples, stored as memory-mapped rows."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
