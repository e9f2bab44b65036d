from .metrics.quality import HFEN as HFEN
from .metrics.quality import NMSE as NMSE
from .metrics.quality import ComplexPSNR as ComplexPSNR
from .metrics.quality import ImageQuality as ImageQuality
from .metrics.quality import MagnitudePSNR as MagnitudePSNR
from .metrics.quality import MagnitudeSSIM as MagnitudeSSIM
