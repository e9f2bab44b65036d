from .averaging import UnlearnWeightAveraging as UnlearnWeightAveraging
from .curvature import CurvatureRegularization as CurvatureRegularization
from .forget_term import Evaluation as Evaluation
from .forget_term import ForgetTerm as ForgetTerm
from .gaussian import GaussianSmoother as GaussianSmoother
from .gradient_penalty import GradientPenalty as GradientPenalty
from .strategy import Smoothed as Smoothed
from .strategy import SmoothingStrategy as SmoothingStrategy
