"""Parts of a report as HTML: words, numbers, tables, figures.

Words from a run folder may come from anybody. They are escaped here and in `svg`.
"""

from html import escape

from ssl.checkpoints.run_reader import Run, finite
from ssl.errors import one_line
from ssl.report import svg
from ssl.report.page_style import COLOURS, STYLE

LONGEST = 300  # characters of a value
LONG = 40  # a cell with more characters gets room for a sentence


def words(value: object) -> str:
    """One printable line of bounded length."""
    line = one_line(str(value)[: LONGEST + 1])
    return line if len(line) <= LONGEST else line[:LONGEST] + "…"


def text(value: object) -> str:
    """`words`, escaped."""
    return escape(words(value))


def document(title: str, body: str) -> str:
    """A page of HTML that needs no network and runs no script. `title` and `body` are HTML."""
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" '
        f'content="light dark"><link rel="icon" href="data:,"><title>{title}</title>'
        f"<style>{STYLE}</style></head><body>{body}</body></html>\n"
    )


def number(value: object) -> str:
    return svg.number(value) if finite(value) else "-" if value is None else text(value)


def table(caption: str, head: list[str], rows: list[list[str]]) -> str:
    """A table; nothing without rows. Cells are HTML; `caption` and `head` are plain text."""
    if not rows:
        return ""
    heads = "".join(f'<th scope="col">{text(cell)}</th>' for cell in head)
    body = "".join(f'<tr><th scope="row">{row[0]}</th>{"".join(map(_cell, head[1:], row[1:]))}</tr>' for row in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(caption)}"><table><caption class="soft">'
        f"{text(caption)}</caption><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(head: str, content: str) -> str:
    """A cell. On a narrow screen, where a row is a block, its head is shown before it."""
    kind = " class=long" if len(content) > LONG else " class=dash" if content == "-" else ""
    return f'<td{kind} data-head="{text(head)}">{content}</td>'


def folded(title: str, content: str) -> str:
    """`content` that a click on `title` shows."""
    return f"<details><summary>{text(title)}</summary>{content}</details>" if content else ""


def folded_table(title: str, head: list[str], rows: list[list[str]]) -> str:
    return folded(title, table(title, head, rows))


def figure(caption: str, content: str) -> str:
    """`caption` and `content` are HTML."""
    return f"<figure><figcaption>{caption}</figcaption>{content}</figure>"


def grid(figures: list[str]) -> str:
    return f'<div class="grid-of">{"".join(figures)}</div>' if figures else ""


def note(run: Run, content: str) -> str:
    return f'<div class="note"><b>{text(run.short_name)}</b>{content}</div>'


def key(i: int) -> str:
    """A patch of the colour of run `i`."""
    return f'<span class="key c{i % COLOURS}"></span>'


def legend(runs: list[Run]) -> str:
    """The colours of the runs that have curves."""
    shown = [(i, run) for i, run in enumerate(runs) if run.curves]
    keys = "".join(f"<span>{key(i)}{text(run.short_name)}</span> &ensp; " for i, run in shown)
    return f"<p>{keys}</p>" if len(runs) > 1 else ""
