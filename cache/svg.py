"""Drawings as SVG text, made of strings alone: elements, scales, ticks and paths. Colours are classes (cache/html.py).

A drawing is either a `panel`, with coordinates of its own that grow and shrink with it, or a `strip`, as wide as its
place and of a fixed height, where x is a percentage and text keeps its size.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any


def number(value: float) -> str:
    """A coordinate with at most two decimals: `12`, `0.5`."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if value % 1 else f"{value:.0f}"


def element(name: str, *children: str, **attributes: Any) -> str:
    """`<name attribute="…">children</name>`; children are markup, `class_` is `class`, `text_anchor` `text-anchor`."""
    words = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(number(value) if isinstance(value, float | int) else value)}"'
        for key, value in attributes.items()
        if value is not None and value != ""
    )
    return f"<{name}{words}>{''.join(children)}</{name}>" if children else f"<{name}{words}/>"


def text(x: float | str, y: float, words: str, class_: str = "", anchor: str = "") -> str:
    """Words at a place, escaped; `anchor` is `middle` or `end`."""
    return element("text", escape(words), x=x, y=y, class_=class_, text_anchor=anchor)


def panel(title: str, description: str, width: float, height: float, parts: Iterable[str], class_: str = "") -> str:
    """A drawing in coordinates [0, width] × [0, height], that scales as a whole."""
    described = element("title", escape(title)), element("desc", escape(description))
    view = f"0 0 {number(width)} {number(height)}"
    return element("svg", *described, *parts, role="img", viewBox=view, class_=f"panel {class_}".rstrip())


def strip(title: str, description: str, height: float, parts: Iterable[str]) -> str:
    """A drawing as wide as its place, whose x are percentages such as `12.5%`."""
    described = element("title", escape(title)), element("desc", escape(description))
    return element("svg", *described, *parts, role="img", class_="strip", width="100%", height=height)


def percent(share: float) -> str:
    """A share of the width."""
    return f"{100 * min(max(share, 0), 1):.3f}".rstrip("0").rstrip(".") + "%"


@dataclass(frozen=True)
class Scale:
    """Maps [low, high] linearly onto [start, stop]; where low is high, onto the middle."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        """The coordinate of a value."""
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return self.start + share * (self.stop - self.start)


def ticks(low: float, high: float, most: int) -> list[float]:
    """At most `most` round numbers (1, 2 or 5 times a power of ten apart) in [low, high], rising."""
    if not (math.isfinite(low) and math.isfinite(high) and high > low):
        return []
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    for step in (power * k for k in (1, 2, 5, 10, 20)):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            return [float(f"{k * step:.12g}") for k in range(first, last + 1)]
    return []


def line(points: Iterable[tuple[float, float]], class_: str) -> str:
    """A line through points; it breaks where one is not finite."""
    words, pen = [], "M"
    for x, y in points:
        if math.isfinite(y):
            words.append(f"{pen}{number(x)} {number(y)}")
            pen = "L"
        else:
            pen = "M"
    return element("path", d="".join(words), class_=class_) if words else ""


def steps(edges: Sequence[float], heights: Sequence[float], floor: float, class_: str) -> str:
    """The outline of a histogram: `heights` are y coordinates between x coordinates `edges`, one more than them."""
    words = f"M{number(edges[0])} {number(floor)}"
    for right, y in zip(edges[1:], heights, strict=True):
        words += f"V{number(y)}H{number(right)}"
    return element("path", d=f"{words}V{number(floor)}", class_=class_)


def cells(levels: Sequence[Sequence[int]], width: float, height: float, left: float, top: float) -> list[str]:
    """A heat map: `levels[row][column]` is a class h1, h2, …, or 0 for nothing. One path a level, runs as one piece."""
    runs: dict[int, list[str]] = {}
    for row, of_row in enumerate(levels):
        start = 0
        for column in range(1, len(of_row) + 1):
            if column < len(of_row) and of_row[column] == of_row[start]:
                continue
            if level := of_row[start]:
                x, y, run = left + start * width, top + row * height, (column - start) * width
                runs.setdefault(level, []).append(
                    f"M{number(x)} {number(y)}h{number(run)}v{number(height)}h{number(-run)}z"
                )
            start = column
    return [element("path", d="".join(runs[level]), class_=f"h{level}") for level in sorted(runs)]
