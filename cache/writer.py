"""Writes one entry: into a temporary sibling directory, synced, then renamed. Readers never see part of it.

Who writes many entries has them synced all together (cache.durable).
"""

import hashlib
import os
import shutil
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from cache.entries import Entry, StoreError, entry_path
from cache.files import share, sync
from cache.keys import Components
from cache.layout import (
    FORMAT,
    SHARD_ROWS,
    VERSION,
    ArraySpec,
    array_metadata,
    body_path,
    group_metadata,
    metadata_bytes,
    shard_bytes,
    shards,
)
from cache.seal import sealed


class ArrayWriter:
    """Appends blocks of rows to the shard files of one array and hashes them on the way."""

    def __init__(self, entry: Path, spec: ArraySpec, synced: bool) -> None:
        self.spec = spec
        self.rows = 0
        self._entry, self._synced = entry, synced
        self._md5s: list[str] = []  # of the shards that are done
        self._file: BinaryIO | None = None

    def append(self, block: NDArray[Any]) -> None:
        """Add rows: `block` is [n, *columns] of the array's dtype."""
        assert block.dtype == np.dtype(self.spec.dtype), (block.dtype, self.spec)
        assert block.shape[1:] == self.spec.columns, (block.shape, self.spec)
        while len(block):
            part = block[: SHARD_ROWS * (1 + len(self._md5s)) - self.rows]
            self._write(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
            self.rows += len(part)
            block = block[len(part) :]
            if self.rows == SHARD_ROWS * (1 + len(self._md5s)):
                self._finish_shard()

    def begin_with(self, earlier: Entry) -> None:
        """Take the rows of an entry that this one continues: its full shards are shared, the other rows copied.

        Raises StoreError when those are damaged: the new MD5 would hide it. Of full shards the MD5 stays.
        """
        assert not self.rows, self.spec
        name, rows = self.spec.name, earlier.shape(self.spec.name)[0]
        for shard, md5 in enumerate(earlier.manifest["arrays"][name]["md5"][: rows // SHARD_ROWS]):
            path = self._path(shard)
            path.parent.mkdir(parents=True, exist_ok=True)
            share(body_path(earlier.path, name, 1 + len(self.spec.columns), shard), path)
            self._md5s.append(md5)
            self.rows += SHARD_ROWS
        if rows > self.rows:
            path = body_path(earlier.path, name, 1 + len(self.spec.columns), rows // SHARD_ROWS)
            data = path.read_bytes()
            if hashlib.md5(data, usedforsecurity=False).hexdigest() != earlier.manifest["arrays"][name]["md5"][-1]:
                raise StoreError(
                    f"{path}: damaged, its MD5 is not that of the manifest. `bin/cache verify --repair` removes its "
                    "entry, and bin/build-cache then makes all anew"
                )
            width = self.spec.row_bytes // np.dtype(self.spec.dtype).itemsize
            flat = np.frombuffer(data, self.spec.dtype, (rows - self.rows) * width)
            self.append(flat.reshape(-1, *self.spec.columns))

    def finish(self) -> dict[str, Any]:
        """Pad, add the index, sync and close; the array's part of the manifest."""
        spec = self.spec
        if self._file:
            self._finish_shard()
        return {
            "shape": [self.rows, *spec.columns],
            "dtype": spec.dtype,
            "dims": list(spec.dims),
            "attributes": dict(spec.attributes),
            "bytes": shard_bytes(self.rows, spec.row_bytes),
            "md5": self._md5s,
        }

    def close(self) -> None:
        """Close the file; what was appended stays as it is."""
        if self._file:
            with suppress(OSError):  # a full disk has been reported by then, or fsync will
                self._file.close()
            self._file = None

    def _path(self, shard: int) -> Path:
        return body_path(self._entry, self.spec.name, 1 + len(self.spec.columns), shard)

    def _write(self, data: bytes | memoryview) -> None:
        if not self._file:
            path = self._path(len(self._md5s))
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("wb")
            self._md5 = hashlib.md5(usedforsecurity=False)
        self._file.write(data)
        self._md5.update(data)

    def _finish_shard(self) -> None:
        spec, shard = self.spec, shards(self.rows)[-1]
        self._write(np.full((shard.padded - shard.rows, *spec.columns), spec.fill_value, spec.dtype).tobytes())
        self._write(shard.index(spec.row_bytes))
        assert self._file
        self._file.flush()
        if self._synced:
            os.fsync(self._file.fileno())
        self._file.close()
        self._file = None
        self._md5s.append(self._md5.hexdigest())


class EntryWriter:
    """A new entry under construction: a context manager for use inside `entry_lock`. Unpublished, it leaves nothing.

    Where it is not to be `synced`, cache.durable.synced_at_the_end sees to that.
    """

    def __init__(self, store: Path, components: Components, synced: bool = True) -> None:
        self.components, self._synced = components, synced
        self._final = entry_path(store, components.stage, components.key)
        self._temporary = self._final.with_name(f".{components.key}.partial")
        self._arrays: list[ArrayWriter] = []
        self._began = time.monotonic()

    def __enter__(self) -> "EntryWriter":
        for left_over in (self._temporary, self._final):  # we hold the lock, and there is no entry: a killed builder's
            shutil.rmtree(left_over, ignore_errors=True)
        self._temporary.mkdir(parents=True)
        return self

    def array(self, spec: ArraySpec, earlier: Entry | None = None) -> ArrayWriter:
        """Begin an array, with all rows of that of an `earlier` entry which this one continues."""
        writer = ArrayWriter(self._temporary, spec, self._synced)
        self._arrays.append(writer)
        if earlier:
            writer.begin_with(earlier)
        return writer

    def publish(self, **details: Any) -> None:
        """Finish all arrays, write the metadata, the manifest last, and make the entry visible."""
        arrays = self._finish_arrays()
        manifest = {
            "format": FORMAT,
            "stage": self.components.stage,
            "stage_version": self.components.version,
            "key": self.components.key,
            "components": self.components.as_dict(),
            "arrays": arrays,
            **details,
            "built": {
                "at": datetime.now(UTC).isoformat(timespec="seconds"),
                "seconds": round(time.monotonic() - self._began, 3),
                "by": {"headstart": VERSION, "python": sys.version.split()[0], "numpy": np.__version__},
            },
        }
        self._reveal(manifest)

    def publish_as(self, manifest: dict[str, Any]) -> None:
        """Publish under a manifest made elsewhere. Raises ValueError naming the arrays that are not what it says."""
        wrong = [name for name, found in self._finish_arrays().items() if found != manifest["arrays"][name]]
        if wrong:
            raise ValueError(", ".join(wrong))
        self._reveal(manifest)

    def _finish_arrays(self) -> dict[str, Any]:
        arrays = {writer.spec.name: writer.finish() for writer in self._arrays}
        for writer in self._arrays:
            _write_metadata(self._temporary / writer.spec.name, array_metadata(writer.spec, writer.rows))
        return arrays

    def _reveal(self, manifest: dict[str, Any]) -> None:
        _write_metadata(self._temporary, group_metadata(sealed(manifest)))
        if self._synced:
            for path in [*self._temporary.rglob("*"), self._temporary]:
                if path.is_dir() or path.name == "zarr.json":  # the bodies are synced already
                    sync(path)
        self._temporary.rename(self._final)
        if self._synced:
            sync(self._final.parent)

    def __exit__(self, *failure: object) -> None:
        for writer in self._arrays:
            writer.close()
        shutil.rmtree(self._temporary, ignore_errors=True)


def _write_metadata(directory: Path, metadata: dict[str, Any]) -> None:
    (directory / "zarr.json").write_bytes(metadata_bytes(metadata))
