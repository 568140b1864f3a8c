"""Two plain charts as SVG text: bars in groups, and lines on two logarithmic axes."""

import math
from collections.abc import Mapping, Sequence
from html import escape

COLOURS = ("#1b6ca8", "#e07b39", "#7a9e3b", "#8c6bb1")
WIDTH, LEFT, TOP = 760, 150, 44


def text(x: float, y: float, words: str, *, anchor: str = "start", size: int = 12) -> str:
    """Returns one line of text."""
    place = f'x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}"'
    return f'<text {place} fill="#222">{escape(words)}</text>'


def framed(title: str, parts: Sequence[str], height: float) -> str:
    """Returns a whole picture on white, so that a dark page does not swallow its text."""
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" '
        f'font-family="sans-serif" role="img" aria-label="{escape(title)}">',
        f'<rect width="{WIDTH}" height="{height:.0f}" fill="#fff"/>',
        text(12, 20, title, size=15), *parts, "</svg>\n",
    ])  # fmt: skip


def legend(names: Sequence[str], y: float) -> list[str]:
    """Returns coloured squares with names beside them."""
    parts: list[str] = []
    for place, name in enumerate(names):
        x = LEFT + 190 * place
        colour = COLOURS[place % len(COLOURS)]
        parts += [f'<rect x="{x}" y="{y - 9}" width="10" height="10" fill="{colour}"/>',
                  text(x + 15, y, name)]  # fmt: skip
    return parts


def bars(title: str, groups: Mapping[str, Mapping[str, float]]) -> str:
    """Returns a bar for each series of each group, with its number at its end."""
    names = list(dict.fromkeys(name for values in groups.values() for name in values))
    most = max((value for values in groups.values() for value in values.values()), default=1.0)
    parts, y = legend(names, TOP), TOP + 16.0
    for group, values in groups.items():
        parts.append(text(LEFT - 8, y + 9 * len(values), group, anchor="end"))
        for name, value in values.items():
            long = (WIDTH - LEFT - 70) * value / most
            colour = COLOURS[names.index(name) % len(COLOURS)]
            parts += [
                f'<rect x="{LEFT}" y="{y:.1f}" width="{long:.1f}" height="13" fill="{colour}"/>',
                text(LEFT + long + 5, y + 11, f"{value:.1f}"),
            ]
            y += 16
        y += 10
    return framed(title, parts, y + 4)


def lines(
    title: str, axes: tuple[str, str], series: Mapping[str, Sequence[tuple[float, float]]]
) -> str:
    """Returns lines through points; both axes are logarithmic, with a mark at each x."""
    points = [point for line in series.values() for point in line]
    low_x, high_x = spread([x for x, _ in points])
    low_y, high_y = spread([y for _, y in points])
    height, bottom, right = 380, 336, WIDTH - 24

    def at(x: float, y: float) -> tuple[float, float]:
        over = math.log(x / low_x) / math.log(high_x / low_x)
        up = math.log(y / low_y) / math.log(high_y / low_y)
        return 70 + over * (right - 70), bottom - up * (bottom - 66)

    parts = [*legend(list(series), TOP),
             f'<path d="M70 66V{bottom}H{right}" fill="none" stroke="#888"/>']  # fmt: skip
    parts += [
        text(at(x, low_y)[0], bottom + 16, f"{x:g}", anchor="middle")
        for x in sorted({x for x, _ in points})
    ]
    parts += [text(64, at(low_x, y)[1] + 4, f"{y:g}", anchor="end") for y in decades(low_y, high_y)]
    parts += [text(right, bottom + 34, axes[0], anchor="end"), text(12, 62, axes[1])]
    for place, line in enumerate(series.values()):
        colour = COLOURS[place % len(COLOURS)]
        drawn = [at(*point) for point in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in drawn)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in drawn]
    return framed(title, parts, height)


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Returns the ends of an axis: those of the values, never the same."""
    low, high = min(values), max(values)
    return (low, high) if high > low else (low / 2, 2 * high)


def decades(low: float, high: float) -> list[float]:
    """Returns 1, 2 and 5 times powers of ten between two numbers."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = [times * 10.0**power for power in range(first, last + 1) for times in (1, 2, 5)]
    return [one for one in every if low <= one <= high]
