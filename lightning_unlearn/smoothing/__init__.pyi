from .forget_term import Evaluation as Evaluation
from .forget_term import ForgetTerm as ForgetTerm
from .gaussian import GaussianSmoother as GaussianSmoother
from .strategy import Smoothed as Smoothed
from .strategy import SmoothingStrategy as SmoothingStrategy
