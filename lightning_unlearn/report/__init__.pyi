from .findings import Finding as Finding
from .findings import doctor as doctor
from .html import write_report as write_report
from .images import png as png
from .model import Attack as Attack
from .model import ImageGrid as ImageGrid
from .model import UnlearnReport as UnlearnReport
