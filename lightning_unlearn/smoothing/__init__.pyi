from .forget_term import Evaluation as Evaluation
from .forget_term import ForgetTerm as ForgetTerm
from .gaussian import GaussianSmoother as GaussianSmoother
from .quantization_aware import QuantizationAware as QuantizationAware
from .randomized import RandomizedSmoothing as RandomizedSmoothing
from .sam import SAM as SAM
from .strategy import Smoothed as Smoothed
from .strategy import SmoothingStrategy as SmoothingStrategy
