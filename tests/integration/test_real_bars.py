"""The Shanghai Composite: minute bars labelled at their ends, a lunch break, four years."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tensorstore
import xarray
import zarr

from cache.entries import Entry, open_entry
from cache.reader import Dataset
from cache.recipe import Recipe
from configs.loader import load_config
from pipeline.build import build
from tests.unit.pipeline.making import quiet

BARS = Path(__file__).parents[2].parent / "shared" / "data" / "bars"
pytestmark = pytest.mark.skipif(not BARS.is_dir(), reason=f"{BARS} is not there")

RULES = {"m5": "5min", "m15": "15min", "m30": "30min", "h1": "1h", "h4": "4h"}
PRICES = ["open", "high", "low", "close"]


def recipe(*overrides: str) -> Recipe:
    return load_config("configs/sse.yaml", overrides).parse("data", Recipe)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sse") / "store"


@pytest.fixture(scope="module")
def dataset(store: Path) -> Dataset:
    return build(recipe(), BARS, store, 2, quiet()).dataset


@pytest.fixture(scope="module")
def by_open() -> pd.DataFrame:
    """The raw minutes, by when they open."""
    frame = pd.read_parquet(BARS / "sse_composite_m1.parquet").set_index("timestamp")
    return frame.set_axis(frame.index.as_unit("ns") - pd.Timedelta("1min"))


@pytest.fixture(scope="module")
def bars(by_open: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """What pandas makes of them, with the column `closes`; a last bar that is not over is left out."""
    made = {"m1": by_open[PRICES].assign(closes=by_open.index + pd.Timedelta("1min"))}
    for name, rule in RULES.items():
        frame = by_open.resample(rule).agg(dict(zip(PRICES, ("first", "max", "min", "last"), strict=True))).dropna()
        frame["closes"] = frame.index + pd.Timedelta(rule)
        made[name] = frame[frame["closes"] <= made["m1"]["closes"].iloc[-1]]
    return made


def test_derived_bars_equal_pandas(dataset: Dataset, store: Path, bars: dict[str, pd.DataFrame]):
    inputs = dataset.symbols["SSE"].windows.manifest["components"]["inputs"]
    assert list(inputs) == list(bars)
    for name, expected in bars.items():
        entry = open_entry(store, "bars", inputs[name][0])
        np.testing.assert_array_equal(entry.array("open_time"), expected.index.asi8)
        np.testing.assert_array_equal(entry.array("close_time"), expected["closes"].astype("int64"))
        np.testing.assert_array_equal(entry.array("ohlc"), expected[PRICES])


def test_every_window_ends_where_merge_asof_says(dataset: Dataset, bars: dict[str, pd.DataFrame]):
    windows = dataset.symbols["SSE"].windows
    time, ends = windows.array("time"), windows.array("ends")
    decisions = pd.DataFrame({"t": bars["m1"]["closes"].reset_index(drop=True)})
    completed = {}
    for name, frame in bars.items():
        rows = pd.DataFrame({"t": frame["closes"].reset_index(drop=True), "row": np.arange(len(frame))})
        completed[name] = pd.merge_asof(decisions, rows, on="t")["row"].fillna(-1).astype(int) + 1
    expected = pd.DataFrame(completed)
    full = (expected >= 64).all(axis=1)
    assert full.sum() == len(time) > 200_000
    np.testing.assert_array_equal(time, decisions["t"][full].astype("int64"))
    np.testing.assert_array_equal(ends, expected[full])


def test_the_first_decision_is_made_at_the_first_label(tmp_path: Path, by_open: pd.DataFrame):
    alone = recipe("data.timeframes=[m1]", "data.window.seq_len=1")
    windows = build(alone, BARS, tmp_path / "store", 2, quiet()).dataset.symbols["SSE"].windows
    label = pd.read_parquet(BARS / "sse_composite_m1.parquet")["timestamp"].astype("datetime64[ns, UTC]")
    np.testing.assert_array_equal(windows.array("time"), label.astype("int64"))
    assert str(label.iloc[0]) == "2015-01-05 01:31:00+00:00"


def test_streams_stand_on_the_bars(dataset: Dataset, bars: dict[str, pd.DataFrame]):
    for name, stream in dataset.symbols["SSE"].streams.items():
        np.testing.assert_array_equal(stream.array("close_time"), bars[name]["closes"].astype("int64"))
        np.testing.assert_array_equal(stream.array("close"), bars[name]["close"])
        moments, close = stream.manifest["statistics"], bars[name]["close"].to_numpy()
        z = np.log(close[1:] / close[:-1])
        scaled = (z - moments["mean"]["log_close"]) / moments["std"]["log_close"]
        column = stream.manifest["features"].index("log_close")
        np.testing.assert_allclose(stream.array("values")[1:, column], scaled, rtol=1e-4, atol=1e-4)


def entries(dataset: Dataset, store: Path) -> list[Entry]:
    symbol = dataset.symbols["SSE"]
    keys = symbol.windows.manifest["components"]["inputs"]
    return [symbol.windows, *symbol.streams.values(), *(open_entry(store, "bars", k[0]) for k in keys.values())]


def test_other_readers_see_the_same_arrays(dataset: Dataset, store: Path):
    for entry in entries(dataset, store):
        group = zarr.open_group(entry.path, mode="r")
        assert set(group.array_keys()) == set(entry.manifest["arrays"])
        for name in entry.manifest["arrays"]:
            expected = entry.array(name)
            np.testing.assert_array_equal(group[name][:], expected)
            np.testing.assert_array_equal(group[name][-5:], expected[-5:])
            opened = tensorstore.open(
                {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(entry.path / name)}}, read=True
            ).result()
            np.testing.assert_array_equal(opened.read().result(), expected)


def test_xarray_decodes_the_times(dataset: Dataset, store: Path):
    for entry in entries(dataset, store):
        with xarray.open_zarr(entry.path, consolidated=False) as opened:
            for name, described in entry.manifest["arrays"].items():
                values = opened[name].to_numpy()
                if name in ("time", "open_time", "close_time"):
                    assert values.dtype == np.dtype("datetime64[ns]")
                    values = values.astype("int64")
                np.testing.assert_array_equal(values, entry.array(name))
                assert opened[name].shape == tuple(described["shape"])
