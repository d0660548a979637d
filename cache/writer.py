"""Writes one entry: into a temporary sibling directory, synced, then renamed. Readers never see part of it."""

import hashlib
import os
import shutil
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.files import sync
from cache.keys import Components
from cache.layout import (
    FORMAT,
    VERSION,
    ArraySpec,
    array_metadata,
    body_path,
    group_metadata,
    metadata_bytes,
    padded_rows,
    shard_bytes,
    shard_index,
)
from cache.reader import entry_path
from cache.seal import sealed


class ArrayWriter:
    """Appends blocks of rows to the shard file of one array and hashes them on the way."""

    def __init__(self, entry: Path, spec: ArraySpec) -> None:
        self.spec = spec
        self.rows = 0
        self.md5 = hashlib.md5(usedforsecurity=False)
        path = body_path(entry, spec.name, 1 + len(spec.columns))
        path.parent.mkdir(parents=True)
        self._file = path.open("wb")

    def append(self, block: NDArray[Any]) -> None:
        """Add rows: `block` is [n, *columns] of the array's dtype."""
        assert block.dtype == np.dtype(self.spec.dtype), (block.dtype, self.spec)
        assert block.shape[1:] == self.spec.columns, (block.shape, self.spec)
        self._write(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)
        self.rows += len(block)

    def finish(self) -> dict[str, Any]:
        """Pad, add the index, sync and close; the array's part of the manifest."""
        spec = self.spec
        padding = padded_rows(self.rows) - self.rows
        self._write(np.full((padding, *spec.columns), spec.fill_value, spec.dtype).tobytes())
        self._write(shard_index(self.rows, spec.row_bytes))
        self._file.flush()
        os.fsync(self._file.fileno())
        self.close()
        return {
            "shape": [self.rows, *spec.columns],
            "dtype": spec.dtype,
            "dims": list(spec.dims),
            "attributes": dict(spec.attributes),
            "bytes": shard_bytes(self.rows, spec.row_bytes),
            "md5": self.md5.hexdigest(),
        }

    def close(self) -> None:
        """Close the file; what was appended stays as it is."""
        with suppress(OSError):  # a full disk has been reported by then, or fsync will
            self._file.close()

    def _write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self.md5.update(data)


class EntryWriter:
    """A new entry under construction: a context manager for use inside `entry_lock`. Unpublished, it leaves nothing."""

    def __init__(self, store: Path, components: Components) -> None:
        self.components = components
        self._final = entry_path(store, components.stage, components.key)
        self._temporary = self._final.with_name(f".{components.key}.partial")
        self._arrays: list[ArrayWriter] = []
        self._began = time.monotonic()

    def __enter__(self) -> "EntryWriter":
        for left_over in (self._temporary, self._final):  # we hold the lock, and there is no entry: a killed builder's
            shutil.rmtree(left_over, ignore_errors=True)
        self._temporary.mkdir(parents=True)
        return self

    def array(self, spec: ArraySpec) -> ArrayWriter:
        """Begin an array."""
        writer = ArrayWriter(self._temporary, spec)
        self._arrays.append(writer)
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
        for path in [*self._temporary.rglob("*"), self._temporary]:
            if path.is_dir() or path.name == "zarr.json":  # the bodies are synced already
                sync(path)
        self._temporary.rename(self._final)
        sync(self._final.parent)

    def __exit__(self, *failure: object) -> None:
        for writer in self._arrays:
            writer.close()
        shutil.rmtree(self._temporary, ignore_errors=True)


def _write_metadata(directory: Path, metadata: dict[str, Any]) -> None:
    (directory / "zarr.json").write_bytes(metadata_bytes(metadata))
