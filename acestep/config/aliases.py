"""Names that changed, old to new: they keep working for one release, with a warning."""

from __future__ import annotations

KEYS: dict[str, str] = {}
"""Config keys, in full."""

OPTIONS: dict[tuple[str, str], str] = {}
"""Options of a config group: (group, old name) to the new name."""

TARGETS: dict[str, str] = {}
"""Dotted paths of classes, as ``_target_`` names them."""
