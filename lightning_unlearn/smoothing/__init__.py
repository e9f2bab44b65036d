"""Smoothing: of a function over its input, and of what is forgotten over the weights."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
