"""Reports of unlearned models: one record for all domains, as JSON, Markdown, HTML and entries of loggers."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
