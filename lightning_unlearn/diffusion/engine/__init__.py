"""Components of latent diffusion models: denoising, sampling, text encoding, adapters and export."""
