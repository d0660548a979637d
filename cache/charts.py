"""The charts that reports are made of, each an SVG drawing with a title and a description in words."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.svg import Scale, element, line, number, panel, percent, steps, strip, text, ticks

Array = NDArray[Any]
WIDTH, HEIGHT = 360.0, 190.0  # of panels with axes, in their own units
_LEFT, _RIGHT, _TOP, _BOTTOM = 6.0, 52.0, 8.0, 20.0


@dataclass(frozen=True)
class Candles:
    """Bars to draw: prices float [n, 4] (open, high, low, close); `classes` say of each bar how, "" for plainly.

    Where prices are NaN stays an empty place. `shaded` are ranges of bars with another ground; `begins` and `ends` are
    words for the two ends of the time axis.
    """

    prices: Array
    classes: Sequence[str]
    shaded: Sequence[tuple[int, int]]
    begins: str
    ends: str


def candle_panel(title: str, description: str, bars: Candles, bounds: tuple[float, float] | None = None) -> str:
    """Candles, hollow where the bar rose; `bounds` of the price axis are those of the bars, if none are given."""
    low, high = bounds or (float(np.nanmin(bars.prices[:, 2])), float(np.nanmax(bars.prices[:, 1])))
    across = Scale(0, len(bars.prices), _LEFT, WIDTH - _RIGHT)
    up = Scale(low, high, HEIGHT - _BOTTOM - 4, _TOP)
    parts = [
        element(
            "rect", x=across(start), y=_TOP, width=across(stop) - across(start), height=_plot_height(), class_="shade"
        )
        for start, stop in bars.shaded
    ]
    parts += _price_axis(low, high, up)
    width = max(across(1) - across(0), 0.5)
    for k, ((open_, top, bottom, close), class_) in enumerate(zip(bars.prices.tolist(), bars.classes, strict=True)):
        if math.isnan(close):
            continue
        middle, ends = across(k + 0.5), (up(max(open_, close)), up(min(open_, close)))
        x, ys = number(middle), [number(y) for y in (up(top), *ends, up(bottom))]
        wick = f"M{x} {ys[0]}V{ys[1]}M{x} {ys[2]}V{ys[3]}"
        rose = "rose" if close >= open_ else "fell"
        body = {"x": middle - 0.34 * width, "width": 0.68 * width, "y": ends[0], "height": max(ends[1] - ends[0], 0.6)}
        parts.append(element("path", d=wick, class_=f"wick {class_}".rstrip()))
        parts.append(element("rect", **body, class_=f"{rose} {class_}".rstrip()))
    return panel(title, description, WIDTH, HEIGHT, [*parts, *_ends(bars.begins, bars.ends)], "chart")


def line_panel(
    title: str,
    description: str,
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    begins: str,
    ends: str,
) -> str:
    """Lines by class: x and y; what is not finite is left out."""
    flat = [y for _, ys in series.values() for y in ys if math.isfinite(y)]
    low, high = (min(flat), max(flat)) if flat else (0.0, 1.0)
    xs = [x for of, _ in series.values() for x in of]
    across = Scale(min(xs, default=0), max(xs, default=1), _LEFT + 2, WIDTH - _RIGHT - 4)
    up = Scale(low, high, HEIGHT - _BOTTOM - 6, _TOP + 2)
    parts = [part for value in ticks(low, high, 4) for part in _tick(up(value), f"{value:g}")]
    for class_, (of_x, of_y) in series.items():
        points = [(across(x), up(y)) for x, y in zip(of_x, of_y, strict=True)]
        parts.append(line(points, f"line {class_}"))
        if len(points) <= 12:
            parts += [
                element("circle", cx=x, cy=y, r=2.6, class_=f"dot {class_}") for x, y in points if math.isfinite(y)
            ]
    return panel(title, description, WIDTH, HEIGHT, [*parts, *_ends(begins, ends)], "chart")


def stacked_lines(title: str, description: str, values: Array, names: Sequence[str], begins: str, ends: str) -> str:
    """A line a column of values [n, k], each in a lane of its own and on one scale, with its name."""
    lane, width = 26.0, WIDTH
    height = lane * len(names) + _TOP + _BOTTOM
    across = Scale(0, max(len(values) - 1, 1), 70, width - 8)
    reach = float(np.abs(values).max()) or 1.0
    parts = []
    for k, name in enumerate(names):
        middle = _TOP + lane * (k + 0.5)
        up = Scale(-reach, reach, middle + lane * 0.75, middle - lane * 0.75)
        parts.append(element("path", d=f"M70 {number(middle)}H{number(width - 8)}", class_="rule"))
        parts.append(text(4, middle + 3.5, _short(name, 11), "small"))
        parts.append(line([(across(i), up(v)) for i, v in enumerate(values[:, k].tolist())], "line thin train"))
    parts += [text(70, height - 5, begins, "small soft"), text(width - 8, height - 5, ends, "small soft", "end")]
    return panel(title, description, width, height, parts, "chart")


def histogram_panel(title: str, description: str, edges: Array, train: Array, val: Array | None = None) -> str:
    """One or two histograms over edges [n + 1], as shares [n] of their own: one filled, one as an outline."""
    width, height = 150.0, 62.0
    across = Scale(float(edges[0]), float(edges[-1]), 1, width - 1)
    top = max(float(one.max()) for one in (train, val) if one is not None) or 1.0
    up = Scale(0, top, height - 12, 3)
    xs = [across(x) for x in edges.tolist()]
    decimals = max(0, 1 - math.floor(math.log10(float(np.abs(edges).max()) or 1.0)))
    parts = [
        element("path", d=f"M0 {number(up(0))}H{number(width)}", class_="rule"),
        steps(xs, [up(y) for y in train.tolist()], up(0), "area train"),
        steps(xs, [up(y) for y in val.tolist()], up(0), "line val") if val is not None else "",
        text(1, height - 2, f"{float(edges[0]):.{decimals}f}", "tiny soft"),
        text(width - 1, height - 2, f"{float(edges[-1]):.{decimals}f}", "tiny soft", "end"),
    ]
    return panel(title, description, width, height, parts)


@dataclass(frozen=True)
class Piece:
    """Part of a row of `rows`: where it begins and ends, as shares of the width, its class, and words on hovering."""

    start: float
    stop: float
    class_: str
    words: str


def rows(
    title: str, description: str, of: Sequence[tuple[str, str, Sequence[Piece]]], marks: Sequence[float] = ()
) -> str:
    """Bars to scale, a row each: words above it at the left and at the right, and its pieces. `marks` cross all."""
    row = 36.0
    height = row * len(of) + 4
    parts = []
    for k, (left, right, pieces) in enumerate(of):
        y = k * row
        parts.append(element("line", x1="0%", x2="100%", y1=y + 25, y2=y + 25, class_="rule"))
        parts += [element("line", x1=percent(at), x2=percent(at), y1=y + 17, y2=y + 33, class_="mark") for at in marks]
        parts += [text("0%", y + 14, left, "label"), text("100%", y + 14, right, "small soft", "end")]
        for piece in pieces:
            width = max(piece.stop - piece.start, 0.005)  # what is there is to be seen
            start = min(piece.start, 1 - width)
            box = {
                "x": percent(start),
                "width": percent(width),
                "y": y + 19,
                "height": 12,
                "class_": f"piece {piece.class_}",
            }
            parts.append(element("rect", element("title", escape(piece.words)), **box))
    return strip(title, description, height, parts)


def _price_axis(low: float, high: float, up: Scale) -> list[str]:
    found = ticks(low, high, 4)
    decimals = max(0, -math.floor(math.log10(found[1] - found[0]) + 1e-9)) if len(found) > 1 else 2
    return [part for value in found for part in _tick(up(value), f"{value:,.{decimals}f}")]


def _tick(y: float, words: str) -> list[str]:
    right = WIDTH - _RIGHT
    return [
        element("path", d=f"M{number(_LEFT)} {number(y)}H{number(right)}", class_="rule"),
        text(right + 4, y + 3.5, words, "small soft"),
    ]


def _ends(begins: str, ends: str) -> list[str]:
    y = HEIGHT - 5
    return [text(_LEFT, y, begins, "small soft"), text(WIDTH - _RIGHT, y, ends, "small soft", "end")]


def _plot_height() -> float:
    return HEIGHT - _TOP - _BOTTOM


def _short(words: str, most: int) -> str:
    return words if len(words) <= most else words[: most - 1] + "…"
