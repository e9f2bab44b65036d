"""Objectives that need only a score, for any model whose likelihoods can be read."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
