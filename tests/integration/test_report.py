"""bin/cache report as its users run it, and what they see: pages opened in a headless Chromium."""

import json
import re
import shutil
import struct
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from cache.reader import Dataset, open_dataset
from cache.recipe import Recipe
from cache.show import show_lines
from configs.loader import load_config
from pipeline.build import build
from pipeline.report import dataset_report
from pipeline.report_command import report_command
from pipeline.simulate_imu import simulate_imu
from tests.chromium import FOUND, REASON, Browser, chromium
from tests.page_faults import FAULTS
from tests.unit.cache.making import change_manifest
from tests.unit.pipeline.making import make_recipe, quiet
from tests.unit.pipeline.making_sequences import make_sequence_recipe

ROOT = Path(__file__).parents[2]
BARS = ROOT.parent / "shared" / "data" / "bars"
PARTS = ["coverage", "windows", "split", "view", "features", "certificate", "sources", "keys"]
PARTS_OF_SEQUENCES = ["folds", "lengths", "recordings", "channels", "certificate", "sources", "keys"]
needs_chromium = pytest.mark.skipif(FOUND is None, reason=REASON)


class Outline(HTMLParser):
    """What a page is made of; raises AssertionError where an element is not closed in its turn."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sections: list[str] = []
        self.drawings: list[list[str]] = []
        self.addresses: list[str] = []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        assert tag != "script"
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag == "section":
            self.sections.append(given["id"] or "")
        if tag == "svg":
            self.drawings.append([])
        elif "svg" in self.open and len(self.drawings[-1]) < 2:
            self.drawings[-1].append(tag)
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reports")


@pytest.fixture(scope="module")
def of_bars(test_store: Path, folder: Path) -> Path:
    done = CliRunner().invoke(
        report_command, ["test", "--store", str(test_store), "--out", str(folder / "of" / "bars.html")]
    )
    assert done.exit_code == 0, done.output
    assert "Reporting on test" in done.output
    assert "read and draw" in done.output
    assert f"report: {folder / 'of' / 'bars.html'} (" in done.output
    return folder / "of" / "bars.html"


@pytest.fixture(scope="module")
def of_sequences(folder: Path) -> Path:
    simulate_imu(folder / "imu.csv", 120, 5, lambda written: None)
    recipe = make_sequence_recipe("source.files=imu.csv", "folds.count=3", "length={seq_len: 40, mode: pad}")
    return drawn(build(recipe, folder, folder / "store", 2, quiet()).dataset, folder)


@pytest.fixture(scope="module")
def of_symbols(simulated_dir: Path, folder: Path) -> Path:
    bars = pq.read_table(simulated_dir / "simfx_m1.parquet")
    for name, first in (("AAA", 0), ("BBB", 600)):
        (folder / name).mkdir()
        pq.write_table(bars.slice(first), folder / name / "m1.parquet")
    recipe = make_recipe("name=two", "source.files={m1: '{symbol}/m1.parquet'}", "universe.hold_out=[BBB]")
    return drawn(build(recipe, folder, folder / "store", 2, quiet()).dataset, folder)


@pytest.fixture(scope="module")
def of_shanghai(folder: Path) -> Path:
    if not BARS.is_dir():
        pytest.skip(f"{BARS} is not there")
    recipe = load_config("configs/sse.yaml", ()).parse("data", Recipe)
    return drawn(build(recipe, BARS, folder / "store", 2, quiet()).dataset, folder)


def drawn(dataset: Dataset, folder: Path) -> Path:
    page = folder / f"{dataset.name}.html"
    page.write_text(dataset_report(dataset, folder / "store"))
    return page


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.mark.parametrize("name", ["of_bars", "of_sequences", "of_symbols"])
def test_pages_are_whole_and_by_themselves(name: str, request: pytest.FixtureRequest):
    outline = Outline(request.getfixturevalue(name).read_text())
    assert outline.sections == (PARTS_OF_SEQUENCES if name == "of_sequences" else PARTS)
    assert len(outline.drawings) > 10
    assert all(first == ["title", "desc"] for first in outline.drawings)
    assert all(address.startswith(("#", "data:")) for address in outline.addresses)


def test_a_page_tells_what_the_manifest_holds(of_bars: Path, test_store: Path):
    page, dataset = of_bars.read_text(), open_dataset(test_store, "test")
    manifest = dataset.entry.manifest
    assert manifest["warnings"] == []
    for name, check in manifest["certificate"]["checks"].items():
        assert f"<strong>{name}</strong> {check['detail'].replace('>', '&gt;')}" in page
    for part in ("train", "val"):
        start, stop = dataset.splits[part]["windows"]["TEST"]
        assert f"{stop - start:,} windows" in page
    ((_, entries),) = dataset.symbols.items()
    for entry in (dataset.entry, entries.windows, *entries.streams.values()):
        assert entry.key in page
        assert f">{entry.key[:8]}</text>" in page
    for timeframe, rules in entries.windows.manifest["dropped"].items():
        assert f"{rules['history']:,} by history" in page, timeframe


def test_rows_of_the_map_of_symbols_stand_beside_their_names(of_symbols: Path):
    (drawing,) = re.findall(r'<figure class="symbols">(.*?)</figure>', of_symbols.read_text())
    names = {name: float(y) for y, name in re.findall(r' y="([\d.]+)"[^>]*>(AAA|BBB)</text>', drawing)}
    rows = sorted({float(y) for y in re.findall(r"M[\d.]+ ([\d.]+)h", drawing)})
    assert len(rows) == 2
    assert all(row < names[name] < row + 12 for row, name in zip(rows, ("AAA", "BBB"), strict=True))


def test_the_keys_of_one_symbol_are_drawn_and_the_others_counted(of_symbols: Path, folder: Path):
    dataset = open_dataset(folder / "store", "two")
    section = of_symbols.read_text().split('<section id="keys">')[1].split("</section>")[0]
    (shown,) = re.findall(r"those of other symbols than (AAA|BBB) are only counted", section)
    for symbol, entries in dataset.symbols.items():
        bars = {key for keys in entries.windows.manifest["components"]["inputs"].values() for key in keys}
        for key in {entries.windows.key, *(stream.key for stream in entries.streams.values()), *bars}:
            assert (f">{key[:8]}</text>" in section) is (symbol == shown)
    assert re.findall(r">(\+ \d+ more)</text>", section)


def test_what_policies_changed_is_told(simulated_dir: Path, tmp_path: Path):
    bars = pq.read_table(simulated_dir / "simfx_m1.parquet")
    pq.write_table(pa.concat_tables([bars.slice(0, 500), bars.slice(499)]), tmp_path / "simfx_m1.parquet")
    recipe = make_recipe("source.policy.duplicate=keep_last")
    dataset = build(recipe, tmp_path, tmp_path / "store", 2, quiet()).dataset
    assert "<li>repaired: duplicate rows 1</li>" in dataset_report(dataset, tmp_path / "store")
    assert "    repaired duplicate: rows 1, first row 499" in show_lines(dataset, tmp_path / "store", "-", "-")


def test_warnings_stand_on_top_and_sources_may_be_gone(test_store: Path, tmp_path: Path):
    store = tmp_path / "store"
    shutil.copytree(test_store, store)
    dataset = open_dataset(store, "test")
    change_manifest(dataset.entry.path, lambda manifest: manifest["warnings"].append("odd <bars>"))
    shutil.rmtree(store / "bars")
    page = dataset_report(open_dataset(store, "test"), store)
    assert page.index("odd &lt;bars&gt;") < page.index("<main>")
    assert "What the dataset was made from is no longer in the store" in page
    assert Outline(page).sections == PARTS


def test_what_cannot_be_reported_on(test_store: Path, tmp_path: Path):
    done = CliRunner().invoke(report_command, ["nothing", "--store", str(test_store)])
    assert done.exit_code == 1
    assert f"error: {test_store}: no dataset named nothing (there are: test)" in done.output
    done = CliRunner().invoke(report_command, ["test", "--store", str(tmp_path / "none")])
    assert done.exit_code == 1
    assert "no store here; --store says where it is, and bin/build-cache makes one" in done.output
    done = CliRunner().invoke(report_command, ["test", "--store", str(test_store), "--out", str(tmp_path)])
    assert done.exit_code == 2
    assert "is a directory" in done.output


@needs_chromium
@pytest.mark.parametrize(("width", "dark"), [(390, False), (390, True), (1200, False), (1200, True)])
@pytest.mark.parametrize("name", ["of_bars", "of_sequences", "of_symbols", "of_shanghai"])
def test_everything_is_to_be_seen(
    name: str, width: int, dark: bool, browser: Browser, request: pytest.FixtureRequest, tmp_path: Path
):
    page = request.getfixturevalue(name)
    browser.open(page, width, dark)
    assert browser.ask(FAULTS) == []
    assert browser.complaints == []
    assert browser.ask("innerWidth") == width
    browser.shot(tmp_path / "page.png", 600)
    assert struct.unpack(">II", (tmp_path / "page.png").read_bytes()[16:24]) == (width, 600)


@needs_chromium
def test_what_is_wrong_with_a_page_is_seen(browser: Browser, tmp_path: Path):
    page = tmp_path / "wrong.html"
    page.write_text(
        "<!doctype html><body style='color:#999'><p style='width:2000px'>wide</p><svg width=100 height=50>"
        "<text x=0 y=20>one</text><text x=5 y=20>two</text></svg><img src='http://127.0.0.1:9/x.png'><script>nothing.there()</script>"
    )
    browser.open(page, 390, dark=False)
    said = json.dumps(browser.ask(FAULTS))
    for fault in ("P reaches 2", "one lies on two", "pale: P"):
        assert fault in said
    assert any("nothing is not defined" in one for one in browser.complaints)
    assert "asked for http://127.0.0.1:9/x.png" in browser.complaints
    browser.complaints.clear()


def test_the_picture_in_the_docs():
    content = (ROOT / "docs/report.png").read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">I", content[16:20]) == (1200,)
    assert len(content) < 400_000
