"""What did fine-tuning do to every layer of this transformer?

The package root is the table of contents; every name is loaded when first used, so that `import layerprobe` is quick.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
