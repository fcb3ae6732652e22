"""Charts: lines and points as SVG text, bars as HTML. Colours come from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Size:
    """A chart with axes, in CSS pixels, with its margins. style: the class by which the page shows it or hides it."""

    style: str
    width: int
    height: int
    left: int
    right: int
    top: int = 16
    bottom: int = 46


# Every chart is drawn twice, and the page shows one: scaled down to a phone, the text of a wide one is too small.
WIDE = Size("on-wide", 620, 360, 62, right=26)
NARROW = Size("on-narrow", 340, 280, 66, right=24)
FULL = 100.0  # per cent of a bar's track
LINE_HEIGHT, TICK_WIDTH = 15, 46  # pixels that a line of text is high, and a number with its margins is wide


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
    """Horizontal bars, in the order given: names before them, or above them where there is little room."""
    if not rows:
        return ""
    largest = max(row.value for row in rows) or 1.0
    out = []
    for row in rows:
        floor = ""
        if row.floor is not None and row.floor <= largest:
            floor = f'<i class="floor" style="left:{FULL * row.floor / largest:.2f}%"></i>'
        out.append(
            f'<div class="bar" title="{escape(row.name)}: {row.value:.3g} {escape(unit)}">'
            f'<span class="name">{escape(row.name)}</span>'
            f'<span class="track"><i class="fill b{row.colour}" style="width:{FULL * row.value / largest:.2f}%"></i>'
            f'{floor}</span><span class="value">{escape(row.note)}</span></div>'
        )
    return f'<div class="bars">{"".join(out)}</div>'


def lines(series: Sequence[Series], x_title: str, y_title: str, *, floors: Sequence[tuple[str, float]] = ()) -> str:
    """Points on logarithmic axes, joined by lines; `floors` are horizontal lines with names."""
    if not any(one.points for one in series):
        return ""
    return "".join(_lines(size, series, x_title, y_title, floors) for size in (WIDE, NARROW))


def _lines(
    size: Size, series: Sequence[Series], x_title: str, y_title: str, floors: Sequence[tuple[str, float]]
) -> str:
    points = [point for one in series for point in one.points]
    ys = [y for _, y in points] + [y for _, y in floors]
    right, low = size.width - size.right, size.height - size.bottom
    x_axis, y_axis = _Axis([x for x, _ in points], size.left, right), _Axis(ys, low, size.top)
    out = []
    for tick in _apart(y_axis.ticks, y_axis, LINE_HEIGHT):
        y = y_axis(tick)
        out.append(f'<line class="grid" x1="{size.left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        out.append(f'<text class="tick" x="{size.left - 6}" y="{y + 4:.1f}" text-anchor="end">{_number(tick)}</text>')
    for tick in _apart(x_axis.ticks, x_axis, TICK_WIDTH):
        x = x_axis(tick)
        out.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{size.top}" y2="{low}"/>')
        out.append(f'<text class="tick" x="{x:.1f}" y="{low + 16}" text-anchor="middle">{_number(tick)}</text>')
    middle = (size.left + right) / 2
    out.append(
        f'<text class="axis" x="{middle:.0f}" y="{size.height - 8}" text-anchor="middle">{escape(x_title)}</text>'
    )
    middle = (size.top + low) / 2
    turned = f'transform="rotate(-90 14 {middle:.0f})"'
    out.append(f'<text class="axis" x="14" y="{middle:.0f}" text-anchor="middle" {turned}>{escape(y_title)}</text>')
    named_at: list[float] = []
    for name, value in sorted(floors, key=lambda floor: y_axis(floor[1])):
        y = y_axis(value)
        out.append(f'<line class="floor" x1="{size.left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        place = max([y - 5, *(before + LINE_HEIGHT for before in named_at)])  # never on another floor's name
        named_at.append(place)
        out.append(f'<text class="floorname" x="{right - 4}" y="{place:.1f}" text-anchor="end">{escape(name)}</text>')
    for one in series:
        out += _marks(one, x_axis, y_axis)
    return _svg(size, out)


def _apart(ticks: Sequence[float], axis: _Axis, least: float) -> list[float]:
    """The ticks whose labels have `least` pixels between them, so that none is written over another."""
    shown: list[float] = []
    for tick in ticks:
        if not shown or abs(axis(tick) - axis(shown[-1])) >= least:
            shown.append(tick)
    return shown


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


def _svg(size: Size, parts: Sequence[str]) -> str:
    view = f'viewBox="0 0 {size.width} {size.height}" width="{size.width}"'
    return f'<svg class="{size.style}" {view} role="img">{"".join(parts)}</svg>'
