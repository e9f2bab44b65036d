"""Foundation of all domains: the base callback, scores, references, row readers and run utilities."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
