"""From pandas frames of bars to the normalised window that ends with them, by the functions that made the store's.

bar_times, true_rows, derive_bars, align, compute_features and normalise are the pipeline's own, so that a window made
here is the store's to the last bit. What a frame must hold is told in trainer/encode.py.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cache.recipe import Policy
from cache.timeframes import duration_ns, format_ns, format_time
from configs.errors import UserError
from pipeline import kernels
from pipeline.align import Dropped, align
from pipeline.bars import Block, bar_times
from pipeline.certify_streams import Stretch, raw_features
from pipeline.derive import bucket_bounds, derive_bars
from pipeline.faults import RowError, Rows, true_rows
from trainer.encode_gaps import check_bars
from trainer.encode_inputs import Inputs

PRICES = ("open", "high", "low", "close")
_REFUSE = Policy.model_validate(dict.fromkeys(Policy.model_fields, "error"))
_REMEDIES = {"duplicate": "remove one of the two", "unsorted": "sort the frame by time, with sort_index()"}


def make_window(
    inputs: Inputs, bars: Mapping[str, pd.DataFrame], symbol: str
) -> list[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """The window that ends with the last base bar: values [L_j, F] and close times [L_j], ns UTC, a timeframe.

    Raises UserError as Encoder.encode.
    """
    blocks = completed_bars(inputs, bars)
    before = inputs.features.lookback
    return [(_values(inputs, block, symbol, name), block.close_time[before:]) for name, block in blocks.items()]


def completed_bars(inputs: Inputs, bars: Mapping[str, pd.DataFrame]) -> dict[str, Block]:
    """The bars of every timeframe from which a window is made, checked: `inputs.needed` of each, the base first."""
    base, timeframes = inputs.base, inputs.recipe.timeframes
    if unknown := [name for name in bars if name not in timeframes]:
        raise UserError(f"bars[{unknown[0]!r}]: not a timeframe of the run; it has {', '.join(timeframes)}")
    if base not in bars:
        raise UserError(f"bars lacks {base}, the base timeframe: its last bar's close is the decision time")
    derived = [name for name in timeframes if name not in bars]
    found = {base: _bars_of(inputs, base, bars[base], sys.maxsize if derived else inputs.needed(base))}
    labels = {base: _labels(bars[base])}
    for name in timeframes[1:]:
        if name in derived:
            found[name] = _derived(inputs, name, found[base])
        else:
            found[name] = _bars_of(inputs, name, bars[name], inputs.needed(name))
            check_bars(inputs, name, found, labels)
            labels |= {} if name in inputs.from_files else {name: _labels(bars[name])}
    found = {name: _last(block, inputs.needed(name)) for name, block in found.items()}
    _check_window(inputs, found)
    return found


def _values(inputs: Inputs, bars: Block, symbol: str, timeframe: str) -> NDArray[np.float32]:
    raw = raw_features(bars, inputs.features)[inputs.features.lookback :]
    values, scaling = np.empty(raw.shape, np.float32), inputs.scaling[symbol][timeframe]
    unused = np.zeros_like(scaling.mean)
    kernels.normalise(raw, scaling.mean, scaling.std, 0, values, unused, unused)
    return values


def _bars_of(inputs: Inputs, timeframe: str, frame: pd.DataFrame, rows: int) -> Block:
    """The last rows of a frame, at most so many, as bars."""
    label, ohlc = _columns(f"bars[{timeframe!r}]", frame, rows, inputs.source.label)
    if len(label) < inputs.needed(timeframe):
        raise UserError(
            f"bars[{timeframe!r}] has {len(label):,} bars, but {inputs.needed_words(timeframe)}; give more of the past"
        )
    number = np.arange(len(frame) - len(label), len(frame))
    no_time = label == np.iinfo(np.int64).min  # pandas' NaT
    missing = np.pad(no_time[:, None], ((0, 0), (0, 4))) if no_time.any() else None
    try:
        list(true_rows([Rows(number, label, ohlc, missing)], _REFUSE, {}))
    except RowError as error:
        raise UserError(_worded(timeframe, error)) from None
    open_time, close_time = bar_times(label, inputs.source, timeframe)
    overlapping = open_time[1:] < close_time[:-1]
    if overlapping.any():
        at = int(overlapping.argmax()) + 1
        raise UserError(
            f"bars[{timeframe!r}], row {number[at]:,} ({format_time(label[at])}): begins before the bar in the row "
            f"before has ended; are these {timeframe} bars?"
        )
    return Block(open_time, close_time, ohlc)


def _columns(where: str, frame: pd.DataFrame, rows: int, label: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Labels int64 ns UTC [n] and ohlc float64 [n, 4] of a frame's last rows; NaT is the smallest int64."""
    if not isinstance(frame, pd.DataFrame):
        raise UserError(f"{where} is a {type(frame).__name__}, not a pandas.DataFrame of open, high, low and close")
    if missing := [name for name in PRICES if name not in frame.columns]:
        raise UserError(
            f"{where} lacks the column {missing[0]}; it has {', '.join(map(str, frame.columns)) or 'none'}. Rename "
            "them to open, high, low and close"
        )
    if twice := [name for name in PRICES if list(frame.columns).count(name) > 1]:
        raise UserError(f"{where} has the column {twice[0]} more than once; keep one")
    if not isinstance(frame.index, pd.DatetimeIndex):
        begin_or_end = "begin" if label == "left" else "end"
        raise UserError(
            f"{where}: its index is a {type(frame.index).__name__}, not a pandas.DatetimeIndex; use set_index() with "
            f"the times at which bars {begin_or_end}"
        )
    index = frame.index[-rows:]
    if index.tz is None:
        raise UserError(
            f"{where}: its times have no zone, so that they could be any; say which it is, for example with "
            "tz_localize('UTC')"
        )
    ohlc = np.empty((len(index), 4))
    for k, name in enumerate(PRICES):
        ohlc[:, k] = real_numbers(f"{where}: column {name}", frame[name])[-rows:]
    return index.as_unit("ns").asi8, ohlc


