"""The Numba kernels: one sweep each, arrays and scalars only, compiled once and kept beside this file.

All run without the interpreter lock. Axes: n rows of a block · S timeframes, the base first · 4 prices o, h, l, c ·
6 features. Times are int64 ns UTC. The callers (bars, derive, align, features) give the meaning.
"""

import math

import numba
import numpy as np


@numba.njit(cache=True, nogil=True)
def aggregate(open_time, close_time, ohlc, bounds, prices, closed, out_open, out_close, out_ohlc):
    """Aggregate base bars [n] into the buckets [bounds[k], bounds[k+1]) that their open times fall into.

    The bucket still open lives in prices float64 [4] (o, h, l, c; NaN in prices[0]: no bar yet) and closed int64 [1]
    (when its last child closed); bounds begin with it. Writes finished bars; returns (how many, the bucket still open).
    """
    count, k = 0, 0
    for i in range(len(open_time)):
        if open_time[i] >= bounds[k + 1]:
            if not math.isnan(prices[0]):
                out_open[count], out_close[count] = bounds[k], max(bounds[k + 1], closed[0])
                out_ohlc[count, :] = prices
                count += 1
                prices[0] = np.nan
            while open_time[i] >= bounds[k + 1]:
                k += 1
        if math.isnan(prices[0]):
            prices[:] = ohlc[i]
        else:
            prices[1] = max(prices[1], ohlc[i, 1])
            prices[2] = min(prices[2], ohlc[i, 2])
            prices[3] = ohlc[i, 3]
        closed[0] = close_time[i]
    return count, k


@numba.njit(cache=True, nogil=True)
def count_completed(base_close, flat_close, offsets, skipped, pointers, ends):
    """For every decision time the number of completed bars of every timeframe, by a merge of sorted times.

    base_close [n] are decision times; close times of the other timeframes lie end to end in flat_close, those of stream
    j from its row skipped[j-1] on in [offsets[j-1], offsets[j]). `pointers` int64 [S] carries the merge from block to
    block; ends int32 [n, S] receives #{close_j <= t}. Stream 0 is the base itself.
    """
    streams = ends.shape[1]
    for i in range(len(base_close)):
        pointers[0] += 1
        ends[i, 0] = pointers[0]
    for j in range(1, streams):
        start, stop = offsets[j - 1] - skipped[j - 1], offsets[j]
        p = start + pointers[j]
        for i in range(len(base_close)):
            while p < stop and flat_close[p] <= base_close[i]:
                p += 1
            ends[i, j] = p - start
        pointers[j] = p - start


@numba.njit(cache=True, nogil=True)
def select_windows(
    base_open,
    base_close,
    lookback,
    first,
    stride,
    seq_lens,
    flat_close,
    offsets,
    skipped,
    staleness,
    coverage,
    ends,
    dropped,
    keep,
):
    """Decide which decision times of a block become windows.

    base_open and base_close begin `lookback` rows before the block, whose first base bar has the index `first`; ends
    int32 [n, S] is of the block. A window is dropped for history (fewer than seq_lens[j] bars), staleness (the last
    bar of j closed more than staleness[j] before t) or coverage (its base bars cover less than that share of their
    span). dropped int64 [S, 3] counts every rule that a candidate breaks. Writes the block rows kept, returns how many.
    """
    streams, kept, length = len(seq_lens), 0, seq_lens[0]
    covered = 0
    for i in range(lookback):
        covered += base_close[i] - base_open[i]
    for i in range(len(ends)):
        row = i + lookback
        covered += base_close[row] - base_open[row]
        left_behind = row - length
        if left_behind >= 0:
            covered -= base_close[left_behind] - base_open[left_behind]
        if (first + i) % stride:
            continue
        good = True
        for j in range(streams):
            if ends[i, j] < seq_lens[j]:
                dropped[j, 0] += 1
                good = False
            elif (
                j > 0 and base_close[row] - flat_close[offsets[j - 1] - skipped[j - 1] + ends[i, j] - 1] > staleness[j]
            ):
                dropped[j, 1] += 1
                good = False
        if ends[i, 0] >= length and covered < coverage * (base_close[row] - base_open[row - length + 1]):
            dropped[0, 2] += 1
            good = False
        if good:
            keep[kept] = i
            kept += 1
    return kept


