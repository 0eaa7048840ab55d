"""Record the denoiser calls of a pipeline, and make those of a denoising loss."""
