"""What was unknown at t cannot change a window of t: the future is randomised or cut off, and nothing moves."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cache.reader import Dataset
from pipeline import align, bars_execute, dataset
from pipeline.build import build
from pipeline.simulate import simulate_bars
from tests.unit.pipeline.making import HOUR, MINUTE, make_recipe, quiet, random_ohlc, write_parquet

PRICES = ["open", "high", "low", "close"]
SETTINGS = (
    "source.files={m1: m1.parquet, h1: h1.parquet}",
    "source.session={tz: America/New_York, at: '17:00'}",
    "timeframes=[m1, m5, h1, d]",
    "window.seq_len={m1: 16, m5: 8, h1: 6, d: 1}",
    "split.train_end='2024-01-12T12:00'",
    "split.embargo=1h",
)
PINNED = pd.Timestamp("2024-01-12T12:00", tz="UTC").value


@pytest.fixture(scope="module")
def minutes(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    path = tmp_path_factory.mktemp("raw") / "bars.parquet"
    simulate_bars(path, 12_000, 11, lambda written: None)
    return pd.read_parquet(path)


def hours(minutes: pd.DataFrame) -> pd.DataFrame:
    made = (
        minutes.set_index("timestamp")
        .resample("1h")
        .agg(dict(zip(PRICES, ("first", "max", "min", "last"), strict=True)))
    )
    return made.dropna().reset_index().iloc[:-1]


def write(folder: Path, frames: dict[str, pd.DataFrame], label: str) -> None:
    for name, frame in frames.items():
        shift = {"m1": MINUTE, "h1": HOUR}[name] if label == "right" else 0
        ns = frame["timestamp"].astype("datetime64[ns, UTC]").astype("int64").to_numpy()
        write_parquet(folder / f"{name}.parquet", ns + shift, frame[PRICES].to_numpy())


def build_from(folder: Path, frames: dict[str, pd.DataFrame], features: str, label: str) -> Dataset:
    write(folder, frames, label)
    recipe = make_recipe(*SETTINGS, f"features.set={features}", f"source.label={label}")
    return build(recipe, folder, folder / "store", 2, quiet()).dataset


def known_at(dataset: Dataset, t: int, peek: int = 0) -> dict[str, str]:
    """MD5s of everything that windows with decision times up to t hold; `peek` looks so many bars further."""
    entries = dataset.symbols["TEST"]
    time, ends = entries.windows.array("time"), entries.windows.array("ends")
    count = int(np.searchsorted(time, t, side="right"))
    assert count > 1000
    seen = {"time": time[:count], "ends": ends[:count]}
    for column, (name, stream) in enumerate(entries.streams.items()):
        for array in stream.manifest["arrays"]:
            seen[f"{name} {array}"] = stream.array(array)[: ends[:count, column].max() + peek]
    return {name: hashlib.md5(np.ascontiguousarray(rows).tobytes()).hexdigest() for name, rows in seen.items()}


def after(frame: pd.DataFrame, t: int, length: int) -> np.ndarray:
    return frame["timestamp"].astype("datetime64[ns, UTC]").astype("int64").to_numpy() + length > t


def randomised(frames: dict[str, pd.DataFrame], t: int, rng: np.random.Generator) -> dict[str, pd.DataFrame]:
    """Other prices in every bar that closes after t, and a third of those bars gone."""
    changed = {}
    for name, frame in frames.items():
        late = after(frame, t, {"m1": MINUTE, "h1": HOUR}[name])
        other = frame.copy()
        other.loc[late, PRICES] = random_ohlc(rng, int(late.sum())) / 100
        changed[name] = other[~late | (rng.random(len(other)) < 2 / 3)]
    return changed


def truncated(frames: dict[str, pd.DataFrame], t: int, rng: np.random.Generator) -> dict[str, pd.DataFrame]:
    return {name: frame[~after(frame, t, {"m1": MINUTE, "h1": HOUR}[name])] for name, frame in frames.items()}


def instants(minutes: pd.DataFrame, count: int, seed: int) -> list[int]:
    """Decision times well after the pinned end of training, and some instants a few seconds beside them."""
    closes = minutes["timestamp"].astype("datetime64[ns, UTC]").astype("int64").to_numpy() + MINUTE
    rng = np.random.default_rng(seed)
    drawn = rng.choice(closes[(closes > PINNED + 4 * 24 * HOUR) & (closes < closes[-200])], count, replace=False)
    return [int(t) + int(rng.choice([0, 0, -1, 17 * 10**9])) for t in drawn]


@pytest.mark.parametrize("future", [randomised, truncated])
@pytest.mark.parametrize(("features", "label"), [("returns", "left"), ("price", "right")])
def test_windows_hold_nothing_that_was_unknown_at_their_time(
    tmp_path: Path, minutes: pd.DataFrame, features: str, label: str, future: Callable
):
    frames = {"m1": minutes, "h1": hours(minutes)}
    dataset = build_from(tmp_path / "whole", frames, features, label)
    windows, streams = dataset.symbols["TEST"].windows, dataset.symbols["TEST"].streams
    for stream, ends in zip(streams.values(), windows.array("ends").T, strict=True):
        assert (stream.array("close_time")[ends - 1] <= windows.array("time")).all()
    for t in instants(minutes, 4, seed=len(features)):
        rng = np.random.default_rng(t)
        other = build_from(tmp_path / f"at{t}", future(frames, t, rng), features, label)
        assert known_at(other, t) == known_at(dataset, t)
        assert other.entry.key != dataset.entry.key


def test_an_hour_boundary_and_a_session_boundary_are_no_exceptions(tmp_path: Path, minutes: pd.DataFrame):
    frames = {"m1": minutes, "h1": hours(minutes)}
    dataset = build_from(tmp_path / "whole", frames, "returns", "left")
    time = dataset.symbols["TEST"].windows.array("time")
    for instant in ("2024-01-17T14:00", "2024-01-16T22:00"):
        t = pd.Timestamp(instant, tz="UTC").value
        assert t in time
        for shift in (-1, 0):
            other = randomised(frames, t + shift, np.random.default_rng(1))
            rebuilt = build_from(tmp_path / f"at{t + shift}", other, "returns", "left")
            assert known_at(rebuilt, t + shift) == known_at(dataset, t + shift)


def leaked(tmp_path: Path, minutes: pd.DataFrame, peek: int = 0) -> set[str]:
    """Which parts of the windows up to some t move with their future."""
    frames = {"m1": minutes, "h1": hours(minutes)}
    whole = build_from(tmp_path / "whole", frames, "returns", "left")
    t = pd.Timestamp("2024-01-17T14:37", tz="UTC").value
    other = build_from(tmp_path / "other", randomised(frames, t, np.random.default_rng(0)), "returns", "left")
    before, now = known_at(whole, t, peek), known_at(other, t, peek)
    return {name for name in before if before[name] != now[name]}


def publish_blindly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the certificate, which would refuse what is planted below (tests/integration/test_certificate.py)."""
    certificate = {"passed": True, "samples": 0, "seed": 0, "checks": {}}
    monkeypatch.setattr(dataset, "certify", lambda *about: certificate)


