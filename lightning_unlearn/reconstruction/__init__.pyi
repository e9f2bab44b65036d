from .denoisers import ConvDenoiser as ConvDenoiser
from .modl import MoDL as MoDL
from .operators import LinearOperator as LinearOperator
from .operators import MultiCoilMRI as MultiCoilMRI
from .smooth_denoiser import SmoothDenoiser as SmoothDenoiser
from .unrolled import Denoise as Denoise
from .unrolled import Unrolled as Unrolled
from .unrolled import UnrolledNetwork as UnrolledNetwork
