"""Results are read as they were written; the hash of a sweep point covers every field of its requests."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from acestep.evaluation.results import Results, read_results
from acestep.songs import AdapterUse, Request


def test_codes_and_adapters_are_read_back_and_hashed(whole: Results, tmp_path: Path):
    first, *others = whole.rows
    request = Request(
        **asdict(first.prompt.song), codes=(5, 7), adapters=(AdapterUse(path="a.safetensors", scale=0.5),)
    )
    changed = replace(first, prompt=replace(first.prompt, song=request), path=None)
    results = replace(whole, rows=[changed, *(replace(row, path=None) for row in others)])
    results.write(tmp_path)
    again = read_results(tmp_path)
    assert again.rows[0].prompt.song == request
    assert type(again.rows[1].prompt.song) is not Request
    for point in whole.points:
        assert again.point_hash(point) == results.point_hash(point)
        assert (results.point_hash(point) == whole.point_hash(point)) == (point != first.point)
