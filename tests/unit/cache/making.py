"""Entries, refs and damage for the tests of the store."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from cache import layout
from cache.files import write_atomically
from cache.keys import Components
from cache.layout import ArraySpec, body_path, group_metadata, metadata_bytes
from cache.seal import canonical_json, sealed, unsealed
from cache.writer import EntryWriter

ROOT = Path(__file__).parents[3]


@contextmanager
def child(code: str, *arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """Another Python process to talk with, which does not outlive the block."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def said(process: subprocess.Popen[str]) -> str:
    """The next line that it prints."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def make(store: Path, stage: str, name: str, inputs: dict[str, Any], rows: int = 0) -> str:
    """Publish an entry with `rows` int64 rows; its key."""
    components = Components(stage, 1, {"name": name}, inputs)
    with EntryWriter(store, components) as entry:
        if rows:
            entry.array(ArraySpec("x", "<i8", ("time",))).append(np.zeros(rows, np.int64))
        entry.publish()
    return components.key


def point(store: Path, name: str, dataset: str, updated: str = "2020-01-01T00:00:00+00:00") -> Path:
    """Write a ref; its path."""
    ref = {
        "name": name,
        "dataset": dataset,
        "recipe": {"name": name},
        "data_dir": "/data",
        "sources": {},
        "updated": updated,
    }
    path = store / f"refs/{name}.json"
    write_atomically(path, canonical_json(sealed(ref)))
    return path


def change_manifest(entry: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what a manifest says and seal it again, as a builder with a fault would have written it."""
    manifest = unsealed(json.loads((entry / "zarr.json").read_bytes())["attributes"])
    change(manifest)
    (entry / "zarr.json").write_bytes(metadata_bytes(group_metadata(sealed(manifest))))


def overwrite(entry: Path, array: str, row: Any, value: Any) -> Path:
    """Write other numbers into an array whose manifest stays as it is; the file."""
    described = json.loads((entry / "zarr.json").read_bytes())["attributes"]["arrays"][array]
    path = body_path(entry, array, len(described["shape"]))
    rows = np.memmap(path, described["dtype"], mode="r+", shape=tuple(described["shape"]))
    rows[row] = value
    rows.flush()
    return path


def md5s_of_rows(entry: Path, name: str, described: dict[str, Any]) -> list[str]:
    """The MD5 of every piece of an array's rows, which lie in files of 131,072; whatever follows them is left out."""
    rows, *columns = described["shape"]
    width, size = int(np.prod([np.dtype(described["dtype"]).itemsize, *columns])), layout.PIECE_ROWS
    whole = b"".join(
        body_path(entry, name, 1 + len(columns), number).read_bytes()[: min(131_072, rows - first) * width]
        for number, first in enumerate(range(0, rows, 131_072))
    )
    assert len(whole) == rows * width
    return [hashlib.md5(whole[at * width : (at + size) * width]).hexdigest() for at in range(0, rows, size)]


def set_built(entry: Path, at: str) -> None:
    """Let an entry have been built at an instant (ISO 8601)."""
    change_manifest(entry, lambda manifest: manifest["built"].update(at=at))


def flip(path: Path, bit: int) -> None:
    """Flip one bit of a file."""
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
