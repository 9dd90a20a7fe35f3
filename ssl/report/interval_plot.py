"""Shares with their intervals as inline SVG: 0 to 100 %, a colour for each of several things."""

import html
from collections.abc import Mapping, Sequence

from ssl.errors import one_line
from ssl.evaluation.card_table import Row
from ssl.report.page_style import COLOURS

WIDTH, MARGIN, TOP = 560, 22, 6
LINE, TITLE, APART = 17, 10, 6  # heights of a line of words, of the space above a section, of the marks of a thing
LONGEST = 62  # characters of a label


def draw(things: Mapping[str, Sequence[Row]], title: str) -> str:
    """A picture of the rows of several things, by their names. Rows of the same section and name share a line.

    A point has its interval as a bar. Several points of a row are joined in their order, from large to small.
    """
    cells = [{row[:2]: row.points for row in rows} for rows in things.values()]
    places = [place for place in dict.fromkeys(place for own in cells for place in own) if any(_points(cells, place))]
    parts, y, last = [], TOP, ""
    for i, name in enumerate(things):
        y += LINE
        parts += [_dot(MARGIN, y - 4, 3.6, i), _words(MARGIN + 10, y, name)]
    top = y + 6
    for section, what in places:
        if section != last:
            y += TITLE + LINE
            parts.append(_words(4, y, section, 'font-weight="bold"'))
            last = section
        y += LINE
        parts.append(_words(MARGIN, y, what))
        y += 3
        for i, points in enumerate(_points(cells, (section, what))):
            y += APART
            parts.append(_marks(points, y, i))
    axis = [f'<path class="grid" d="M{_across(i / 5):.1f} {top}V{y + 8}"/>' for i in range(6)]
    parts += [_words(_across(i / 5), y + 24, f"{20 * i} %", 'text-anchor="middle"') for i in range(6)]
    parts.append(_words(WIDTH - MARGIN, y + 42, "share, an index of 1 as 100 %", 'text-anchor="end"'))
    title = html.escape(one_line(title))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 50}" style="max-width:600px" '
        f'role="img" aria-label="{title}">'
        f"<title>{title}</title>{''.join(axis + parts)}</svg>"
    )


def _points(cells: list[dict], place: tuple[str, str]) -> list[tuple[tuple[float, float, float], ...]]:
    return [own.get(place, ()) for own in cells]


def _across(share: float) -> float:
    return MARGIN + min(max(share, 0.0), 1.0) * (WIDTH - 2 * MARGIN)


def _words(x: float, y: float, words: str, how: str = "") -> str:
    words = one_line(words)
    words = words if len(words) <= LONGEST else words[: LONGEST - 1] + "…"
    return f'<text class="tick" x="{x:.1f}" y="{y:.1f}" {how}>{html.escape(words)}</text>'


def _marks(points: Sequence[tuple[float, float, float]], y: float, thing: int) -> str:
    lines = [f"M{_across(low):.1f} {y:.1f}H{_across(high):.1f}" for _, low, high in points]
    joined = len(points) > 1
    if joined:
        lines = ["M" + "L".join(f"{_across(value):.1f} {y:.1f}" for value, _, _ in points)]
    drawn = [f'<path class="line{" dashed" * joined} c{thing % COLOURS}" d="{line}"/>' for line in lines]
    dots = [_dot(_across(value), y, 3.6 - 2 * i / len(points), thing) for i, (value, _, _) in enumerate(points)]
    return "".join(drawn + dots)


def _dot(x: float, y: float, radius: float, thing: int) -> str:
    return f'<circle class="fill c{thing % COLOURS}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"/>'
