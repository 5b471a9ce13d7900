"""Checkpoints in files: layouts, names, shapes, hashes. Builds and runs no network."""
