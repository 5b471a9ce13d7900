"""The page on metrics names a test for every hand-worked case; the page on reports explains every term of a report."""

from __future__ import annotations

import re
from pathlib import Path

from acestep.evaluation.report.terms import TERMS

HERE = Path(__file__).parent
PAGE = (HERE.parents[1] / "docs" / "evaluation.md").read_text(encoding="utf-8")
CASES = {
    *(f"F{n}" for n in range(1, 14)), *(f"K{n}" for n in range(1, 5)), *(f"C{n}" for n in range(1, 4)),
    "D1", "L1", "A1", "T1", "W1",
}  # fmt: skip


def test_every_case_has_its_test():
    rows = [line.split("|") for line in PAGE.splitlines() if "::" in line]
    assert {case.strip() for row in rows for case in row[1].split(",")} - {""} == CASES
    named = [re.findall(r"`(test_\w+\.py)::(\w+)`", row[-2]) for row in rows]
    assert all(named)
    for file, name in (pair for pairs in named for pair in pairs):
        assert any(f"def {name}(" in path.read_text(encoding="utf-8") for path in HERE.rglob(file)), name


def test_every_term_of_a_report_is_explained():
    page = (HERE.parents[1] / "docs" / "report.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|(]+?) (?:\([^|]*)?\|", page, re.MULTILINE)
    explained = {term.strip() for row in rows for term in row.split(",")}
    assert {term for term in TERMS if term not in explained} == set()


def test_pictures_are_there():
    pictures = re.findall(r"\]\(([\w/]+\.(?:png|svg))\)", PAGE)
    for picture in pictures:
        assert (HERE.parents[1] / "docs" / picture).is_file()
