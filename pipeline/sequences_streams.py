"""From recordings to streams: gaps filled, channels derived, all of one length; then normalised for each fold."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from os import cpu_count
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from cache.entries import Entry
from cache.sequence_recipe import Normalise, SequenceRecipe
from configs.errors import UserError
from pipeline import sequences_kernels as kernels
from pipeline.channels import Channels, prepared
from pipeline.sequences import as_names

QUARTILES_OF_NORMAL = 1.3489795003921634  # between the quartiles of a normal distribution lie so many deviations
Block = tuple[Entry, NDArray[np.int64]]
A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True)
class Scaling:
    """What a fold's stream is normalised by: center and scale float64 [F], fitted on `rows` rows.

    `constant` are the numbers of the channels that do not vary there; their scale is 1.
    """

    center: NDArray[np.float64]
    scale: NDArray[np.float64]
    rows: int
    constant: tuple[int, ...]

    def manifest(self, method: str, names: list[str]) -> dict[str, Any]:
        """As kept in the manifest."""
        return {
            "method": method,
            "rows": self.rows,
            "center": dict(zip(names, map(float, self.center), strict=True)),
            "scale": dict(zip(names, map(float, self.scale), strict=True)),
            "constant": [names[k] for k in self.constant],
        }


def of_one_length(block: Block, channels: Channels, recipe: SequenceRecipe) -> NDArray[np.float32]:
    """The sequences of a block, float32 [n, L, F]. Raises UserError for values beyond float32."""
    entry, bounds = block
    offsets = bounds - bounds[0]
    wide = prepared(entry.rows("values", int(bounds[0]), int(bounds[-1])), offsets, channels, recipe.fill)
    out = np.empty((len(offsets) - 1, recipe.length.seq_len, len(channels.names)), np.float32)
    {"interpolate": kernels.interpolate, "pad": kernels.pad}[recipe.length.mode](wide, offsets, out)
    if not np.isfinite(out).all():
        sequence, _, channel = np.argwhere(~np.isfinite(out))[0]
        number = int(np.searchsorted(entry.array("rows").cumsum(), bounds[sequence], side="right"))
        name = as_names(entry.rows("id", number, number + 1))[0]
        raise UserError(
            f"{entry.manifest['origin']}: sequence {name}: {channels.names[channel]} is beyond what float32 holds; "
            "correct its values"
        )
    return out


def fit_scaling(
    values: NDArray[np.float32], train: NDArray[np.bool_], first: NDArray[np.int64], method: Normalise
) -> Scaling:
    """Fit on the sequences that train.

    Args:
        values: float32 [n, L, F].
        train: bool [n].
        first: int64 [n], the row before which a sequence is padding.
        method: `standard`: mean and deviation. `robust`: median, and the distance of the quartiles as deviations of a
            normal distribution; where quartiles are the same, the deviation.
    """
    chosen = np.flatnonzero(train)
    valid = np.arange(values.shape[1]) >= first[chosen, None]
    center, scale, constant = np.empty(values.shape[2]), np.empty(values.shape[2]), []
    for k in range(values.shape[2]):
        column = np.sort(values[chosen, :, k][valid]).astype(np.float64)
        center[k], scale[k] = column.mean(), column.std()
        if method == "robust":
            low, center[k], high = (_quantile(column, share) for share in (0.25, 0.5, 0.75))
            scale[k] = (high - low) / QUARTILES_OF_NORMAL or scale[k]
        if column[0] == column[-1]:
            constant.append(k)
            scale[k] = 1
    return Scaling(center, scale, int(valid.sum()), tuple(constant))


def _quantile(column: NDArray[np.float64], share: float) -> float:
    """Of sorted values, as numpy.quantile gives it."""
    place = share * (len(column) - 1)
    low = int(place)
    high = min(low + 1, len(column) - 1)
    return float(column[low] + (column[high] - column[low]) * (place - low))


def in_threads(function: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
    """`function` of every item, in order, several at a time but never many ahead, so that memory does not grow."""
    threads = cpu_count() or 1
    pending: deque[Future[B]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
