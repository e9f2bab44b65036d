"""Smoothing of the forget term over the weights, and of a function over its input."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
