"""Finished run folders: status, tables and reports of sweeps, reproduction, publication.

Reads files that training and evaluation wrote, and needs no Hydra.
"""