def _labels(frame: pd.DataFrame) -> NDArray[np.int64]:
    return pd.DatetimeIndex(frame.index).as_unit("ns").asi8


def real_numbers(where: str, column: "pd.Series[Any]") -> NDArray[Any]:
    """A column as an array, NaN where pandas has nothing. Raises UserError for anything but integers and floats.

    Text of numbers, booleans and objects would become floats as well, but nobody who gives them means prices.
    """
    if column.dtype.kind not in "iuf":
        raise UserError(f"{where} holds {column.dtype}, not numbers; convert it to float64")
    return column.to_numpy() if isinstance(column.dtype, np.dtype) else column.to_numpy(np.float64, na_value=np.nan)


def _worded(timeframe: str, error: RowError) -> str:
    column, value = ("time", *PRICES)[error.column], f"{error.price} " if error.column else ""
    when = "" if error.fault == "missing" else f" ({format_time(error.label)})"
    remedy = _REMEDIES.get(error.fault, "correct or remove the row")
    return f"bars[{timeframe!r}], row {error.row:,}{when}, column {column}: {value}{error.what}; {remedy}"


def _derived(inputs: Inputs, timeframe: str, base: Block) -> Block:
    """The bars of a timeframe that the base bars make, without a first one that began before them."""
    session, first = inputs.source.session, int(base.open_time[0])
    made = _joined(list(derive_bars([base], timeframe, session)))
    begin = int(bucket_bounds(first, first, timeframe, session)[0])
    if begin < first and len(made.open_time) and made.open_time[0] == begin:
        made = _last(made, len(made.open_time) - 1)
    if len(made.open_time) < inputs.needed(timeframe):
        rows = (inputs.needed(timeframe) + 2) * inputs.bar_lengths[timeframe]
        raise UserError(
            f"bars lacks {timeframe}, and its {len(base.open_time):,} {inputs.base} bars make only "
            f"{len(made.open_time):,} whole {timeframe} bars, but {inputs.needed_words(timeframe)}; give about "
            f"{rows:,} {inputs.base} bars, more where there are gaps between them, or a frame of {timeframe} bars"
        )
    return made


def _check_window(inputs: Inputs, bars: Mapping[str, Block]) -> None:
    """Whether align, by its rules, makes a window at the decision time of the bars, and ends it with the last ones."""
    timeframes, seq_lens = inputs.recipe.timeframes, inputs.recipe.seq_lens
    series = {name: Stretch(block) for name, block in bars.items()}
    series[inputs.base] = Stretch(_last(bars[inputs.base], seq_lens[inputs.base]))  # the last row alone has a history
    windows = list(align(series, inputs.recipe, Dropped(np.zeros((len(bars), 3), np.int64))))
    if windows:
        assert windows[-1][0].tolist() == [[len(series[name]) for name in timeframes]]
        return
    t = int(bars[inputs.base].close_time[-1])
    for name, limit in inputs.recipe.window.max_staleness.items():
        age = t - int(bars[name].close_time[-1])
        if age > duration_ns(limit):
            raise UserError(
                f"bars[{name!r}] is stale: its last bar closed {format_ns(age)} before the decision time "
                f"{format_time(t)}, and the run was trained with max_staleness.{name} = {limit}; add what is missing, "
                "or wait for it"
            )
    raise UserError(
        f"bars[{inputs.base!r}]: the bars of the window cover less than {inputs.recipe.window.min_coverage:.0%} of its "
        "time, which the run was trained with (min_coverage); add what is missing, or wait until they cover more"
    )


def _last(bars: Block, rows: int) -> Block:
    start = len(bars.open_time) - rows
    return Block(bars.open_time[start:], bars.close_time[start:], bars.ohlc[start:])


def _joined(blocks: Sequence[Block]) -> Block:
    if len(blocks) == 1:
        return blocks[0]
    none = Block(np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, 4)))
    names = ("open_time", "close_time", "ohlc")
    return Block(*(np.concatenate([getattr(one, name) for one in (none, *blocks)]) for name in names))
