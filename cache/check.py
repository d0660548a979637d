"""Checks of one entry, array, ref or memo, down to the last bit.

Manifests, refs and memos carry their own MD5 and are written in one way only; an array's zarr.json is a function of the
manifest, and so is what follows the rows in its files; of the rows the manifest has the MD5s. So no byte of them
changes unseen.
"""

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

from cache.entries import entry_path
from cache.json_types import fault
from cache.layout import (
    FORMAT,
    PIECE_ROWS,
    ArraySpec,
    Shard,
    array_metadata,
    array_spec,
    body_path,
    group_metadata,
    metadata_bytes,
    shards,
)
from cache.schema import REF, entry_fault, stage_fault
from cache.seal import canonical_json, content_md5, unsealed

_BLOCK = 1 << 20
_CHANGED = "it has changed since it was written"
_REMAKE = "bin/cache verify --repair removes the entry, and the next bin/build-cache makes it again"


@dataclass(frozen=True)
class Finding:
    """Something damaged or missing. `drop` is what a repair removes; None where there is nothing to remove."""

    file: Path
    what: str
    remedy: str
    drop: Path | None = None

    def __str__(self) -> str:
        return f"{self.file}: {self.what}; {self.remedy}"


@dataclass(frozen=True)
class Body:
    """The file of an array, to be compared with what the manifest says of it."""

    entry: Path
    file: Path
    spec: ArraySpec
    shard: Shard
    md5s: tuple[str, ...]

    @property
    def size(self) -> int:
        """In bytes."""
        return self.shard.file_bytes(self.spec.row_bytes)


def check_entry(store: Path, stage: str, key: str) -> tuple[list[Finding], list[Body]]:
    """All of an entry but the content of its arrays: what is wrong, and the bodies still to be read.

    An entry with a damaged manifest has no bodies: what they should be is not known.
    """
    path, bodies = entry_path(store, stage, key), list[Body]()
    found = list(_entry_faults(path, stage, key, bodies))
    if bodies or not found:
        found += _strangers(path, {path / "zarr.json", *(b.file for b in bodies), *map(_metadata_path, bodies)})
    whole = {finding.file for finding in found}
    return found, [body for body in bodies if body.file not in whole]


def check_body(body: Body, advance: Callable[[int], object]) -> Finding | None:
    """The content of an array's file, read in blocks; `advance` hears of the bytes read."""
    try:
        what = _what_changed(body, advance)
        return Finding(body.file, what, _REMAKE, body.entry) if what else None
    except OSError as error:
        return unread(error, body.file, _REMAKE, body.entry)


def check_ref(path: Path) -> tuple[str, Finding | None]:
    """The key of the dataset that a ref points to; "" with what is wrong where it does not tell."""
    remedy = (
        "bin/cache verify --repair removes it, and bin/build-cache with its configuration, or importing its archive "
        "again, writes it again. Its entries count as unreferenced until then: do that before bin/cache prune"
    )
    try:
        ref, what = _record(path)
    except OSError as error:
        return "", unread(error, path, remedy, path)
    what = what or fault(ref, REF)
    if not what and (ref["name"], ref["recipe"]["name"]) != (path.stem, path.stem):
        what = f"it is the ref of {ref['name']}"
    return ("", Finding(path, what, remedy, path)) if what else (str(ref["dataset"]), None)


def check_memo(path: Path) -> Finding | None:
    """What the builder remembers of a source file."""
    remedy = "harmless: builds do without it and write it again; bin/cache verify --repair removes it"
    try:
        memo, what = _record(path)
    except OSError as error:
        return unread(error, path, remedy, path)
    if not what:
        if "file" in memo:
            name = hashlib.md5(str(memo["file"][0]).encode(), usedforsecurity=False).hexdigest()
        else:
            name = f"{content_md5(memo.get('of'))}-symbols"
        what = "" if name == path.stem else "it is of another source file"
    return Finding(path, what, remedy, path) if what else None


