"""What adaptation changed inside: linear probes of the task, changes of the weights, and which layers are needed."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
