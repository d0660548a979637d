"""Drawings are well-formed, to scale, and escape what they are given."""

import math
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.charts import Candles, Piece, candle_panel, histogram_panel, line_panel, rows, stacked_lines
from cache.html import Section, checks, page, table
from cache.svg import Scale, cells, element, line, number, panel, percent, steps, text, ticks

finite = st.floats(-1e9, 1e9)


def elements(drawing: str, name: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(drawing).iter(name))


def test_numbers_are_short():
    assert [number(x) for x in (12.0, 0.5, 1 / 3, -0.001, 100)] == ["12", "0.5", "0.33", "-0", "100"]


def test_elements_are_escaped_and_named_as_in_svg():
    assert (
        element("text", "a", class_="b", text_anchor="end", x=1.0) == '<text class="b" text-anchor="end" x="1">a</text>'
    )
    assert text(1, 2, '<b> & "c"') == '<text x="1" y="2">&lt;b&gt; &amp; &quot;c&quot;</text>'
    drawing = panel("<a>", "b & c", 10, 20, [])
    assert [one.text for one in ElementTree.fromstring(drawing)] == ["<a>", "b & c"]


@given(finite, finite, st.integers(2, 8))
def test_ticks_are_round_inside_and_few(a: float, b: float, most: int):
    low, high = min(a, b), max(a, b)
    if high - low < 1e-6 * max(abs(low), abs(high), 1e-3):
        return
    found = ticks(low, high, most)
    assert 1 <= len(found) <= most
    slack = 1e-6 * (high - low)
    assert all(low - slack <= tick <= high + slack for tick in found)
    if len(found) > 1:
        step = found[1] - found[0]
        lead = step / 10 ** math.floor(math.log10(step) + 1e-6)
        assert min(abs(lead - k) for k in (1, 2, 5)) < 1e-3


def test_no_ticks_where_there_is_no_length():
    assert ticks(1, 1, 4) == ticks(0, math.inf, 4) == ticks(math.nan, 1, 4) == []


def test_scale_and_percent():
    scale = Scale(10, 20, 100, 0)
    assert [scale(x) for x in (10, 15, 20)] == [100, 50, 0]
    assert Scale(3, 3, 0, 8)(3) == 4
    assert [percent(x) for x in (0, 1 / 3, 1, 2, -1)] == ["0%", "33.333%", "100%", "100%", "0%"]


def test_lines_break_where_nothing_is_known():
    assert 'd="M0 1L1 2M3 4"' in line([(0, 1), (1, 2), (2, math.nan), (3, 4)], "x")
    assert line([(0, math.nan)], "x") == ""


def test_steps_outline_a_histogram():
    assert 'd="M0 9V5H1V7H2V9"' in steps([0, 1, 2], [5, 7], 9, "x")


@given(st.lists(st.lists(st.integers(0, 5), min_size=7, max_size=7), min_size=1, max_size=5))
def test_cells_draw_every_cell_once(levels: list[list[int]]):
    drawn = np.zeros((len(levels), 7), int)
    for path in cells(levels, 2, 3, 10, 20):
        one = ElementTree.fromstring(path)
        for piece in one.attrib["d"].split("z")[:-1]:
            x, y = map(float, piece[1:].split("h")[0].split(" "))
            run = float(piece.split("h")[1].split("v")[0])
            row, start, stop = round((y - 20) / 3), round((x - 10) / 2), round((x - 10 + run) / 2)
            assert not drawn[row, start:stop].any()
            drawn[row, start:stop] = int(one.attrib["class"][1:])
    assert drawn.tolist() == levels


def test_candles_stand_where_prices_are():
    prices = np.array([[10.0, 12.0, 9.0, 11.0], [11.0, 11.0, 8.0, 8.0]])
    drawing = candle_panel("t", "d", Candles(prices, ["", "open"], [(1, 2)], "a", "b"), (8.0, 12.0))
    shade, rose, fell = elements(drawing, "rect")
    assert [one.attrib["class"] for one in (shade, rose, fell)] == ["shade", "rose", "fell open"]
    top = {one: float(one.attrib["y"]) for one in (rose, fell)}
    bottom = {one: top[one] + float(one.attrib["height"]) for one in (rose, fell)}
    assert top[rose] == pytest.approx(top[fell])  # both have 11 at the top
    unit = bottom[rose] - top[rose]
    assert bottom[fell] - top[fell] == pytest.approx(3 * unit, abs=0.03)
    assert float(fell.attrib["x"]) > float(rose.attrib["x"])


def test_rows_are_to_scale_and_marks_cross_all():
    pieces = [Piece(0.25, 0.75, "train", "half <of> it"), Piece(0.9, 0.9, "val", "a moment")]
    drawing = rows("t", "d", [("left", "right", pieces), ("none", "", [])], [0.5])
    half, moment = elements(drawing, "rect")
    assert (half.attrib["x"], half.attrib["width"]) == ("25%", "50%")
    assert moment.attrib["width"] == "0.5%"  # what is there is to be seen
    assert half[0].text == "half <of> it"
    assert len([one for one in elements(drawing, "line") if one.attrib["class"].startswith("mark")]) == 2


def test_charts_of_next_to_nothing_are_well_formed():
    for drawing in (
        line_panel("t", "d", {}, "", ""),
        line_panel("t", "d", {"train": ([1], [math.nan])}, "", ""),
        line_panel("t", "d", {"train": ([1], [2.0])}, "", ""),
        candle_panel("t", "d", Candles(np.full((1, 4), 5.0), [""], [], "", "")),
        histogram_panel("t", "d", np.array([0.0, 1.0]), np.zeros(1), np.zeros(1)),
        stacked_lines("t", "d", np.zeros((1, 2)), ["a", "a very long name"], "", ""),
        rows("t", "d", []),
    ):
        ElementTree.fromstring(drawing)
        assert "nan" not in drawing.replace("d</desc>", "")


def test_the_page_escapes_its_words_and_puts_warnings_before_all_else():
    section = Section("one", "Head <1>", "See & say.", "<p>body</p>")
    found = page("A <b>", "lead", {"x": "<y>"}, ["careful <now>"], [section], "foot")
    assert "<title>A &lt;b&gt;</title>" in found
    assert "<dd>&lt;y&gt;</dd>" in found
    assert found.index("careful &lt;now&gt;") < found.index('id="one"')
    assert "1 warning<" in found
    assert '<h2>Head &lt;1&gt;</h2><p class="see">See &amp; say.</p><p>body</p>' in found
    assert "warnings" not in page("A", "", {}, [], [], "").split("</style>")[1]


def test_tables_and_checks():
    found = table(("a", "b"), [("x", "<1>"), ("y", "2" * 31)], "said", {"0,0": 3})
    assert '<th scope="row">x</th><td class="t3">&lt;1&gt;</td>' in found
    assert f'<td class="long">{"2" * 31}</td>' in found
    assert '<li class="bad"><b>FAILS</b>' in checks([(False, "masks", "no")])
