"""Draw curves and points as inline SVG. Colours are classes of the page's style sheet, for light and dark."""

import html
import math
from collections.abc import Sequence

from ssl.errors import one_line
from ssl.report.page_style import COLOURS

MOST_POINTS = 1000  # of a curve
WIDTH, HEIGHT = 480, 240
LEFT, RIGHT, TOP, BOTTOM = 54, 12, 28, 34

Points = Sequence[tuple[float, float]]


def thin(points: Points) -> Points:
    """At most MOST_POINTS of a curve: the lowest and the highest of each of equal parts, in order."""
    if len(points) <= MOST_POINTS:
        return points
    kept, parts = [], MOST_POINTS // 2
    for part in range(parts):
        piece = points[part * len(points) // parts : (part + 1) * len(points) // parts]
        at = {min(range(len(piece)), key=lambda i: piece[i][1]), max(range(len(piece)), key=lambda i: piece[i][1])}
        kept += [piece[i] for i in sorted(at)]
    return kept


def ticks(low: float, high: float) -> list[float]:
    """About five round numbers (1, 2 or 5 times a power of ten) from `low` to `high`."""
    raw = (high - low) / 5
    if not 1e-300 < raw < math.inf:  # below, a power of ten has few digits, or is zero
        return [low]
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, first + 10) if i * step <= high + 1e-9 * step]


def log_ticks(low: float, high: float) -> list[float]:
    """Numbers from 10^low to 10^high: powers of ten, or 1, 2 and 5 times them where those are few."""
    powers = range(max(-300, math.floor(low)), min(300, math.ceil(high)) + 1)
    if len(powers) > 4:
        return [10.0**power for power in powers[:: -(-len(powers) // 6)] if low <= power <= high]
    found = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    return [value for value in found if low <= math.log10(value) <= high]


class Frame:
    """Axes: numbers become places in the picture. With `log` y is logarithmic if all of it is positive.

    A label is the name of an axis and its unit. `x_marks`: (x, words) along the axis x, instead of round numbers.
    """

    def __init__(
        self,
        points: Points,
        x_label: str,
        y_label: str = "value",
        log: bool = False,
        x_marks: Sequence[tuple[float, str]] | None = None,
    ):
        self.x_marks = x_marks
        xs, ys = ([float(v) for v in column] for column in zip(*points)) if points else ([0.0], [1.0])
        xs += [x for x, _ in x_marks or []]
        self.log, self.x_label = log and min(ys) > 0, x_label
        self.y_label = y_label + (", logarithmic" if self.log else "")
        ys = [math.log10(y) for y in ys] if self.log else ys
        self.x0, self.x1 = _widened(min(xs), max(xs), 0)
        self.y0, self.y1 = _widened(min(ys), max(ys), 0.04)

    def place(self, x: float, y: float) -> tuple[float, float]:
        y = math.log10(y) if self.log else y
        across = (x - self.x0) / (self.x1 - self.x0)
        up = (y - self.y0) / (self.y1 - self.y0)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    def axes(self) -> str:
        parts = [f'<text class="tick" x="4" y="14">{html.escape(one_line(self.y_label))}</text>']
        values = log_ticks(self.y0, self.y1) if self.log else ticks(self.y0, self.y1)
        for value, words in zip(values, numbers(values)):
            y = self.place(self.x0, value)[1]
            parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
            parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{words}</text>')
        values = ticks(self.x0, self.x1)
        for value, words in self.x_marks or zip(values, numbers(values)):
            x = LEFT + (value - self.x0) / (self.x1 - self.x0) * (WIDTH - LEFT - RIGHT)
            words = html.escape(words)
            parts.append(
                f'<text class="tick" x="{x:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{words}</text>'
            )
        parts.append(
            f'<text class="tick" x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">'
            f"{html.escape(one_line(self.x_label))}</text>"
        )
        return "".join(parts)


def curves(
    lines: list[Points],
    title: str,
    x_label: str = "step",
    y_label: str = "value",
    log: bool = False,
    colours: int = 0,
    bars: Sequence[Sequence[tuple[float, float, float]]] = (),
    x_marks: Sequence[tuple[float, str]] | None = None,
) -> str:
    """A picture of several curves; a curve of one point is a dot.

    Curve i has colour i. With `colours`, the colours begin again after so many curves, and those lines are dashed.
    `bars[i]`: intervals (x, low, high) of curve i. `x_marks` as of `Frame`.
    """
    lines = [thin(line) for line in lines]
    ends = [(x, y) for some in bars for x, low, high in some for y in (low, high)]
    frame = Frame([*(point for line in lines for point in line), *ends], x_label, y_label, log, x_marks)
    drawn = []
    for place, line in enumerate(lines):
        again, i = divmod(place, colours or len(lines))
        places = [frame.place(*point) for point in line]
        if len(places) == 1:
            drawn.append(f'<circle class="fill c{i % COLOURS}" cx="{places[0][0]:.1f}" cy="{places[0][1]:.1f}" r="3"/>')
        elif places:
            path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
            drawn.append(f'<path class="line{" dashed" * again} c{i % COLOURS}" d="M{path}"/>')
    for i, some in enumerate(bars):
        shift = 3 * (i - (len(bars) - 1) / 2)  # pixels, so that the bars of several curves stand side by side
        for x, low, high in some:
            (across, bottom), (_, top) = frame.place(x, low), frame.place(x, high)
            drawn.append(f'<path class="line c{i % COLOURS}" d="M{across + shift:.1f} {bottom:.1f}V{top:.1f}"/>')
    return _picture(title, frame.axes() + "".join(drawn))


def scatter(points: Points, groups: Sequence[int], title: str, labels: tuple[str, str]) -> str:
    """Points (x, y), each in the colour of its group; a negative group is grey. `labels`: of the axes x and y."""
    frame = Frame(points, *labels)
    drawn = {}
    for point, group in zip(points, groups):
        x, y = frame.place(*point)
        drawn.setdefault(group, []).append(f"M{x:.1f} {y:.1f}h0")  # a round line of no length is a dot
    dots = "".join(
        f'<path class="dot {f"c{group % COLOURS}" if group >= 0 else "none"}" d="{"".join(places)}"/>'
        for group, places in sorted(drawn.items())
    )
    return _picture(title, frame.axes() + dots)


def number(value: float) -> str:
    """At most four digits: 0.001, 12, 3.5e+06; of a whole number, a count, all of them."""
    return str(value) if isinstance(value, int) and abs(value) < 10**15 else f"{value:.4g}"


def numbers(values: Sequence[float]) -> list[str]:
    """The `values` with as few digits, four to seven, as tell them apart."""
    found = [[f"{value:.{digits}g}" for value in values] for digits in range(4, 8)]
    return next((words for words in found if len(set(words)) == len(values)), found[-1])


def _widened(low: float, high: float, share: float) -> tuple[float, float]:
    """A range that is not empty, wider by `share` at both ends."""
    if high == low:
        low, high = low - (abs(low) * 0.1 or 0.5), high + (abs(high) * 0.1 or 0.5)
    return low - share * (high - low), high + share * (high - low)


def _picture(title: str, content: str) -> str:
    title = html.escape(one_line(title))
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}"><title>{title}</title>{content}</svg>'
