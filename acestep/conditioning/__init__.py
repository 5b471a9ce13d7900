"""From songs to the inputs of the condition encoder: prompts, text features, source latents and masks."""
