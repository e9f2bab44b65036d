from .smooth_denoiser import SmoothDenoiser as SmoothDenoiser
