"""Songs: requests, their fields, checks and lists."""

from __future__ import annotations

from typing import TYPE_CHECKING

from acestep.lazy import lazy_attributes
from acestep.songs.song import AdapterUse, Request, Song

if TYPE_CHECKING:
    from acestep.songs.lists import read_songs

__all__ = ["AdapterUse", "Request", "Song", "read_songs"]

__getattr__ = lazy_attributes(__name__, {"read_songs": "acestep.songs.lists"})
