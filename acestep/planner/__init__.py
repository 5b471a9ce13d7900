"""The 5 Hz language model: plans (metadata and caption) and audio codes of songs, and descriptions of codes."""
