"""Embedders: audio and text to vectors."""
