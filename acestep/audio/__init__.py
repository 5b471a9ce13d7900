"""Audio: reading, writing, loudness and tiles."""
