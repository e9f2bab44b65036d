"""Attacks on unlearned language models, which try to recover forgotten rows."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
