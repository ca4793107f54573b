"""Few-shot adaptation over partial parameters: tasks from labelled examples, and what theory says of the inner loop."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
