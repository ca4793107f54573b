"""A run as one self-contained HTML page, and several runs on one. Needs neither torch nor transformers."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
