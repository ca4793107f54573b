"""What adaptation costs in energy and bits: meta-training at a data centre, transmission, and adaptation on devices.

Joules per batch and efficiencies are arguments; rounds are those of a simulated cluster (`adapt_cluster`). The model is ours, after Savazzi, Rampa,
Kianoush and Bennis (2022, arXiv 2212.01049), whose own equations were not available.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
