"""What was asked for beside a song's words is in the table of songs, and in the hash of a setting."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from acestep.evaluation.joined import read_results
from acestep.evaluation.results import Results
from acestep.types import AdapterUse, Request


def test_codes_and_adapters_come_back_and_decide_the_hash(whole: Results, tmp_path: Path):
    first, *others = whole.rows
    request = Request(
        **asdict(first.prompt.song), codes=(5, 7), adapters=(AdapterUse(path="a.safetensors", scale=0.5),)
    )
    coded = replace(first, prompt=replace(first.prompt, song=request), path=None)
    results = replace(whole, rows=[coded, *(replace(row, path=None) for row in others)])
    results.write(tmp_path)
    again = read_results(tmp_path)
    assert again.rows[0].prompt.song == request
    assert type(again.rows[1].prompt.song) is not Request
    for cell in whole.cells:
        assert again.decided_by(cell) == results.decided_by(cell)
        assert (results.decided_by(cell) == whole.decided_by(cell)) == (cell != first.cell)
