from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cache.layout import CHUNK_ROWS, ArraySpec, body_path, chunk_rows, padded_rows, shard_bytes, shard_index


@pytest.mark.parametrize(
    ("rows", "chunk", "padded"),
    [
        (1, 1, 1),
        (1000, 1000, 1000),
        (65_535, 65_535, 65_535),
        (65_536, 65_536, 65_536),
        (65_537, 65_536, 131_072),
        (131_072, 65_536, 131_072),
        (131_073, 65_536, 196_608),
    ],
)
def test_chunks(rows: int, chunk: int, padded: int):
    assert (chunk_rows(rows), padded_rows(rows)) == (chunk, padded)


@given(st.integers(1, 10**9), st.integers(1, 64))
@example(CHUNK_ROWS, 8)
@example(CHUNK_ROWS + 1, 8)
def test_a_shard_is_padded_body_and_index(rows: int, row_bytes: int):
    rows = min(rows, 10**7)
    assert shard_bytes(rows, row_bytes) == padded_rows(rows) * row_bytes + len(shard_index(rows, row_bytes))
    assert 0 <= padded_rows(rows) - rows < chunk_rows(rows) <= CHUNK_ROWS


@pytest.mark.parametrize(
    ("dtype", "columns", "row_bytes"), [("<i8", (), 8), ("<f4", (6,), 24), ("<f8", (4,), 32), ("<i4", (2, 3), 24)]
)
def test_row_bytes(dtype: str, columns: tuple[int, ...], row_bytes: int):
    assert ArraySpec("x", dtype, ("time",), columns).row_bytes == row_bytes


def test_fill_values():
    assert ArraySpec("x", "<i4", ("time",)).fill_value == -1
    assert np.isnan(ArraySpec("x", "<f4", ("time",)).fill_value)


def test_the_place_of_a_body():
    assert body_path(Path("e"), "ohlc", 2) == Path("e/ohlc/c/0/0")
    assert body_path(Path("e"), "time", 1) == Path("e/time/c/0")


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 140_000))
@example(CHUNK_ROWS)
@example(CHUNK_ROWS + 1)
@example(2 * CHUNK_ROWS)
def test_zarr_itself_writes_the_same_bytes(tmp_path_factory: pytest.TempPathFactory, rows: int):
    path = tmp_path_factory.mktemp("zarr") / "x"
    data = np.random.default_rng(rows).normal(size=(rows, 2)).astype("<f4")
    data[: CHUNK_ROWS // 2] = np.nan
    array = zarr.create_array(
        path,
        shape=data.shape,
        dtype="<f4",
        chunks=(chunk_rows(rows), 2),
        shards=(padded_rows(rows), 2),
        compressors=None,
        filters=None,
        fill_value=float("nan"),
        config={"write_empty_chunks": True},
    )
    array[:] = data
    padding = np.full((padded_rows(rows) - rows, 2), np.nan, "<f4")
    assert (path / "c/0/0").read_bytes() == data.tobytes() + padding.tobytes() + shard_index(rows, 8)
