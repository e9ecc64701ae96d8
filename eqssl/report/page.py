"""report.html: one page with everything it shows inside it."""

import base64
import html
from collections.abc import Iterable, Mapping
from typing import Any

STYLE = """body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem;
  color: #222; }
h2 { margin-top: 2.5rem; border-bottom: 2px solid #0072b2; } figure { margin: 1rem 0; } img { max-width: 100%; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .87em; }
td, th { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
td:first-child, th:first-child { text-align: left; white-space: normal; }
thead th { position: sticky; top: 0; background: #fff; }
.text td { text-align: left; white-space: normal; } .table { max-height: 40rem; overflow: auto; margin: 1rem 0; }
.marked td { background: #e8f2fa; } .answer { font-size: 1.15em; border-left: 4px solid #0072b2; padding-left: .8rem; }
.note, figcaption { color: #555; max-width: 60rem; } dt { font-weight: 600; }
nav { columns: 3; } nav a { display: block; }"""


def note(text: str) -> str:
    """Return a paragraph that explains."""
    return f'<p class="note">{html.escape(text)}</p>'


def scrolled(table: str, *, text: bool = False) -> str:
    """Return a table that scrolls where it is too large, its cells as running text or as numbers."""
    return f'<div class="table{" text" * text}">{table}</div>'


def image(name: str, png: bytes, caption: str) -> str:
    """Return a picture that needs no file."""
    data = base64.b64encode(png).decode()
    return (
        f'<figure><img alt="{html.escape(name)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def facts(values: Mapping[str, Any]) -> str:
    """Return names and values as a list of definitions."""
    return (
        "<dl>"
        + "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(str(v))}</dd>" for k, v in values.items())
        + "</dl>"
    )


def bullets(lines: Iterable[str]) -> str:
    """Return lines as a list."""
    return "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>"


def page(title: str, answer: str, status: str, sections: Iterable[tuple[str, str]]) -> str:
    """Return the page, the answer and the table of contents first.

    Args:
        title, answer, status: heading and the lines below it.
        sections: headings and their HTML.
    """
    sections = list(sections)
    contents = "".join(f'<a href="#s{i}">{html.escape(name)}</a>' for i, (name, _) in enumerate(sections))
    body = "".join(f'<h2 id="s{i}">{html.escape(name)}</h2>{text}' for i, (name, text) in enumerate(sections))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style><h1>{html.escape(title)}</h1>"
        f'<p class="answer">{html.escape(answer)}</p>{note(status)}<nav>{contents}</nav>{body}</html>\n'
    )
