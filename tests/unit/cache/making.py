"""Entries, refs and damage for the tests of the store."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from cache.files import write_atomically
from cache.keys import Components
from cache.layout import ArraySpec, group_metadata, metadata_bytes
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


def set_built(entry: Path, at: str) -> None:
    """Let an entry have been built at an instant (ISO 8601)."""
    change_manifest(entry, lambda manifest: manifest["built"].update(at=at))


def flip(path: Path, bit: int) -> None:
    """Flip one bit of a file."""
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
