"""From names to objects: config groups and command lines. With ``cli`` the only package that imports Hydra."""
