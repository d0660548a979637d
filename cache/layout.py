"""How one array lies on disk: a Zarr v3 array of a single shard whose file begins with the plain C-order array.

    <group>/zarr.json                 the manifest, in the group's attributes
    <group>/<array>/zarr.json         shape, dtype, codecs, dimension names
    <group>/<array>/c/0[/0]           body ‖ padding to whole chunks ‖ index: (offset, nbytes) uint64 a chunk ‖ crc32c

Chunks divide the first axis only, so that Zarr's Morton order of inner chunks is C order. All of it is written by us:
the body because appending to one shard through zarr-python rewrites it every time, the metadata because it is little
and importing zarr-python is not. The tests read it with zarr-python, tensorstore and xarray.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

VERSION = "0.1.0"
FORMAT = "headstart/4"
CARRIED = ("bars", "recordings", "splits", "statistics", "streams", "windows", "datasets")  # to other stores
STAGES = (*CARRIED, "compiled")  # what torch.compile has made is read with pickle, and stays on its machine
SOURCES = ("bars", "recordings")  # what source files held; training needs none of it …
FITTED = ("splits", "statistics")  # … nor of what was found out about all of it
SEQUENCES = "sequences"  # `components.fields.kind` of entries made of recordings; those made of bars have no kind
SEQUENCE = "sequence"  # stands where bars have a timeframe: recordings make one stream …
ALL_FOLDS = "all"  # … which serves all folds where nothing in it was fitted
CHUNK_ROWS = 65_536
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
        return int(np.dtype(self.dtype).itemsize * np.prod(self.columns, dtype=np.int64))

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


def body_path(entry: Path, name: str, ndim: int) -> Path:
    """The shard file of an array, which begins with the array itself."""
    return entry / name / "c" / "/".join("0" * ndim)


def chunk_rows(rows: int) -> int:
    """Rows of an inner chunk: 65,536, or the whole array where that is shorter."""
    return min(CHUNK_ROWS, rows)


def padded_rows(rows: int) -> int:
    """Rows of the shard: whole chunks."""
    return -(-rows // chunk_rows(rows)) * chunk_rows(rows)


def shard_bytes(rows: int, row_bytes: int) -> int:
    """Size of the shard file: padded body, 16 bytes of index a chunk, 4 bytes of checksum."""
    return padded_rows(rows) * row_bytes + padded_rows(rows) // chunk_rows(rows) * 16 + 4


def shard_index(rows: int, row_bytes: int) -> bytes:
    """The index that ends a shard (Zarr v3 sharding codec: uint64 offset and length a chunk, then their crc32c)."""
    import google_crc32c  # here, because the training process reads this module and never writes

    size = chunk_rows(rows) * row_bytes
    count = padded_rows(rows) // chunk_rows(rows)
    index = np.stack([np.arange(count, dtype="<u8") * size, np.full(count, size, "<u8")], axis=1).tobytes()
    return index + int(google_crc32c.value(index)).to_bytes(4, "little")


def array_metadata(spec: ArraySpec, rows: int) -> dict[str, Any]:
    """`zarr.json` of an array, as the Zarr v3 specification and its sharding codec define it."""
    little_endian = {"name": "bytes", "configuration": {"endian": "little"}}
    sharding = {
        "chunk_shape": [chunk_rows(rows), *spec.columns],
        "codecs": [little_endian],
        "index_codecs": [little_endian, {"name": "crc32c"}],
        "index_location": "end",
    }
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [rows, *spec.columns],
        "data_type": np.dtype(spec.dtype).name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [padded_rows(rows), *spec.columns]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
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
    return json.dumps(metadata, indent=2, ensure_ascii=False, allow_nan=False).encode()
