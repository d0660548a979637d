import json
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cache.compress import (
    DTYPES,
    block_count,
    chunk_names,
    pack,
    pack_block,
    packed_limit,
    packed_metadata,
    unpack,
    unpack_block,
)
from cache.layout import CHUNK_ROWS, ArraySpec, chunk_rows, metadata_bytes, padded_rows

PRICES = np.round(np.random.default_rng(0).normal(size=3000).cumsum() + 1000, 2)
SPECS = [
    ArraySpec("values", "<f4", ("time", "feature"), (3,)),
    ArraySpec("ends", "<i4", ("window", "stream"), (2,)),
    ArraySpec("cube", "<i2", ("time", "row", "column"), (2, 3)),
    ArraySpec("time", "<i8", ("time",)),
]


@st.composite
def any_numbers(draw: st.DrawFn) -> NDArray[np.generic]:
    """Any bit patterns, among them all kinds of NaN, and runs of one value."""
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    data = draw(st.binary(min_size=dtype.itemsize, max_size=64 * dtype.itemsize))
    numbers = np.frombuffer(data[: len(data) // dtype.itemsize * dtype.itemsize], dtype)
    return np.repeat(numbers, draw(st.integers(1, 40)))


@settings(max_examples=300, deadline=None)
@given(any_numbers())
def test_numbers_come_back_bit_for_bit(numbers: NDArray[np.generic]):
    packed = pack(numbers)
    assert unpack(packed, numbers.dtype.str, len(numbers)).tobytes() == numbers.tobytes()
    assert len(packed) <= packed_limit(numbers.dtype.str, len(numbers))
    assert pack(numbers.copy()) == packed


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 255, 256, 257, CHUNK_ROWS])
def test_noise_stays_within_the_limit(dtype: str, rows: int):
    noise = np.frombuffer(np.random.default_rng(rows).bytes(rows * np.dtype(dtype).itemsize), dtype)
    assert len(pack(noise)) <= packed_limit(dtype, rows)


@pytest.mark.parametrize(
    ("data", "dtype", "rows"),
    [
        (pack(PRICES), "<f8", len(PRICES) + 1),
        (pack(PRICES), "<f8", len(PRICES) - 1),
        (pack(PRICES), "<f8", 1),
        (pack(PRICES), "<i8", len(PRICES)),
        (pack(PRICES), "<f4", len(PRICES)),
        (pack(PRICES)[:-1], "<f8", len(PRICES)),
        (pack(PRICES)[:100], "<f8", len(PRICES)),
        (b"", "<f8", len(PRICES)),
        (b"pco!", "<f8", len(PRICES)),
        (bytes(1000), "<f8", len(PRICES)),
    ],
)
def test_what_is_not_just_these_numbers_is_refused(data: bytes, dtype: str, rows: int):
    with pytest.raises(ValueError, match=r"not packed <.. numbers|does not hold"):
        unpack(data, dtype, rows)


@settings(max_examples=500, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=4))
def test_changed_bytes_give_an_error_or_other_numbers_and_nothing_worse(changes: list[tuple[int, int]]):
    data = bytearray(pack(PRICES))
    for place, bits in changes:
        data[place % len(data)] ^= bits
    try:
        assert unpack(bytes(data), "<f8", len(PRICES)).shape == PRICES.shape
    except ValueError as error:
        assert "pack" in str(error) or "hold" in str(error)


@pytest.mark.parametrize("rows", [1, 500, CHUNK_ROWS, CHUNK_ROWS + 1])
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_a_packed_array_is_a_zarr_array(tmp_path: Path, spec: ArraySpec, rows: int):
    generator = np.random.default_rng(rows)
    data = generator.integers(0, 1000, (rows, *spec.columns)).astype(spec.dtype)
    padded = np.full((padded_rows(rows), *spec.columns), spec.fill_value, spec.dtype)
    padded[:rows] = data
    (tmp_path / "zarr.json").write_bytes(metadata_bytes(packed_metadata(spec, rows)))
    for block in range(block_count(rows)):
        part = padded[block * chunk_rows(rows) :][: chunk_rows(rows)].reshape(chunk_rows(rows), -1)
        packed = pack_block(part)
        assert unpack_block(packed, spec.dtype, len(part)).tobytes() == part.tobytes()
        for name, column in zip(chunk_names(spec, block), packed, strict=True):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(column)
    with pytest.warns(UserWarning, match="Numcodecs"):
        array = zarr.open_array(tmp_path, mode="r")
    assert np.asarray(array[:]).tobytes() == data.tobytes()
    assert json.loads((tmp_path / "zarr.json").read_bytes())["dimension_names"] == list(spec.dims)


def test_chunks_are_named_as_zarr_names_them():
    assert list(chunk_names(SPECS[3], 7)) == ["c.7"]
    assert list(chunk_names(SPECS[0], 7)) == ["c.7.0", "c.7.1", "c.7.2"]
    assert list(chunk_names(SPECS[2], 0)) == ["c.0.0.0", "c.0.0.1", "c.0.0.2", "c.0.1.0", "c.0.1.1", "c.0.1.2"]
