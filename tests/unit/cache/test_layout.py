import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cache.layout import (
    CHUNK_ROWS,
    SHARD_ROWS,
    TIME_ATTRIBUTES,
    ArraySpec,
    array_metadata,
    array_spec,
    body_path,
    chunk_rows,
    group_metadata,
    metadata_bytes,
    padded_rows,
    shard_bytes,
    shard_count,
    shards,
)


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


@given(st.integers(1, 3 * SHARD_ROWS), st.integers(1, 64))
@example(CHUNK_ROWS, 8)
@example(CHUNK_ROWS + 1, 8)
@example(SHARD_ROWS, 8)
@example(SHARD_ROWS + 1, 8)
def test_shards_are_padded_bodies_and_indices(rows: int, row_bytes: int):
    files = shards(rows)
    assert shard_bytes(rows, row_bytes) == sum(one.padded * row_bytes + len(one.index(row_bytes)) for one in files)
    assert shard_bytes(rows, row_bytes) == sum(one.file_bytes(row_bytes) for one in files)
    assert shard_count(rows) == len(files)
    assert sum(one.padded for one in files) == padded_rows(rows)
    assert 0 <= padded_rows(rows) - rows < chunk_rows(rows) <= CHUNK_ROWS
    assert [one.start for one in files] == list(range(0, rows, SHARD_ROWS))
    assert all(one.rows == SHARD_ROWS for one in files[:-1])
    assert all(one.index(row_bytes) == shards(SHARD_ROWS)[0].index(row_bytes) for one in files[:-1])


@pytest.mark.parametrize(
    ("dtype", "columns", "row_bytes"), [("<i8", (), 8), ("<f4", (6,), 24), ("<f8", (4,), 32), ("<i4", (2, 3), 24)]
)
def test_row_bytes(dtype: str, columns: tuple[int, ...], row_bytes: int):
    assert ArraySpec("x", dtype, ("time",), columns).row_bytes == row_bytes


def test_fill_values():
    assert ArraySpec("x", "<i4", ("time",)).fill_value == -1
    assert ArraySpec("x", "|u1", ("time",)).fill_value == 0
    assert np.isnan(ArraySpec("x", "<f4", ("time",)).fill_value)


def test_the_place_of_a_body():
    assert body_path(Path("e"), "ohlc", 2) == Path("e/ohlc/c.0.0")
    assert body_path(Path("e"), "time", 1) == Path("e/time/c.0")
    assert body_path(Path("e"), "ohlc", 2, 3) == Path("e/ohlc/c.3.0")


@pytest.mark.parametrize(
    "spec",
    [
        ArraySpec("values", "<f4", ("time", "feature"), (6,)),
        ArraySpec("close_time", "<i8", ("time",), attributes=TIME_ATTRIBUTES),
        ArraySpec("cube", "<i4", ("a", "b", "c"), (2, 3), {"note": "é"}),
    ],
    ids=lambda spec: spec.name,
)
def test_an_array_is_what_the_manifest_describes(spec: ArraySpec):
    described = {
        "shape": [5, *spec.columns],
        "dtype": spec.dtype,
        "dims": list(spec.dims),
        "attributes": dict(spec.attributes),
        "bytes": 1,
        "md5": "",
    }
    read_back = array_spec(spec.name, json.loads(json.dumps(described)))
    assert read_back == spec
    assert metadata_bytes(array_metadata(read_back, 5)) == metadata_bytes(array_metadata(spec, 5))


@pytest.mark.parametrize(
    "change",
    [
        {"dims": ["time"]},
        {"dims": ["a", "b", "c"]},
        {"dims": None},
        {"dtype": "float48"},
        {"shape": 5},
        {"shape": [5, "x"]},
        {"attributes": 5},
    ],
)
def test_what_is_no_array(change: dict[str, Any]):
    described = {"shape": [5, 4], "dtype": "<f8", "dims": ["time", "price"], "attributes": {}}
    array_spec("x", described)
    with pytest.raises((KeyError, TypeError, ValueError)):
        array_spec("x", {**described, **change})
    for name in described:
        with pytest.raises(KeyError):
            array_spec("x", {key: value for key, value in described.items() if key != name})


def test_metadata_is_written_in_one_way():
    written = metadata_bytes(group_metadata({"b": "é", "a": [1, 0.1]}))
    assert json.loads(written) == {"zarr_format": 3, "node_type": "group", "attributes": {"b": "é", "a": [1, 0.1]}}
    assert metadata_bytes(json.loads(written)) == written
    with pytest.raises(ValueError, match="not JSON compliant"):
        metadata_bytes({"a": float("nan")})


@settings(max_examples=10, deadline=None)
@given(st.integers(1, SHARD_ROWS + 140_000))
@example(CHUNK_ROWS)
@example(SHARD_ROWS)
@example(SHARD_ROWS + 1)
@example(2 * SHARD_ROWS)
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
        shards=(min(padded_rows(rows), SHARD_ROWS), 2),
        compressors=None,
        filters=None,
        fill_value=float("nan"),
        chunk_key_encoding={"name": "default", "separator": "."},
        config={"write_empty_chunks": True},
    )
    array[:] = data
    for shard in shards(rows):
        values = data[shard.start : shard.start + shard.rows].tobytes()
        padding = np.full((shard.padded - shard.rows, 2), np.nan, "<f4").tobytes()
        written = (path / f"c.{shard.number}.0").read_bytes()
        assert written[: len(values + padding)] == values + padding
        if shard is not shards(rows)[-1] or rows <= SHARD_ROWS:
            assert written == values + padding + shard.index(8)
        assert shard.file_bytes(8) == len(values + padding + shard.index(8))
