"""Parts of HTML and Markdown pages: skeleton, tables, figures, audio players, explanations of terms."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from acestep.files import atomic

STYLE, SCRIPT = (Path(__file__).with_suffix(suffix) for suffix in (".css", ".js"))
Rows = Iterable[tuple[str, Sequence[str]]]


def write_page(path: Path, title: str, body: str, style: str = "") -> Path:
    """Write one HTML file that loads nothing else.

    Args:
        path: the file.
        title: heading, as text.
        body: what follows the heading, as HTML.
        style: CSS instead of the common style.
    """
    page = (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style or STYLE.read_text('utf-8')}</style></head>"
        f"<body><main><header><h1>{escape(title)}</h1></header>{body}</main>"
        f"<script>{SCRIPT.read_text('utf-8')}</script></body></html>\n"
    )
    with atomic(path) as aside:
        aside.write_text(page, encoding="utf-8")
    return path


def html_table(head: Sequence[str], rows: Rows) -> str:
    """A table. ``head`` and the first column are text, all other cells are HTML."""
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(
        f"<tr><th>{escape(name)}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>" for name, cells in rows
    )
    return f"<div class=scroll><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def details(summary: str, content: str, attributes: str = "") -> str:
    """A block that a click on its summary, which is text, unfolds."""
    return f"<details{attributes}><summary>{escape(summary)}</summary>{content}</details>"


def audio_player(content: bytes, kind: str) -> str:
    """A player of an encoded song of the MIME type ``kind``."""
    return f"<audio controls preload=none src='{_data_uri(content, kind)}'></audio>"


def image(content: bytes, kind: str) -> str:
    """An encoded picture of the MIME type ``kind``."""
    return f"<img alt='' src='{_data_uri(content, kind)}'>"


def terms_section(terms: Mapping[str, str]) -> str:
    """Explanations of the terms on a page, for its end."""
    rows = "".join(f"<dt>{escape(term)}</dt><dd>{escape(meaning)}</dd>" for term, meaning in terms.items())
    more = "<p class=facts>Every term of the reports is explained in docs/report.md of the repository.</p>"
    return details("Terms", f"<dl>{rows}</dl>{more}", " class=terms id=terms")


TERMS_LINK = "<a href='#terms'>What the words mean</a>"


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
