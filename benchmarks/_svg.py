"""Small plots of measurements as a static SVG, without a plotting library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 250, 190, 46, 12, 40, 34
COLUMNS = 4
STYLE = (
    "text{font:11px system-ui,sans-serif;fill:#1f2430}.title{font-weight:600;font-size:12px}"
    ".note,.tick{fill:#5b6472}.tick{font-size:10px}.axis{stroke:#9aa3b2}.grid{stroke:#e4e7ec}"
    ".fit{stroke:#b8541a;stroke-width:1.5;fill:none}.point{fill:#1f5fa8}.back{fill:#fff}"
)


@dataclass(frozen=True)
class Panel:
    """Points with logarithmic axes, or only a logarithmic x axis."""

    title: str
    note: str
    x: Sequence[float]
    y: Sequence[float]
    x_label: str
    fit: tuple[float, float] | None = None
    """y of the fitted line at the least and the largest x."""
    log_y: bool = True


def draw(panels: Sequence[Panel], title: str) -> str:
    """The panels, four per row."""
    rows = ceil(len(panels) / COLUMNS)
    width, height = COLUMNS * WIDTH, rows * HEIGHT + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        f"<title>{escape(title)}</title><style>{STYLE}</style>",
        f'<rect class="back" width="{width}" height="{height}"/>',
    ]
    for number, panel in enumerate(panels):
        x, y = number % COLUMNS * WIDTH, number // COLUMNS * HEIGHT
        parts += [f'<g transform="translate({x} {y})">', *_panel(panel), "</g>"]
    return "\n".join([*parts, "</svg>\n"])


def _panel(panel: Panel) -> list[str]:
    x_low, x_high = _decades(panel.x) if len(set(panel.x)) > 1 else (log10(panel.x[0]) - 1, log10(panel.x[0]) + 1)
    if panel.log_y:
        y_low, y_high = _decades(panel.y)
        y_ticks = [(power, _number(10**power)) for power in range(ceil(y_low), floor(y_high) + 1)]
    else:
        y_low, y_high = 0.0, max(panel.y) * 1.15
        step = 10 ** floor(log10(y_high / 2))
        step *= next(factor for factor in (1, 2, 5) if y_high / (factor * step) <= 6)
        y_ticks = [(i * step, _number(i * step)) for i in range(floor(y_high / step) + 1)]

    def across(value: float) -> float:
        return LEFT + (log10(value) - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def up(value: float) -> float:
        value = log10(value) if panel.log_y else value
        return HEIGHT - BOTTOM - (value - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    floor_y, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = [
        f'<text class="title" x="{LEFT}" y="16">{escape(panel.title)}</text>',
        f'<text class="note" x="{LEFT}" y="31">{escape(panel.note)}</text>',
    ]
    for tick, label in y_ticks:
        y = up(10**tick if panel.log_y else tick)
        parts += [
            f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>',
            f'<text class="tick" x="{LEFT - 5}" y="{y + 3:.1f}" text-anchor="end">{label}</text>',
        ]
    powers = range(ceil(x_low), floor(x_high) + 1)
    for value in [10**power for power in powers] if len(powers) > 1 else sorted(set(panel.x)):
        parts.append(
            f'<text class="tick" x="{across(value):.1f}" y="{floor_y + 13}" text-anchor="middle">{_number(value)}</text>'
        )
    parts += [
        f'<line class="axis" x1="{LEFT}" y1="{floor_y}" x2="{right}" y2="{floor_y}"/>',
        f'<text class="note" x="{(LEFT + right) / 2}" y="{floor_y + 27}" text-anchor="middle">{escape(panel.x_label)}</text>',
    ]
    if panel.fit:
        ends = [(across(min(panel.x)), up(panel.fit[0])), (across(max(panel.x)), up(panel.fit[1]))]
        (x1, y1), (x2, y2) = ends
        parts.append(f'<path class="fit" d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}"/>')
    for x, y in zip(panel.x, panel.y, strict=True):
        parts.append(f'<circle class="point" cx="{across(x):.1f}" cy="{up(y):.1f}" r="3.5"/>')
    return parts


def _decades(values: Sequence[float]) -> tuple[float, float]:
    """Ends of a logarithmic axis: the values with some room, and at least one power of ten inside."""
    low, high = log10(min(values)) - 0.15, log10(max(values)) + 0.15
    return (low, high) if floor(high) >= ceil(low) else (floor(low), ceil(high))


def _number(value: float) -> str:
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
