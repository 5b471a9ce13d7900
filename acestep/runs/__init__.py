"""Run folders afterwards: what became of a run, sweeps as tables, the same run once more, a folder for others.

Knows files that training and evaluation left, and no configuration: whoever reads a run needs no Hydra.
"""