def test_nothing_leaks_there_either(tmp_path: Path, minutes: pd.DataFrame):
    assert leaked(tmp_path, minutes) == set()


def test_a_window_one_bar_too_long_would_be_caught(tmp_path: Path, minutes: pd.DataFrame):
    assert leaked(tmp_path, minutes, peek=1) >= {f"{name} values" for name in ("m1", "m5", "h1", "d")}


def test_statistics_of_the_whole_series_would_be_caught(
    tmp_path: Path, minutes: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
):
    publish_blindly(monkeypatch)
    monkeypatch.setattr(bars_execute, "train_cutoff", lambda store, base_keys, recipe: 2**62)
    assert leaked(tmp_path, minutes) == {f"{name} values" for name in ("m1", "m5", "h1", "d")}


def test_slicing_by_label_would_be_caught(tmp_path: Path, minutes: pd.DataFrame, monkeypatch: pytest.MonkeyPatch):
    """The usual shortcut: of every timeframe the bars labelled before t, the unfinished one included."""
    lengths = [5 * MINUTE, HOUR, 24 * HOUR]

    def count_labels(base_close, flat_close, offsets, skipped, pointers, ends):
        ends[:, 0] = pointers[0] + 1 + np.arange(len(base_close))
        pointers[0] += len(base_close)
        for column, length in enumerate(lengths):
            labels = flat_close[offsets[column] : offsets[column + 1]] - length
            ends[:, column + 1] = np.searchsorted(labels, base_close, side="left")

    publish_blindly(monkeypatch)
    monkeypatch.setattr(align.kernels, "count_completed", count_labels)
    assert leaked(tmp_path, minutes) >= {
        f"{name} {array}" for name in ("m5", "h1", "d") for array in ("values", "close")
    }