@numba.njit(cache=True, nogil=True)
def price_features(ohlc, previous_close, out):
    """Feature set `price` of bars [n, 4] into out float64 [n, 6]; previous_close precedes the first bar."""
    for i in range(len(ohlc)):
        o, h, l, c = ohlc[i, 0], ohlc[i, 1], ohlc[i, 2], ohlc[i, 3]  # noqa: E741
        out[i, 0], out[i, 1], out[i, 2], out[i, 3] = o, h, l, c
        out[i, 4] = c - previous_close
        out[i, 5] = 100.0 * abs(c - o) / (h - l) if h > l else 0.0
        previous_close = c


@numba.njit(cache=True, nogil=True)
def return_features(ohlc, previous_close, out):
    """Feature set `returns` of bars [n, 4] into out float64 [n, 6]; previous_close precedes the first bar."""
    before = math.log(previous_close)
    for i in range(len(ohlc)):
        o, h, l, c = ohlc[i, 0], ohlc[i, 1], ohlc[i, 2], ohlc[i, 3]  # noqa: E741
        log_h, log_l, log_c = math.log(h), math.log(l), math.log(c)
        out[i, 0] = math.log(o) - before
        out[i, 1] = log_h - before
        out[i, 2] = log_l - before
        out[i, 3] = log_c - before
        out[i, 4] = log_h - log_l
        out[i, 5] = 100.0 * abs(c - o) / (h - l) if h > l else 0.0
        before = log_c


@numba.njit(cache=True, nogil=True)
def moments(values, mean, scatter):
    """Mean and sum of squared deviations of every column of values float64 [n, F], in two passes."""
    rows, columns = values.shape
    for k in range(columns):
        mean[k] = 0.0
        scatter[k] = 0.0
    for i in range(rows):
        for k in range(columns):
            mean[k] += values[i, k]
    for k in range(columns):
        mean[k] /= rows
    for i in range(rows):
        for k in range(columns):
            scatter[k] += (values[i, k] - mean[k]) ** 2


@numba.njit(cache=True, nogil=True)
def normalise(values, mean, std, train, out, sums, squares):
    """(values − mean) / std, float64 [n, F] into out float32 [n, F].

    Adds what was written in the first `train` rows, and its squares, to sums and squares float64 [F].
    """
    for i in range(len(values)):
        for k in range(values.shape[1]):
            out[i, k] = (values[i, k] - mean[k]) / std[k]
            if i < train:
                sums[k] += out[i, k]
                squares[k] += np.float64(out[i, k]) ** 2


def load() -> None:
    """Call every kernel once on next to nothing, so that they are loaded (or, the first time, compiled) by now."""
    times, rows = np.arange(2, dtype=np.int64), np.ones((1, 4))
    wide, counts, moment = np.empty((1, 6)), np.zeros((1, 3), np.int64), np.ones(6)
    bounds, ends = np.array([0, 1], np.int64), np.zeros((1, 1), np.int32)
    aggregate(
        times[:1],
        times[1:],
        rows,
        bounds,
        rows[0].copy(),
        times[:1].copy(),
        times[:1].copy(),
        times[:1].copy(),
        rows.copy(),
    )
    count_completed(times[:1], times, times, times, times.copy(), ends)
    select_windows(
        times[:1], times[1:], 0, 0, 1, times[1:], times, times, times, times, 0.0, ends, counts, times.copy()
    )
    price_features(rows, 1.0, wide)
    return_features(rows, 1.0, wide)
    moments(wide, moment.copy(), moment.copy())
    normalise(wide, moment, moment, 0, wide.astype(np.float32), moment.copy(), moment.copy())
