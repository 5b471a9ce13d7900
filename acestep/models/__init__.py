"""The networks: plain modules under the published checkpoints' parameter names, one config each."""
