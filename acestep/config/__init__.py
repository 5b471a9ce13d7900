"""Names to objects: the only room, beside the three mains, that knows Hydra and OmegaConf. Knows no tensor."""
