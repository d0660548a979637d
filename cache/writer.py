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
from cache.files import copy_beginning, share, sync
from cache.keys import Components
from cache.layout import (
    FORMAT,
    PIECE_ROWS,
    SHARD_ROWS,
    VERSION,
    ArraySpec,
    array_metadata,
    body_path,
    group_metadata,
    last_shard,
    metadata_bytes,
    shard_bytes,
)
from cache.seal import sealed


class ArrayWriter:
    """Appends blocks of rows to the shard files of one array and hashes them on the way."""

    def __init__(self, entry: Path, spec: ArraySpec, synced: bool) -> None:
        self.spec = spec
        self.rows = 0
        self._entry, self._synced = entry, synced
        self._md5s: list[str] = []  # of full pieces
        self._md5 = _new_md5()  # of the rows after them
        self._file: BinaryIO | None = None
        (entry / spec.name).mkdir()

    def append(self, block: NDArray[Any]) -> None:
        """Add rows: `block` is [n, *columns] of the array's dtype."""
        assert block.dtype == np.dtype(self.spec.dtype), (block.dtype, self.spec)
        assert block.shape[1:] == self.spec.columns, (block.shape, self.spec)
        data = np.ascontiguousarray(block).reshape(-1).view(np.uint8).data
        while data:
            part = data[: (PIECE_ROWS - self.rows % PIECE_ROWS) * self.spec.row_bytes]
            self._write(part)
            self._md5.update(part)
            self.rows += len(part) // self.spec.row_bytes
            data = data[len(part) :]
            if self.rows % PIECE_ROWS == 0:
                self._finish_piece()
            if self.rows % SHARD_ROWS == 0:
                self._finish_shard()

    def begin_with(self, earlier: Entry) -> None:
        """Take the rows of an entry that this one continues: its full shards are shared, the other rows copied.

        The MD5s of full pieces stay as they are, so that of damage in them nothing is hidden. Raises StoreError when
        there is any in the rows after them, whose MD5 will be another.
        """
        assert not self.rows, self.spec
        rows, md5s = earlier.shape(self.spec.name)[0], earlier.manifest["arrays"][self.spec.name]["md5"]
        for number in range(rows // SHARD_ROWS):
            share(self._path(number, earlier.path), self._path(number, self._entry))
        kept = rows // PIECE_ROWS * PIECE_ROWS
        self.rows, self._md5s = kept, md5s[: kept // PIECE_ROWS]
        if not rows % SHARD_ROWS:
            return
        path = self._path(rows // SHARD_ROWS, earlier.path)
        begin = kept % SHARD_ROWS * self.spec.row_bytes
        copy_beginning(path, self._new_file(), begin)
        with path.open("rb") as file:
            file.seek(begin)
            rest = file.read((rows - kept) * self.spec.row_bytes)
        self.append(np.frombuffer(rest, self.spec.dtype).reshape(-1, *self.spec.columns))
        if rows > kept and self._md5.hexdigest() != md5s[-1]:
            raise StoreError(
                f"{path}: damaged, its MD5 is not that of the manifest. `bin/cache verify --repair` removes its "
                "entry, and bin/build-cache then makes all anew"
            )

    def finish(self) -> dict[str, Any]:
        """Pad, add the index, sync and close; the array's part of the manifest."""
        spec = self.spec
        if self.rows % PIECE_ROWS:
            self._finish_piece()
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

    def _path(self, shard: int, entry: Path) -> Path:
        return body_path(entry, self.spec.name, 1 + len(self.spec.columns), shard)

    def _new_file(self) -> BinaryIO:
        self._file = self._path(self.rows // SHARD_ROWS, self._entry).open("wb")
        return self._file

    def _write(self, data: bytes | memoryview) -> None:
        (self._file or self._new_file()).write(data)

    def _finish_piece(self) -> None:
        self._md5s.append(self._md5.hexdigest())
        self._md5 = _new_md5()

    def _finish_shard(self) -> None:
        self._write(last_shard(self.rows).ending(self.spec))
        assert self._file
        self._file.flush()
        if self._synced:
            os.fsync(self._file.fileno())
        self._file.close()
        self._file = None


def _new_md5() -> "hashlib._Hash":
    return hashlib.md5(usedforsecurity=False)


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
            if left_over.exists():
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
        error = failure[1]
        if isinstance(error, OSError) and error.filename is None:  # as where writing to an open file failed
            error.filename = str(self._final)
        for writer in self._arrays:
            writer.close()
        if self._temporary.exists():
            shutil.rmtree(self._temporary, ignore_errors=True)


def _write_metadata(directory: Path, metadata: dict[str, Any]) -> None:
    (directory / "zarr.json").write_bytes(metadata_bytes(metadata))
