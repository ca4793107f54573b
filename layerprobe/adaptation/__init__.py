"""Fine-tuning of a pretrained encoder by one method, its quality and its cost."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
