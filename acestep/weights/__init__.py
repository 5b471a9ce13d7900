"""Checkpoint files: layouts, tensor names, shapes and hashes. Builds no network."""
