"""Sparse autoencoders on stored activations: trained with sae-lens, evaluated on held-out rows, compared and described."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