def unread(error: OSError, file: Path, remedy: str = "", drop: Path | None = None) -> Finding:
    """What is wrong with a file that cannot be read: lost, and `remedy` tells how it comes back, or only closed."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR):
        return Finding(file, "it is missing", remedy, drop)
    if error.errno == errno.EIO:
        return Finding(file, "the disk cannot read it", remedy, drop)
    why = (error.strerror or str(error)).lower()
    return Finding(file, f"it cannot be read ({why})", "nothing is known of it; see to that, and verify again")


def _entry_faults(path: Path, stage: str, key: str, bodies: list[Body]) -> Iterator[Finding]:
    """What is wrong but the content of arrays; `bodies` receives those of a manifest that can be trusted."""
    file = path / "zarr.json"
    try:
        manifest, what = _manifest(file.read_bytes(), stage, key)
    except OSError as error:
        yield unread(error, file, _REMAKE, path)
        return
    if what:
        yield Finding(file, what, _REMAKE, path)
        return
    for name, described in manifest["arrays"].items():
        spec, rows, metadata = array_spec(name, described), described["shape"][0], path / name / "zarr.json"
        try:
            if metadata.read_bytes() != metadata_bytes(array_metadata(spec, rows)):
                yield Finding(metadata, _CHANGED, _REMAKE, path)
        except OSError as error:
            yield unread(error, metadata, _REMAKE, path)
        for shard in shards(rows):
            md5s = tuple(described["md5"][piece] for piece in shard.pieces())
            body = Body(path, body_path(path, name, 1 + len(spec.columns), shard.number), spec, shard, md5s)
            bodies.append(body)
            try:
                found = body.file.stat().st_size
            except OSError as error:
                yield unread(error, body.file, _REMAKE, path)
            else:
                if found != body.size:
                    yield Finding(body.file, _other_size(found, body), _REMAKE, path)


def _manifest(content: bytes, stage: str, key: str) -> tuple[dict[str, Any], str]:
    """The manifest of an entry, and what is wrong with it."""
    try:
        attributes = json.loads(content)["attributes"]
        written_in = attributes["format"]
        sealed = "md5" in attributes  # not in the first formats
        manifest = unsealed(attributes) if sealed else attributes
        if written_in != FORMAT:
            return {}, f"it is in format {written_in}, and this version reads {FORMAT}"
        if not sealed or content != metadata_bytes(group_metadata(attributes)):
            return {}, _CHANGED
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}, _CHANGED
    if (manifest.get("stage"), manifest.get("key")) != (stage, key):
        return {}, f"it is the manifest of {manifest.get('stage')}/{manifest.get('key')}"
    if what := entry_fault(stage, manifest) or stage_fault(stage, manifest):
        return {}, f"it does not say what it should: {what}"
    components = manifest["components"]
    if content_md5(components) != key or (components["stage"], components["version"]) != (
        stage,
        manifest["stage_version"],
    ):
        return {}, "its components are not those that its key stands for"
    return manifest, ""


def _record(path: Path) -> tuple[dict[str, Any], str]:
    """A sealed record in a file of its own, and what is wrong with it."""
    content = path.read_bytes()
    try:
        record = json.loads(content)
        return (unsealed(record), "") if content == canonical_json(record) else ({}, _CHANGED)
    except (ValueError, RecursionError):
        return {}, _CHANGED


def _strangers(path: Path, known: set[Path]) -> Iterator[Finding]:
    closed: list[OSError] = []
    for folder, _, names in os.walk(path, onerror=closed.append):
        for name in sorted(names):
            if (file := Path(folder) / name) not in known:
                yield Finding(file, "it does not belong into the entry", "bin/cache verify --repair removes it", file)
    for error in closed:
        yield unread(error, Path(error.filename))


def _what_changed(body: Body, advance: Callable[[int], object]) -> str:
    """What of a file is not as it was written; "" for nothing."""
    spec, left = body.spec, body.shard.rows
    with body.file.open("rb", buffering=0) as file:
        if (size := os.fstat(file.fileno()).st_size) != body.size:
            return _other_size(size, body)
        for md5 in body.md5s:
            if _md5(file, min(left, PIECE_ROWS) * spec.row_bytes, advance) != md5:
                return "its rows have changed since they were written"
            left -= PIECE_ROWS
        ending = file.read()
    advance(len(ending))
    index = body.shard.index(spec.row_bytes)
    wanted = body.shard.ending(spec)
    if ending == wanted:
        return ""
    whole = {"padding": ending[: -len(index)] == wanted[: -len(index)], "shard index": ending.endswith(index)}
    changed = " and ".join(part for part, same in whole.items() if not same)
    return f"its {changed} changed since it was written; its rows are intact"


def _other_size(size: int, body: Body) -> str:
    return f"it has {size:,} bytes, not {body.size:,}"


def _metadata_path(body: Body) -> Path:
    return body.entry / body.spec.name / "zarr.json"


def _md5(file: FileIO, size: int, advance: Callable[[int], object]) -> str:
    """MD5 of the next `size` bytes of a file, read in blocks, so that memory stays as it is."""
    md5, left = hashlib.md5(usedforsecurity=False), size
    block = memoryview(bytearray(min(size, _BLOCK)))
    while left and (count := file.readinto(block[: min(left, _BLOCK)])):
        md5.update(block[:count])
        left -= count
        advance(count)
    return md5.hexdigest()
