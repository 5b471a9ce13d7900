"""Songs to audio: prepare the batch, sample latents, decode; and the pipeline's construction from a checkpoint."""
