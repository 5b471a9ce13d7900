"""Words to tensors: prompts, metadata, and what the condition encoder reads. Knows no device and no file."""
