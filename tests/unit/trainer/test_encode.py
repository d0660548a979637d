"""Live inference beside the offline path, on stores built from the same simulated bars."""

import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from cache.layout import CHUNK_ROWS
from cache.reader import Dataset, open_dataset
from configs.errors import UserError
from configs.loader import load_config
from pipeline.series import BarSeries
from trainer.checkpoint import save_weights
from trainer.clock import CLOCK_CHANNELS, clock_table
from trainer.config import ModelConfig
from trainer.data import WindowSource
from trainer.described import describe_encoder, identity
from trainer.encode import Encoder, Ensemble, export_encoder, read_description
from trainer.encode_dataset import check_dataset, encode_at
from trainer.encode_latency import latencies, simulated_frames
from trainer.encode_windows import part_ranges, window_ranges
from trainer.model import MaskedAutoencoder
from trainer.runs import record_run

ROOT = Path(__file__).parents[3]
PRICES = ["open", "high", "low", "close"]
OTHER = (
    "data.name=other",
    "data.split.val_fraction=0.5",
    "data.source.label=right",
    "data.source.session={tz: America/New_York, at: '17:00'}",
    "data.timeframes=[m1, m5, h1, d]",
    "data.window.seq_len={m1: 8, m5: 6, h1: 8, d: 5}",
    "data.window.max_staleness={d: 4d}",
    "data.features.set=price",
    "model.instance_norm=true",
)


