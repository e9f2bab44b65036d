from .averaging import UnlearnWeightAveraging as UnlearnWeightAveraging
from .gaussian import GaussianSmoother as GaussianSmoother
