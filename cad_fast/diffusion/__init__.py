"""What is known of diffusers: denoisers, their layers and arguments, schedulers, and how a pipeline is run."""
