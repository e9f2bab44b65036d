"""Record of a run for all domains, as JSON for machines and one HTML page for people."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
