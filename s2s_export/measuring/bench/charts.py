"""Charts as SVG text: bars, lines and points. Colours come from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 620, 360  # of a chart with axes, in CSS pixels
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 16, 46  # margins
BAR, GAP, LABEL = 20, 7, 190  # height of a bar, space after it, room for its label


@dataclass(frozen=True)
class Series:
    """The points of one system, and the number of its colour."""

    name: str
    colour: int
    points: Sequence[tuple[float, float]]
    labels: Sequence[str] = ()


@dataclass(frozen=True)
class Bar:
    """A bar from 0 to `value`, with a mark at `floor` and a `note` after it."""

    name: str
    colour: int
    value: float
    note: str
    floor: float | None = None


def bars(rows: Sequence[Bar], unit: str) -> str:
    """Horizontal bars, in the order given."""
    if not rows:
        return ""
    room = WIDTH - LABEL - 90
    scale = room / (max(row.value for row in rows) or 1.0)
    height = len(rows) * (BAR + GAP) + 4
    out = []
    for i, row in enumerate(rows):
        y = i * (BAR + GAP) + 2
        length = max(1.0, row.value * scale)
        middle = y + BAR / 2 + 4
        out.append(f'<text class="name" x="{LABEL - 8}" y="{middle:.0f}" text-anchor="end">{escape(row.name)}</text>')
        out.append(
            f'<rect class="c{row.colour}" x="{LABEL}" y="{y}" width="{length:.1f}" height="{BAR}" rx="2">'
            f"<title>{escape(row.name)}: {row.value:.3g} {escape(unit)}</title></rect>"
        )
        out.append(f'<text class="value" x="{LABEL + length + 6:.0f}" y="{middle:.0f}">{escape(row.note)}</text>')
        if row.floor is not None and row.floor * scale <= room:
            x = LABEL + row.floor * scale
            out.append(f'<line class="floor" x1="{x:.1f}" x2="{x:.1f}" y1="{y - 2}" y2="{y + BAR + 2}"/>')
    return _svg(WIDTH, height, out)


def lines(series: Sequence[Series], x_title: str, y_title: str, *, floors: Sequence[tuple[str, float]] = ()) -> str:
    """Points on logarithmic axes, joined by lines; `floors` are horizontal lines with names."""
    points = [point for one in series for point in one.points]
    if not points:
        return ""
    ys = [y for _, y in points] + [y for _, y in floors]
    x_axis, y_axis = _Axis([x for x, _ in points], LEFT, WIDTH - RIGHT), _Axis(ys, HEIGHT - BOTTOM, TOP)
    out = []
    for tick in y_axis.ticks:
        y = y_axis(tick)
        out.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        out.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_number(tick)}</text>')
    for tick in x_axis.ticks:
        x = x_axis(tick)
        out.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        y = HEIGHT - BOTTOM + 16
        out.append(f'<text class="tick" x="{x:.1f}" y="{y}" text-anchor="middle">{_number(tick)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    out.append(f'<text class="axis" x="{middle:.0f}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_title)}</text>')
    middle = (TOP + HEIGHT - BOTTOM) / 2
    turned = f'transform="rotate(-90 14 {middle:.0f})"'
    out.append(f'<text class="axis" x="14" y="{middle:.0f}" text-anchor="middle" {turned}>{escape(y_title)}</text>')
    for name, value in floors:
        y = y_axis(value)
        out.append(f'<line class="floor" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        out.append(
            f'<text class="floorname" x="{WIDTH - RIGHT - 4}" y="{y - 5:.1f}" text-anchor="end">{escape(name)}</text>'
        )
    for one in series:
        out += _marks(one, x_axis, y_axis)
    return _svg(WIDTH, HEIGHT, out)


def _marks(one: Series, x_axis: _Axis, y_axis: _Axis) -> list[str]:
    places = [(x_axis(x), y_axis(y)) for x, y in one.points]
    out = []
    if len(places) > 1:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        out.append(f'<polyline class="l{one.colour}" points="{path}"/>')
    for i, ((x, y), (vx, vy)) in enumerate(zip(places, one.points, strict=True)):
        label = f"{one.labels[i]}: " if i < len(one.labels) else ""
        text = escape(f"{one.name}, {label}{vx:.4g}, {vy:.4g}")
        out.append(f'<circle class="c{one.colour}" cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{text}</title></circle>')
    return out


def legend(names: Sequence[tuple[str, int]]) -> str:
    """Names with their colours, as HTML."""
    items = "".join(f'<li><span class="dot b{colour}"></span>{escape(name)}</li>' for name, colour in names)
    return f'<ul class="legend">{items}</ul>'


class _Axis:
    """A logarithmic axis: values to pixels, and round ticks."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        low, high = min(values), max(values)
        if low == high:
            low, high = low / 1.5, high * 1.5
        pad = (high / low) ** 0.05
        self._low, self._high = math.log(low / pad), math.log(high * pad)
        self._start, self._end = start, end
        self.ticks = _round_ticks(low / pad, high * pad, set(values))

    def __call__(self, value: float) -> float:
        share = (math.log(value) - self._low) / (self._high - self._low)
        return self._start + share * (self._end - self._start)


def _round_ticks(low: float, high: float, values: set[float]) -> list[float]:
    """The values themselves if they are few whole numbers, like batch sizes; else 1, 2, 5 times powers of ten."""
    if len(values) <= 6 and all(value == int(value) for value in values):
        return sorted(values)
    steps: Sequence[float] = (1, 2, 5) if high / low < 1000 else (1,)
    if high / low < 5:
        steps = (1, 1.5, 2, 3, 4, 5, 6, 8)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [s * 10.0**d for d in decades for s in steps if low <= s * 10.0**d <= high]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.3g}"


def _svg(width: float, height: float, parts: Sequence[str]) -> str:
    inside = "".join(parts)
    return f'<svg viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" role="img">{inside}</svg>'
