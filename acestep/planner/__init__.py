"""The 5 Hz language model that plans a song: what it reads and what it writes. Knows words and codes; no network."""
