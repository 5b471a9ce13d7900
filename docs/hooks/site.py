"""MkDocs hook: pages generated from the code, the navigation, and links that work in the repository and on the site."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
# MkDocs loads each hook as a single file, outside any package.
sys.path[:0] = [str(Path(__file__).parent), str(ROOT)]

from pages import generated_pages  # noqa: E402

HOME, COSTS = "index.md", "experiments_cost.md"
LINK = re.compile(r"\[([^\]]+)\]\(([^)\s]+)\)")
_PAGES: dict[str, str] = {}


def on_config(config: Any) -> Any:
    """Generate the pages and the navigation."""
    _PAGES.clear()
    _PAGES.update(generated_pages(ROOT))
    _PAGES[HOME] = readme((ROOT / "README.md").read_text(encoding="utf-8"))
    docs = Path(config.docs_dir)
    written = sorted(path.relative_to(docs).as_posix() for path in docs.rglob("*.md"))
    config.nav = [
        {"Start": HOME},
        {"How to": [name for name in written if name.startswith("howto/")]},
        {"Background": [*(name for name in written if "/" not in name), COSTS]},
        {"Metrics": _under("metrics/")},
        {"Configuration": _under("configuration/")},
        {"Commands": _under("commands/")},
        {"Python": _under("python/")},
    ]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages to the site."""
    for name, text in _PAGES.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links to the README to the front page; links to other files outside ``docs`` become plain text."""
    depth = page.file.src_uri.count("/")

    def linked(found: re.Match[str]) -> str:
        text, target = found[1], found[2]
        if "://" in target or not target.startswith("../" * (depth + 1)):
            return found[0]
        return f"[{text}]({'../' * depth}{HOME})" if target.endswith("README.md") else text

    return _outside_code(markdown, linked)


def readme(text: str) -> str:
    """The README as the front page: links into ``docs`` are kept, links to other files become plain text."""

    def linked(found: re.Match[str]) -> str:
        words, target = found[1], found[2]
        if "://" in target or target.startswith("#"):
            return found[0]
        return f"[{words}]({target.removeprefix('docs/')})" if target.startswith("docs/") else words

    return _outside_code(text, linked)


def _outside_code(text: str, linked: Any) -> str:
    """``text`` with its links replaced outside code blocks."""
    parts = re.split(r"(^```.*?^```$)", text, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if part.startswith("```") else LINK.sub(linked, part) for part in parts)


def _under(folder: str) -> list[str]:
    return sorted(name for name in _PAGES if name.startswith(folder))
