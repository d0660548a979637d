"""How one array lies on disk: a Zarr v3 array of shards, files that begin with the plain C-order rows.

    <group>/zarr.json                 the manifest, in the group's attributes
    <group>/<array>/zarr.json         shape, dtype, codecs, dimension names
    <group>/<array>/c.0[.0]           body ‖ padding to whole chunks ‖ index: (offset, nbytes) uint64 a chunk ‖ crc32c
    <group>/<array>/c.1[.0] …         where there are more than SHARD_ROWS rows, which the files before hold

A full shard never changes when rows are appended, so that a longer series shares those of a shorter one. Every
PIECE_ROWS rows have an MD5, so that a longer series takes over those of full pieces too; what follows the rows in a
file is a function of their number, and has none.

Chunks divide the first axis only, so that Zarr's Morton order of inner chunks is C order. All of it is written by us:
the body because appending to one shard through zarr-python rewrites it every time, the metadata because it is little
and importing zarr-python is not. The tests read it with zarr-python, tensorstore and xarray.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

VERSION = "0.1.0"
FORMAT = "headstart/7"
CARRIED = ("bars", "recordings", "splits", "statistics", "streams", "windows", "datasets")  # to other stores
STAGES = (*CARRIED, "compiled")  # what torch.compile has made is read with pickle, and stays on its machine
SOURCES = ("bars", "recordings")  # what source files held; training needs none of it …
FITTED = ("splits", "statistics")  # … nor of what was found out about all of it
SEQUENCES = "sequences"  # `components.fields.kind` of entries made of recordings; those made of bars have no kind
SEQUENCE = "sequence"  # stands where bars have a timeframe: recordings make one stream …
EVERY_SYMBOL = "*"  # whose statistics are pooled ones …
POOLED = "every_symbol"  # … and the name of their first axis
ALL_FOLDS = "all"  # … which serves all folds where nothing in it was fitted
CHUNK_ROWS = 65_536
SHARD_ROWS = 2 * CHUNK_ROWS  # of any row a whole number of pages, so that shards can be mapped one behind another
PIECE_ROWS = 16_384  # divides a shard
TIME_ATTRIBUTES = {
    "standard_name": "time",
    "units": "nanoseconds since 1970-01-01",
    "calendar": "proleptic_gregorian",
}


@dataclass(frozen=True)
class ArraySpec:
    """One array of an entry: `dtype` in NumPy's little-endian spelling, `dims` names of the axes, rows first."""

    name: str
    dtype: str
    dims: tuple[str, ...]
    columns: tuple[int, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return np.dtype(self.dtype).itemsize * math.prod(self.columns)

    @property
    def fill_value(self) -> float | int:
        """What pads the last chunk: NaN, −1, or 0 where there are no negative numbers."""
        return {"f": float("nan"), "u": 0}.get(np.dtype(self.dtype).kind, -1)


def fold_name(fold: int) -> str:
    """What the stream of one fold is called in manifests."""
    return f"fold-{fold}"


def array_spec(name: str, described: Mapping[str, Any]) -> ArraySpec:
    """The array as a manifest describes it. Raises KeyError, TypeError and ValueError when it does not."""
    dims, columns = tuple(map(str, described["dims"])), tuple(map(int, described["shape"][1:]))
    if len(dims) != 1 + len(columns):
        raise ValueError(f"{len(dims)} names for {1 + len(columns)} axes")
    return ArraySpec(name, np.dtype(described["dtype"]).str, dims, columns, dict(described["attributes"]))


@dataclass(frozen=True)
class Shard:
    """One file of an array: `rows` rows from row `start` on, in chunks of `chunk` rows; `slots` chunks have a place."""

    number: int
    start: int
    rows: int
    chunk: int
    slots: int

    @property
    def padded(self) -> int:
        """Rows in whole chunks."""
        return -(-self.rows // self.chunk) * self.chunk

    def file_bytes(self, row_bytes: int) -> int:
        """Size of the file: padded body, 16 bytes of index a slot, 4 bytes of checksum."""
        return self.padded * row_bytes + self.slots * 16 + 4

    def pieces(self) -> range:
        """Numbers of the pieces of the array that its rows are."""
        return range(self.start // PIECE_ROWS, piece_count(self.start + self.rows))

    def ending(self, spec: ArraySpec) -> bytes:
        """What follows the rows: padding to whole chunks, and the index."""
        padding = np.full((self.padded - self.rows, *spec.columns), spec.fill_value, spec.dtype)
        return padding.tobytes() + self.index(spec.row_bytes)

    def index(self, row_bytes: int) -> bytes:
        """What ends the file: uint64 offset and length of each chunk, 2⁶⁴ − 1 for none, and their crc32c.

        As the sharding codec of Zarr v3 defines it.
        """
        import google_crc32c  # here, because the training process reads this module and never writes

        size, count = self.chunk * row_bytes, self.padded // self.chunk
        index = np.full((self.slots, 2), 2**64 - 1, "<u8")
        index[:count, 0], index[:count, 1] = np.arange(count) * size, size
        return index.tobytes() + int(google_crc32c.value(index.tobytes())).to_bytes(4, "little")


@cache
def shards(rows: int) -> tuple[Shard, ...]:
    """The files of an array of so many rows: one, or full ones of `SHARD_ROWS` and one with the rest."""
    return tuple(_shard(rows, number) for number in range(shard_count(rows)))


def last_shard(rows: int) -> Shard:
    """The last file of an array of so many rows."""
    return _shard(rows, shard_count(rows) - 1)


def _shard(rows: int, number: int) -> Shard:
    chunk, start = chunk_rows(rows), number * SHARD_ROWS
    slots = (SHARD_ROWS if rows > SHARD_ROWS else padded_rows(rows)) // chunk
    return Shard(number, start, min(SHARD_ROWS, rows - start), chunk, slots)


def body_path(entry: Path, name: str, ndim: int, shard: int = 0) -> Path:
    """A shard file of an array, which begins with the rows themselves."""
    return entry / body_name(name, ndim, shard)


def body_name(name: str, ndim: int, shard: int = 0) -> str:
    """Where it lies in its entry."""
    return f"{name}/c.{shard}{'.0' * (ndim - 1)}"


def chunk_rows(rows: int) -> int:
    """Rows of an inner chunk: 65,536, or the whole array where that is shorter."""
    return min(CHUNK_ROWS, rows)


def padded_rows(rows: int) -> int:
    """Rows in whole chunks."""
    return -(-rows // chunk_rows(rows)) * chunk_rows(rows)


def shard_bytes(rows: int, row_bytes: int) -> int:
    """Size of all files of an array."""
    slots = (SHARD_ROWS if rows > SHARD_ROWS else padded_rows(rows)) // chunk_rows(rows)
    return padded_rows(rows) * row_bytes + shard_count(rows) * (16 * slots + 4)


def shard_count(rows: int) -> int:
    """Number of files of an array."""
    return -(-rows // SHARD_ROWS)


def piece_count(rows: int) -> int:
    """Number of MD5s of an array."""
    return -(-rows // PIECE_ROWS)


def piece_md5s(rows: bytes | memoryview, row_bytes: int) -> list[str]:
    """MD5 of every piece of rows that begin with one: 32 hexadecimal digits each."""
    size = PIECE_ROWS * row_bytes
    return [hashlib.md5(rows[at : at + size], usedforsecurity=False).hexdigest() for at in range(0, len(rows), size)]


def array_metadata(spec: ArraySpec, rows: int) -> dict[str, Any]:
    """`zarr.json` of an array, as the Zarr v3 specification and its sharding codec define it."""
    little_endian = {"name": "bytes", "configuration": {"endian": "little"}}
    sharding = {
        "chunk_shape": [chunk_rows(rows), *spec.columns],
        "codecs": [little_endian],
        "index_codecs": [little_endian, {"name": "crc32c"}],
        "index_location": "end",
    }
    in_shard = [min(padded_rows(rows), SHARD_ROWS), *spec.columns]
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [rows, *spec.columns],
        "data_type": np.dtype(spec.dtype).name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": in_shard}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": "NaN" if np.isnan(spec.fill_value) else spec.fill_value,
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "dimension_names": list(spec.dims),
        "attributes": dict(spec.attributes),
    }


def group_metadata(attributes: dict[str, Any]) -> dict[str, Any]:
    """`zarr.json` of a group."""
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def metadata_bytes(metadata: dict[str, Any]) -> bytes:
    """A `zarr.json` as it is written: a function of its content, so that every byte of it can be checked."""
    return json.dumps(metadata, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
