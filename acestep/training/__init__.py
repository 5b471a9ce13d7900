"""Steps, logging, checkpoints, devices: the only room that knows Lightning. It calls formulas and holds none."""
