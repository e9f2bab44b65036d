from .gaussian import GaussianSmoother as GaussianSmoother