@dataclass(frozen=True)
class Place:
    """A run, the dataset that it is of, and the bars of that."""

    run: Path
    dataset: Dataset
    encoder: Encoder
    source: WindowSource
    bars: dict[str, pd.DataFrame]  # labelled as the run's files are
    closes: dict[str, np.ndarray]

    def time(self, window: int) -> int:
        return int(self.windows("time")[window])

    def windows(self, name: str) -> np.ndarray:
        ((_, entries),) = self.dataset.symbols.items()
        return entries.windows.array(name)

    def frames(self, t: int, extra: int = 0) -> dict[str, pd.DataFrame]:
        """What a feed would hold at time t: just as many bars as are needed, and `extra` older ones."""
        frames = {}
        for name, bars in self.bars.items():
            stop = int(np.searchsorted(self.closes[name], t, side="right"))
            frames[name] = bars.iloc[max(stop - self.encoder.inputs.needed(name) - extra, 0) : stop]
        return frames

    def chosen(self, count: int) -> list[int]:
        """Windows that have a bar before them: the first, the last, those at which bars close, and others."""
        needed = np.array([self.encoder.inputs.needed(name) for name in self.bars])
        ends = self.windows("ends")
        good = np.flatnonzero((ends >= needed).all(axis=1))
        closing = good[1:][(np.diff(ends[good][:, -1]) > 0)]
        any_ = np.random.default_rng(0).choice(good, count, replace=False)
        return sorted(
            {int(i) for i in (good[0], good[-1], *closing[: count // 4], *(closing[: count // 4] - 1), *any_)}
        )


def place_of(folder: Path, store: Path, name: str, overrides: tuple[str, ...]) -> Place:
    dataset = open_dataset(store, name)
    config = load_config(ROOT / "configs/test.yaml", overrides)
    run = folder / "run"
    described = describe_encoder("reconstruct", config.values["model"], dataset)
    record_run(run, config, store, dataset, described)
    torch.manual_seed(1)
    lengths = (tuple(described[what].values()) for what in ("seq_lens", "bar_lengths"))
    model = MaskedAutoencoder(6, CLOCK_CHANNELS, *lengths, config.parse("model", ModelConfig))
    save_weights(run / "best.safetensors", model, identity(described))
    ((_, entries),) = dataset.symbols.items()
    series = {
        key: BarSeries(store, one.manifest["components"]["inputs"]["bars"]) for key, one in entries.streams.items()
    }
    label = "open_time" if dataset.recipe["source"]["label"] == "left" else "close_time"
    bars = {
        key: pd.DataFrame(
            one.rows("ohlc", 0, len(one)),
            columns=PRICES,
            index=pd.DatetimeIndex(one.rows(label, 0, len(one)), tz="UTC"),
        )
        for key, one in series.items()
    }
    closes = {key: one.rows("close_time", 0, len(one)) for key, one in series.items()}
    source = WindowSource(dataset, torch.device("cpu"))
    return Place(run, dataset, Encoder.load(run), source, bars, closes)


@pytest.fixture(scope="module")
def plain(test_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Returns of left-labelled bars: m1, m5 and m15, 32 a window."""
    return place_of(tmp_path_factory.mktemp("plain"), test_store, "test", ())


@pytest.fixture(scope="module")
def other(simulated_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Prices of right-labelled bars up to session days, of different lengths; instance_norm."""
    folder = tmp_path_factory.mktemp("other")
    command: list[Any] = [ROOT / "bin/build-cache", "--config", ROOT / "configs/test.yaml"]
    command += [one for one in OTHER if one.startswith("data.")]
    subprocess.run([*command, "--data-dir", simulated_dir, "--store", folder / "store"], check=True)
    return place_of(folder, folder / "store", "other", OTHER)


@pytest.fixture(params=["plain", "other"])
def place(request: pytest.FixtureRequest) -> Place:
    found: Place = request.getfixturevalue(request.param)
    return found


def message(call: Any, *arguments: Any, **named: Any) -> str:
    with pytest.raises(UserError) as failure:
        call(*arguments, **named)
    return str(failure.value)


def offline(place: Place, window: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    batch = place.source.gather(torch.tensor([window]))
    x = [values.clone() for values in batch.x]
    clock = [clock_table()[(times // 60_000_000_000) % 10080] for times in batch.close_time]
    unmasked = [
        torch.cat([values, torch.zeros(1, values.shape[1], 1), at], dim=-1) for values, at in zip(x, clock, strict=True)
    ]
    with torch.no_grad():
        return x, place.encoder.model.encode(unmasked)


def test_live_windows_and_embeddings_are_the_offline_ones_bit_for_bit(place: Place) -> None:
    windows = place.chosen(150)
    assert len(windows) > 150
    for window in windows:
        frames = place.frames(place.time(window), extra=window % 3)
        x, embedding = offline(place, window)
        for live, stored in zip(place.encoder.windows(frames)[0], x, strict=True):
            assert live.dtype == torch.float32
            assert live.numpy().tobytes() == stored.numpy().tobytes()
        encoded = place.encoder.encode(frames)
        assert encoded.dtype == torch.float32
        assert encoded.numpy().tobytes() == embedding.numpy().tobytes()


def test_timeframes_that_are_not_given_are_derived_bit_for_bit(place: Place) -> None:
    base, *others = place.bars
    for number, window in enumerate(place.chosen(12)[-14:]):
        t = place.time(window)
        history = 29_000 if base in others or number % 2 else 27_013  # also beginning inside a bar
        frames = {**place.frames(t), base: place.frames(t, extra=history)[base]}
        for name in others[number % 2 :]:
            del frames[name]
        for live, stored in zip(place.encoder.windows(frames)[0], offline(place, window)[0], strict=True):
            assert live.numpy().tobytes() == stored.numpy().tobytes()


def test_embeddings_at_times(place: Place) -> None:
    windows = place.chosen(5)[::-1]
    times = [place.time(window) for window in windows]
    found = encode_at(place.encoder, place.dataset, times, batch_size=1)
    assert torch.equal(found, torch.cat([offline(place, window)[1] for window in windows]))
    together = encode_at(place.encoder, place.dataset, pd.DatetimeIndex(times, tz="UTC").tz_convert("Asia/Tokyo"))
    torch.testing.assert_close(together, found)
    assert encode_at(place.encoder, place.dataset, []).shape == (0, *found.shape[1:])


def test_times_without_a_window(plain: Place) -> None:
    t, following = plain.time(1000), plain.time(1001)
    said = message(encode_at, plain.encoder, plain.dataset, [t, t + 1])
    moments = [pd.Timestamp(one).isoformat() for one in (t, following)]
    assert said.startswith(f"test: TEST has no window at {moments[0]}.000000001 UTC; the nearest are at ")
    assert said.endswith(f"{moments[0]} UTC and {moments[1]} UTC")
    assert "the nearest is at" in message(encode_at, plain.encoder, plain.dataset, [0])
    assert "times have no zone" in message(encode_at, plain.encoder, plain.dataset, pd.DatetimeIndex([t]))
    assert "times are float64; give a pandas.DatetimeIndex" in message(encode_at, plain.encoder, plain.dataset, [1.0])


def test_a_dataset_of_another_kind(plain: Place, other: Place) -> None:
    check_dataset(plain.encoder, plain.dataset)
    said = message(check_dataset, plain.encoder, other.dataset)
    assert "other: not what" in said
    assert "  timeframes: ['m1', 'm5', 'm15'] then, ['m1', 'm5', 'h1', 'd'] now\n" in said
    assert "  statistics, by which features are scaled: of other training data\nName the dataset that it was" in said
    assert "mean" not in said


def changed(frames: Mapping[str, pd.DataFrame], name: str, frame: Any) -> dict[str, Any]:
    return {**frames, name: frame}


def with_value(frame: pd.DataFrame, row: int, column: str, value: float) -> pd.DataFrame:
    frame = frame.copy()
    frame.iloc[row, PRICES.index(column)] = value
    return frame


def test_frames_that_are_refused(plain: Place) -> None:
    t = plain.time(plain.chosen(9)[4])
    frames, encode = plain.frames(t), plain.encoder.encode
    m5 = frames["m5"]
    faults: list[tuple[Any, str]] = [
        (m5.to_numpy(), "is a ndarray, not a pandas.DataFrame of open, high, low and close"),
        (m5.rename(columns={"low": "lo"}), "lacks the column low; it has open, high, lo, close. Rename them"),
        (m5.reset_index(), "its index is a RangeIndex, not a pandas.DatetimeIndex; use set_index() with the times at "
                           "which bars begin"),
        (m5.tz_localize(None), "its times have no zone, so that they could be any; say which it is, for example with "
                               "tz_localize('UTC')"),
        (m5.astype({"high": str}).assign(high="x"), "column high holds str, not numbers; convert it to float64"),
        (m5[1:], "has 32 bars, but 33 are needed (32 a window and 1 before it); give more of the past"),
        (with_value(m5, 3, "close", np.nan), "column close: nan is not a finite number; correct or remove the row"),
        (with_value(m5, 3, "low", -1.0), "column low: -1.0 is not positive; correct or remove the row"),
        (with_value(m5, 3, "high", 1e-3), "column high: 0.001 is below the bar's open or close; correct or remove"),
        (m5[::-1], "column time: is earlier than the row before; sort the frame by time, with sort_index()"),
        (m5.iloc[[0, 0, *range(1, 33)]].iloc[:33], "column time: repeats the time of the row before; remove one of"),
        (m5.set_axis(m5.index.where(m5.index != m5.index[4])), "row 4, column time: the value is missing; correct"),
        (frames["m1"], "begins before the bar in the row before has ended; are these m5 bars?"),
    ]  # fmt: skip
    for frame, words in faults:
        said = message(encode, changed(frames, "m5", frame))
        assert said.startswith("bars['m5']")
        assert words in said
    place = f"bars['m5'], row 3 ({m5.index[3]:%Y-%m-%dT%H:%M:%S} UTC), column close"
    assert place in message(encode, changed(frames, "m5", with_value(m5, 3, "close", np.nan)))
    older = pd.concat([with_value(plain.frames(t, extra=5)["m5"], 0, "close", np.nan)])
    assert torch.equal(encode(changed(frames, "m5", older)), encode(frames))  # only what is needed is read
    assert "bars['m1'] is a NoneType, not a pandas.DataFrame" in message(encode, {"m1": None})
    assert "bars['m1'] has 0 bars, but 33 are needed" in message(encode, {"m1": frames["m1"][:0]})
    assert "bars lacks m1, the base timeframe" in message(encode, {"m5": m5})
    assert "bars['h4']: not a timeframe of the run; it has m1, m5, m15" in message(encode, {**frames, "h4": m5})
    assert "knows no symbol X; it has statistics of TEST" in message(encode, frames, symbol="X")


def test_columns_that_are_no_prices(plain: Place) -> None:
    frames = plain.frames(plain.time(plain.chosen(9)[4]))
    m5 = frames["m5"]
    expected = plain.encoder.encode(frames)
    for dtype in ("bool", "complex128", "str", "object", "category", "boolean"):
        column = m5["open"].round().astype(dtype)
        said = message(plain.encoder.encode, changed(frames, "m5", m5.assign(open=column)))
        assert said.startswith("bars['m5']: column open holds ")
        assert said.endswith(", not numbers; convert it to float64")
    whole = {name: (frame * 1e5).round().astype("int64") for name, frame in frames.items()}
    for dtype in ("float64", "Float64", "Int64"):
        found = plain.encoder.encode({name: frame.astype(dtype) for name, frame in whole.items()})
        assert torch.equal(found, plain.encoder.encode(whole))
    lacking = m5.astype("Float64")
    lacking.iloc[3, 0] = pd.NA
    assert "column open: nan is not a finite number" in message(plain.encoder.encode, changed(frames, "m5", lacking))
    twice = pd.concat([m5, m5["close"]], axis=1)
    said = message(plain.encoder.encode, changed(frames, "m5", twice))
    assert said == "bars['m5'] has the column close more than once; keep one"
    assert torch.equal(plain.encoder.encode(changed(frames, "m5", m5.assign(volume="x"))), expected)


def test_what_is_no_bars_at_all(plain: Place, tmp_path: Path) -> None:
    frame = plain.frames(plain.time(5000))["m1"]
    for bars, what in ((None, "NoneType"), ([frame], "list"), (frame, "DataFrame")):
        said = message(plain.encoder.encode, bars)
        assert said == f"bars is a {what}; give a frame a timeframe, such as {{'m1': frame}}"
    one = pd.Timestamp(plain.time(5000), tz="UTC")
    assert message(encode_at, plain.encoder, plain.dataset, one).startswith(f"times is {one!r}, not several in a row; ")
    assert (
        message(encode_at, plain.encoder, plain.dataset, [1], batch_size=0) == "batch_size is 0; it must be 1 at least"
    )
    assert message(export_encoder, plain.encoder, f"{tmp_path}/none/encoder.pt2") == (
        f"{tmp_path}/none/encoder.pt2: there is no folder {tmp_path}/none; make it first"
    )


def test_paths_may_be_text(plain: Place) -> None:
    encoder = Encoder.load(str(plain.run))
    frames = plain.frames(plain.time(5000))
    assert torch.equal(encoder.encode(frames), plain.encoder.encode(frames))
    assert "missing (no run there)" in message(Encoder.load, "none")
    assert "no run of all folds there" in message(Ensemble.load, "none")


def test_devices_that_are_not_there(plain: Place) -> None:
    if not torch.cuda.is_available():
        assert message(Encoder.load, plain.run, device="cuda").startswith("device 'cuda' cannot be used: ")
    assert message(Encoder.load, plain.run, device="tpu").endswith("; leave it out, or use 'cpu'")


def test_weights_that_are_not_of_the_run_or_not_finite(plain: Place, other: Place, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(plain.run, run)
    weights = run / "best.safetensors"
    shutil.copy(other.run / "best.safetensors", weights)
    said = message(Encoder.load, run)
    assert said.startswith(f"{weights}: holds the weights of another run:\n")
    assert f"  dataset: {other.dataset.entry.key} there, {plain.dataset.entry.key} here\n" in said
    model = Encoder.load(plain.run).model
    with torch.no_grad():
        next(model.parameters()).view(-1)[3] = torch.nan
    save_weights(weights, model, identity(plain.encoder.described))
    said = message(Encoder.load, run)
    assert said.startswith(f"{weights}: backbone.")
    assert "holds numbers that are not finite, so that all results would be NaN; copy the file again" in said


def test_embeddings_that_are_not_finite(plain: Place) -> None:
    encoder = Encoder.load(plain.run)
    with torch.no_grad():
        next(encoder.model.parameters()).fill_(3e38)
    said = message(encode_at, encoder, plain.dataset, [plain.time(700)])
    moment = pd.Timestamp(plain.time(700)).isoformat()
    assert said.startswith(f"{plain.run}/best.safetensors: makes numbers that are not finite of the window of test at ")
    assert f"at {moment} UTC; train again, with a lower training.lr" in said


def test_the_bar_in_progress_is_refused(place: Place) -> None:
    name = list(place.bars)[1]
    window = next(i for i in place.chosen(60) if place.time(i) not in place.closes[name])
    t = place.time(window)
    frames = place.frames(t)
    stop = int(np.searchsorted(place.closes[name], t, side="right"))
    begins = place.closes[name][stop] - pd.Timedelta(name.replace("m", "") + "min").value
    said = message(place.encoder.encode, changed(frames, name, place.bars[name].iloc[stop - 40 : stop + 1]))
    moments = [pd.Timestamp(one).isoformat() + " UTC" for one in (begins, place.closes[name][stop], t)]
    assert said == (
        f"bars['{name}']: the bar that begins at {moments[0]} is unfinished: it closes at {moments[1]}, after the "
        f"decision time {moments[2]}, at which the last m1 bar closes; leave it out"
    )


def test_a_forgotten_bar_is_refused(place: Place) -> None:
    for window in place.chosen(20)[3:]:
        t = place.time(window)
        frames = place.frames(t, extra=1)
        frames["m1"] = place.frames(t, extra=3000)["m1"]
        for name in list(place.bars)[1:]:
            said = message(place.encoder.encode, changed(frames, name, frames[name][:-1]))
            assert said.startswith(f"bars['{name}'] is stale: its last bar closed at ")
            assert f"leave {name} out to have it derived" in said


def test_a_bar_lacking_in_the_middle_is_refused(place: Place) -> None:
    base, *others = place.bars
    for window in place.chosen(20)[3:]:
        t = place.time(window)
        frames = place.frames(t, extra=2)
        frames[base] = place.frames(t, extra=9000)[base]
        expected = place.encoder.encode(frames)
        for name in others:
            lacking = frames[name].drop(frames[name].index[-4])
            said = message(place.encoder.encode, changed(frames, name, lacking))
            closes = [pd.Timestamp(one).isoformat() for one in place.closes[name][place.closes[name] <= t][[-5, -3]]]
            assert said.startswith(
                f"bars['{name}'] lacks a bar: none closes between {closes[0]} UTC and {closes[1]} UTC"
            )
            assert "m1 bars from " in said
            assert f"show that one did; add what is missing, or leave {name} out to have it derived" in said
        # the older part proves by its times alone, and only that bars exist
        frames[base] = frames[base].assign(
            close=frames[base]["close"].where(frames[base].index > frames[base].index[-40])
        )
        assert torch.equal(place.encoder.encode(frames), expected)


def test_shorter_timeframes_show_what_the_base_is_too_short_for(plain: Place) -> None:
    window = plain.chosen(9)[4]
    frames = plain.frames(plain.time(window), extra=1)
    m15 = frames["m15"]
    assert torch.equal(plain.encoder.encode(frames), offline(plain, window)[1])
    said = message(plain.encoder.encode, changed(frames, "m15", m15.drop(m15.index[-8])))
    assert said.startswith("bars['m15'] lacks a bar: none closes between ")
    assert " m5 bars from " in said


def test_base_bars_that_a_longer_one_was_made_of_are_missed(plain: Place) -> None:
    t = plain.time(plain.chosen(9)[4])
    frames = plain.frames(t, extra=60)
    m1, m5 = frames["m1"], frames["m5"]
    begins = m5.index[-4]
    there = (m1.index < begins) | (m1.index >= begins + pd.Timedelta(5, "min"))
    said = message(plain.encoder.encode, changed(frames, "m1", m1[there]))
    ends = (begins + pd.Timedelta(5, "min")).tz_localize(None).isoformat()
    assert said == (
        f"bars['m1'] lacks bars: it has none from {begins.tz_localize(None).isoformat()} UTC to {ends} UTC, and the m5 "
        "bar of that time was made of some; add what is missing"
    )
    some = m1[there | (m1.index == begins)]
    plain.encoder.encode(changed(frames, "m1", some))  # fewer than five is what a quiet time looks like


def test_times_without_trading_are_no_gaps(plain: Place) -> None:
    """A weekend, as training had it, in the middle of all frames."""
    closes = plain.closes["m1"]
    reopened = int(closes[int(np.diff(closes).argmax()) + 1])
    for minutes in (16, 31, 61):
        t = int(closes[np.searchsorted(closes, reopened) + minutes])
        frames = plain.frames(t)
        assert frames["m15"].index.to_series().diff().max() > pd.Timedelta(1, "D")
        window = int(np.searchsorted(plain.windows("time"), t))
        assert torch.equal(plain.encoder.encode(frames), offline(plain, window)[1])


def test_older_than_any_bar_in_training_is_stale(other: Place) -> None:
    trained = other.closes["d"][other.closes["d"] <= other.dataset.splits["train"]["until"]]
    assert other.encoder.inputs.longest_gap["d"] == np.diff(trained).max() == pd.Timedelta(2, "D").value
    t = next(t for t in map(other.time, other.chosen(60)) if 8 <= pd.Timestamp(t, tz="UTC").hour < 21)
    frames = other.frames(t)
    for days, refused in ((2, False), (3, True)):
        late = {name: frame.set_axis(frame.index + pd.Timedelta(days, "D")) for name, frame in frames.items()}
        if not refused:
            other.encoder.encode({**late, "d": frames["d"]})
            continue
        said = message(other.encoder.encode, {**late, "d": frames["d"]})
        assert said.startswith("bars['d'] is stale: its last bar closed at ")
        assert "and in training the last one was never 2d old; add what is missing, or, if nothing is, m1 bars" in said
        before = other.frames(frames["d"].index[-1].value)["m1"]  # which shows that nothing is
        other.encoder.encode({**late, "d": frames["d"], "m1": pd.concat([before, late["m1"]])})


def test_bars_from_files_may_begin_at_other_times(plain: Place, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(plain.run, run)
    described = json.loads((run / "encoder.json").read_text())
    described["source"]["files"] = ["m1", "m15"]
    (run / "encoder.json").write_text(json.dumps(described))
    encoder, window = Encoder.load(run), plain.chosen(9)[4]
    frames = plain.frames(plain.time(window), extra=2)
    frames["m1"] = plain.frames(plain.time(window), extra=100)["m1"]
    assert torch.equal(encoder.encode(frames), offline(plain, window)[1])
    assert "is stale" in message(encoder.encode, changed(frames, "m15", frames["m15"][:-2]))


def test_what_cannot_be_derived_says_how_much_is_needed(plain: Place, other: Place) -> None:
    t = plain.time(plain.chosen(9)[4])
    frames = plain.frames(t)
    del frames["m15"]
    said = message(plain.encoder.encode, frames)
    assert said.startswith("bars lacks m15, and its 33 m1 bars make only ")
    assert "whole m15 bars, but 33 are needed (32 a window and 1 before it); give about 525 m1 bars, more where" in said
    assert said.endswith("or a frame of m15 bars")
    frames = other.frames(other.time(other.chosen(9)[4]))
    assert "make only 0 whole h1 bars" in message(
        other.encoder.encode, {name: frames[name] for name in ("m1", "m5", "d")}
    )


def test_the_rules_of_the_recipe_hold(other: Place) -> None:
    described = json.loads((other.run / "encoder.json").read_text())
    # a day with nine hours behind it; then all but days are given of a week later
    t = next(t for t in map(other.time, other.chosen(60)) if 8 <= pd.Timestamp(t, tz="UTC").hour < 21)
    frames = other.frames(t)
    late = {name: frame.set_axis(frame.index + pd.Timedelta(7, "D")) for name, frame in frames.items()}
    before = other.frames(frames["d"].index[-1].value)["m1"]
    holiday = {**late, "d": frames["d"], "m1": pd.concat([before, late["m1"]])}
    said = message(other.encoder.encode, holiday)
    assert "bars['d'] is stale: its last bar closed " in said
    assert "max_staleness.d = 4d" in said
    described["window"] |= {"min_coverage": 0.99, "max_staleness": {}}
    encoder = Encoder(other.run, described, "", other.encoder.model)
    m1 = other.frames(t, extra=1)["m1"]
    said = message(encoder.encode, changed(frames, "m1", m1.drop(m1.index[4])))
    assert "bars['m1']: the bars of the window cover less than 99% of its time" in said


def test_a_run_directory_is_enough(plain: Place, tmp_path: Path) -> None:
    for name in ("encoder.json", "best.safetensors"):
        shutil.copy(plain.run / name, tmp_path / name)
    frames = plain.frames(plain.time(5000))
    state = torch.random.get_rng_state()
    encoder = Encoder.load(tmp_path)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(encoder.encode(frames), plain.encoder.encode(frames))
    assert (encoder.label, encoder.device, encoder.model.training) == ("left", torch.device("cpu"), False)


def test_statistics_survive_json(other: Place) -> None:
    ((symbol, entries),) = other.dataset.symbols.items()
    for name, stream in entries.streams.items():
        scaling, stored = other.encoder.inputs.scaling[symbol][name], stream.manifest["statistics"]
        assert scaling.mean.tolist() == list(stored["mean"].values())
        assert scaling.std.tolist() == list(stored["std"].values())


def test_runs_that_cannot_be_loaded(plain: Place, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert f"{run}/encoder.json: missing (no run there); bin/train" in message(Encoder.load, run)
    shutil.copytree(plain.run, run)
    (run / "encoder.json").unlink()
    assert "missing (recorded by a version that did not write it)" in message(Encoder.load, run)
    good = json.loads((plain.run / "encoder.json").read_text())
    features = {**good["features"], "version": 7}
    faults: list[tuple[Any, str]] = [
        ([], "damaged; copy it again"),
        ({**good, "format": 9}, "has format 9, and this version reads 6"),
        ({**good, "seq_lens": 3}, "damaged, seq_lens is not an object; copy it again from where the run was trained"),
        ({**good, "seq_lens": {"m1": 3}}, "damaged, its parts are not of the same timeframes"),
        ({**good, "features": features}, "trained on version 7 of the feature set returns, and this version of "
                                         "Headstart has version 1; use the one it was trained with"),
        ({**good, "seq_lens": {"m1": 32, "m5": 32, "m15": 16}}, "different numbers of latents (8 of m1, 8 of m5, 4 of "
                                                                "m15), which make no one array"),
    ]  # fmt: skip
    for content, words in faults:
        (run / "encoder.json").write_text(json.dumps(content))
        assert words in message(Encoder.load, run)
    (run / "encoder.json").write_text("{")
    assert "damaged" in message(read_description, run)
    shutil.copy(plain.run / "encoder.json", run / "encoder.json")
    (run / "best.safetensors").write_bytes(b"\x80\x04pickle")
    assert "damaged" in message(Encoder.load, run)
    (run / "best.safetensors").unlink()
    assert "the run has no best.safetensors yet" in message(Encoder.load, run)


def test_export(place: Place, tmp_path: Path) -> None:
    assert "end in .pt2; name it" in message(export_encoder, place.encoder, tmp_path / "encoder.pt")
    export_encoder(place.encoder, tmp_path / "encoder.pt2")
    module = torch.export.load(tmp_path / "encoder.pt2").module()
    for batch in (1, 2, 7):
        found = place.source.gather(torch.arange(batch))
        parts = [[one.clone() for one in part] for part in (found.x, found.close_time)]
        torch.testing.assert_close(module(*parts), place.encoder.embed(*parts).clone(), rtol=1e-5, atol=1e-6)


def test_latency(place: Place) -> None:
    heard: list[int] = []
    times = latencies(place.encoder, 10, heard.append)
    assert len(times) == sum(heard) == 10
    assert all(0 < one < 1000 for one in times)
    frames = simulated_frames(place.encoder, np.random.default_rng(1))
    assert {name: len(frame) for name, frame in frames.items()} == {
        name: place.encoder.inputs.needed(name) for name in place.bars
    }


def test_parts() -> None:
    found = list(part_ranges(range(5, 2_000_005), (4, 12, 48)))
    assert (found[0].start, found[-1].stop) == (5, 2_000_005)
    assert all(left.stop == right.start for left, right in itertools.pairwise(found))
    assert 60e6 < len(found[0]) * 4 * 12 * 48 * 4 <= 64e6
    assert len(next(part_ranges(range(10**6), (1, 1, 1)))) == CHUNK_ROWS
    assert len(next(part_ranges(range(10), (10**4, 10**4, 10)))) == 1


def test_a_policy_can_be_trained_on_embeddings(plain: Place) -> None:
    policy = torch.nn.Linear(32, 2)
    policy(plain.encoder.encode(plain.frames(plain.time(5000)))).sum().backward()
    assert policy.weight.grad is not None
    assert policy.weight.grad.abs().max() > 0


def test_several_symbols(plain: Place) -> None:
    ((_, entries),) = plain.dataset.symbols.items()
    several = replace(plain.dataset, symbols={"A": entries, "B": entries})
    said = "test has several symbols; name one as `symbol`; they are A, B"
    assert message(encode_at, plain.encoder, several, [0]) == said
    said = "test has no symbol C; they are A, B"
    assert message(encode_at, plain.encoder, several, [0], symbol="C") == said
    described = json.loads((plain.run / "encoder.json").read_text())
    statistics = described["statistics"]["TEST"]
    described["statistics"] = {"A": statistics, "B": {**statistics, "m1": statistics["m15"]}}
    encoder, frames = Encoder(plain.run, described, "", plain.encoder.model), plain.frames(plain.time(5000))
    assert "has statistics of several symbols; name one as `symbol`: A, B" in message(encoder.encode, frames)
    assert torch.equal(encoder.encode(frames, "A"), plain.encoder.encode(frames))
    assert not torch.equal(encoder.encode(frames, "B"), plain.encoder.encode(frames))


def test_splits(plain: Place) -> None:
    parts = {name: dict(window_ranges(plain.dataset, name))["TEST"] for name in ("all", "train", "val")}
    assert [parts["train"]] == plain.source.train.ranges
    assert parts["val"] == plain.source.val.ranges[0]
    assert parts["all"] == range(len(plain.windows("time")))


def test_training_never_loads_the_encoder() -> None:
    modules = "trainer.train_command, trainer.session, trainer.runs, trainer.evaluate_command, trainer.encode_command"
    code = f"import {modules}, sys; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = set(loaded.split())
    assert not {name for name in names if name.startswith(("pipeline", "trainer.encode")) and "command" not in name}
    assert not {"pandas", "numba", "pyarrow", "zarr"} & names


def test_weights_are_read_as_they_were_written(plain: Place) -> None:
    state = plain.encoder.model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in load_file(plain.run / "best.safetensors").items())
