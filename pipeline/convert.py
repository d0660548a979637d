"""From columns of Arrow to NumPy, naming the value that does not convert.

pyarrow's `pa.array`, `pa.scalar`, `fill_null` and `to_numpy` import pandas (0.2 s); nothing here does.
"""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from configs.errors import UserError

Refuse = Callable[[int, str], UserError]  # from the position in a column and what is wrong there to the error
_SHOWN = 40  # characters of a value in a message


def numpy_of(column: pa.Array, kind: pa.DataType) -> NDArray[Any]:
    """A column without nulls as NumPy sees it, as type `kind`. Raises pyarrow.ArrowInvalid for what does not fit."""
    return np.from_dlpack(column.cast(kind))


def nulls(column: pa.Array) -> NDArray[np.bool_]:
    """Where a column holds nothing, bool [n]."""
    return np.from_dlpack(column.is_null().cast(pa.uint8())).view(np.bool_)


def take(batch: pa.RecordBatch, rows: NDArray[np.int64]) -> pa.RecordBatch:
    """The rows of a batch at positions int64 [n]."""
    return batch.take(pa.Array.from_buffers(pa.int64(), len(rows), [None, pa.py_buffer(rows)]))


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds text, plainly or as categories."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def shown(column: pa.Array, at: int) -> str:
    """The value at a position as messages show it: text in quotes, long text cut, dates and numbers as they are."""
    value = column[at]
    if pa.types.is_temporal(value.type) or pa.types.is_decimal(value.type):
        return re.sub(r"\.?0+(?=Z?$)", "", text) if "." in (text := str(value.cast(pa.string()).as_py())) else text
    text = value.as_py()
    if isinstance(text, str) and len(text) > _SHOWN:
        return f"{text[:_SHOWN]!r}…"
    return repr(text)


def converted(
    column: pa.Array, convert: Callable[[pa.Array], NDArray[Any]], why: Callable[[str, ValueError], str], refuse: Refuse
) -> NDArray[Any]:
    """`convert(column)`; spaces around text are ignored.

    Where it raises ValueError (as Arrow does), `refuse` makes the error for the first value that it refuses. The words
    are that value followed by `why(value, error)`: "'1,5' is not a number".
    """
    try:
        return convert(column)
    except ValueError as error:
        reason = error
    if is_text(column.type):
        trimmed = pc.utf8_trim_whitespace(column.cast(pa.string()))
        try:
            return convert(trimmed)
        except ValueError as error:
            reason = error
        convert = _after_trimming(convert)
    good, bad = 0, len(column)  # the first refused one is among them
    while bad - good > 1:
        middle = (good + bad) // 2
        try:
            convert(column.slice(good, middle - good))
            good = middle
        except ValueError as error:
            bad, reason = middle, error
    value = shown(column, good)
    raise refuse(good, f"{value} {why(value, reason)}")


def _after_trimming(convert: Callable[[pa.Array], NDArray[Any]]) -> Callable[[pa.Array], NDArray[Any]]:
    return lambda column: convert(pc.utf8_trim_whitespace(column.cast(pa.string())))


def prices(column: pa.Array, refuse: Refuse) -> NDArray[np.float64]:
    """Prices without nulls as float64 [n]: numbers as they are, decimals and text rounded once."""
    if pa.types.is_decimal(column.type):  # Arrow's own conversion multiplies by a rounded power of ten
        column = column.cast(pa.string())
    return converted(column, lambda part: numpy_of(part, pa.float64()), _no_price, refuse)


def in_units(points: NDArray[np.float64], points_per_unit: float, refuse: Refuse) -> NDArray[np.float64]:
    """Prices float64 [n] stored as whole points, divided (a product would round twice)."""
    odd = np.isfinite(points) & (points != np.rint(points))
    if odd.any():
        at = int(odd.argmax())
        raise refuse(
            at,
            f"{points[at]} is not a whole number of points, as data.source.points_per_unit says that prices are; leave "
            "it out",
        )
    return points / points_per_unit


def no_number(value: str, otherwise: str) -> str:
    """Why a text is no number: its commas, or else what `otherwise` says."""
    if "," in value:
        return "is not a number; write 1234.5, with a point before the decimals and nothing between the thousands"
    return f"is not a number{otherwise}"


def _no_price(value: str, _: ValueError) -> str:
    return no_number(value, " that float64 holds; correct or remove the row")
