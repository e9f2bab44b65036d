"""Metrics of unlearned language models."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

# At once: some functions have the names of their files, and a file that is imported first would take their place.
globals().update({name: __getattr__(name) for name in __all__})
