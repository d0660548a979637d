"""The same dataset by pandas and zarr-python alone, as one would write it without Headstart. For benchmarks/build.py.

Parquet → higher timeframes by `resample` → windows by `merge_asof` → features in NumPy → z-scores over the training
rows → Zarr with its default chunks and compression. Nothing is checked, hashed, synced or kept for reuse, and the
bars themselves are not stored. With --check, the result is compared with Headstart's store.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import zarr

RULES = {"m5": "5min", "m15": "15min", "m30": "30min", "h1": "1h", "h4": "4h"}
TIMEFRAMES = ("m1", *RULES, "d")
SESSION_ZONE, TO_MIDNIGHT = "America/New_York", pd.Timedelta(hours=7)  # days begin at 17:00
VAL_FRACTION, EMBARGO = 0.2, pd.Timedelta(days=1)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("source", type=Path, help="parquet file of one-minute bars")
    arguments.add_argument("out", type=Path, help="Zarr group to write")
    arguments.add_argument("--seq-len", type=int, default=64)
    arguments.add_argument("--check", type=Path, metavar="STORE", help="a store that holds the same dataset as demo")
    args = arguments.parse_args()
    build(args.source, args.out, args.seq_len)
    if args.check:
        compare(args.out, args.check)


def build(source: Path, out: Path, seq_len: int) -> None:
    base = pd.read_parquet(source, columns=["timestamp", "open", "high", "low", "close"]).set_index("timestamp")
    base.index = base.index.tz_localize(None)  # UTC all through
    base["close_time"] = base.index + pd.Timedelta("1min")
    bars = {"m1": base} | {name: resample(base, name) for name in TIMEFRAMES[1:]}

    windows = base[["close_time"]].reset_index(drop=True)
    for name, frame in bars.items():
        right = pd.DataFrame({"close_time": frame["close_time"].to_numpy(), name: np.arange(1, len(frame) + 1)})
        windows[name] = pd.merge_asof(windows[["close_time"]], right, on="close_time")[name].fillna(0).astype("int32")
    windows = windows[(windows[list(bars)] >= seq_len).all(axis=1)]

    train_end = base["close_time"].iloc[int((1 - VAL_FRACTION) * len(base)) - 1]
    train = int((windows["close_time"] <= train_end - EMBARGO).sum())
    later = windows[windows["close_time"] > train_end]
    clear = np.all([frame.index.to_numpy()[later[n] - seq_len] >= train_end for n, frame in bars.items()], axis=0)
    val = len(windows) - int(clear.sum())

    group = zarr.open_group(out, mode="w", attributes={"train": [0, train], "val": [val, len(windows)]})
    group.create_array("ends", data=windows[list(bars)].to_numpy())
    group.create_array("time", data=windows["close_time"].to_numpy().astype("int64"))
    for name, frame in bars.items():
        values = features(frame)
        rows = values[frame["close_time"] <= train_end - EMBARGO]
        stream = group.create_group(name)
        stream.create_array("values", data=((values - rows.mean(axis=0)) / rows.std(axis=0)).astype("float32"))
        stream.create_array("close_time", data=frame["close_time"].to_numpy().astype("int64"))
        stream.create_array("close", data=frame["close"].to_numpy())


def resample(base: pd.DataFrame, timeframe: str) -> pd.DataFrame:
    """Higher bars, labelled by their open; a last one that the data does not finish is left out."""
    rules = {"open": "first", "high": "max", "low": "min", "close": "last"}
    if timeframe == "d":
        local = base.index.tz_localize("UTC").tz_convert(SESSION_ZONE).tz_localize(None)
        frame = base.set_axis(local + TO_MIDNIGHT).resample("D").agg(rules).dropna()
        opened, closed = (
            (frame.index + pd.Timedelta(days=days) - TO_MIDNIGHT).tz_localize(SESSION_ZONE).tz_convert("UTC")
            for days in (0, 1)
        )
        frame.index, frame["close_time"] = opened.tz_localize(None), closed.tz_localize(None)
    else:
        frame = base.resample(RULES[timeframe]).agg(rules).dropna()
        frame["close_time"] = frame.index + pd.Timedelta(RULES[timeframe])
    return frame[frame["close_time"] <= base["close_time"].iloc[-1]]


def features(bars: pd.DataFrame) -> np.ndarray:
    open_, high, low, close = (bars[name].to_numpy() for name in ("open", "high", "low", "close"))
    log_before = np.log(np.concatenate([open_[:1], close[:-1]]))
    log_open, log_high, log_low, log_close = (np.log(prices) for prices in (open_, high, low, close))
    spread = high - low
    body = np.divide(100 * np.abs(close - open_), spread, out=np.zeros(len(bars)), where=spread > 0)
    logs = [log_open - log_before, log_high - log_before, log_low - log_before, log_close - log_before]
    return np.stack([*logs, log_high - log_low, body], axis=1)


def compare(out: Path, store: Path) -> None:
    from cache.reader import open_dataset

    dataset, group = open_dataset(store, "demo"), zarr.open_group(out, mode="r")
    ((symbol, entries),) = dataset.symbols.items()
    for name in ("ends", "time"):
        assert np.array_equal(group[name][:], entries.windows.array(name)), name
    for name, stream in entries.streams.items():
        for part in ("close_time", "close"):
            assert np.array_equal(group[name][part][:], stream.array(part)), (name, part)
        assert np.allclose(group[name]["values"][:], stream.array("values"), rtol=1e-4, atol=1e-4), name
    for part in ("train", "val"):
        assert dataset.splits[part]["windows"][symbol] == group.attrs[part], part


if __name__ == "__main__":
    main()
