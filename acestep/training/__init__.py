"""Training with Lightning: modules, data modules, checkpoints, callbacks, loggers. Losses are defined in ``flow``."""
