"""An exported dataset: a tar file whose every byte but the packed numbers follows from its manifests.

    headstart-export.json                   sealed: the ref, and every entry with the seal of its manifest
    <stage>/<key>/zarr.json                 the manifest, as in the store
    <stage>/<key>/<array>/zarr.json         the array in the compressed profile (cache/compress.py) …
    <stage>/<key>/<array>/c.<block>[.…]     … and its chunks, block by block, each with all columns

Entries come in the order of the stages, then of their keys. Any tar program unpacks it, and Zarr reads what comes out.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from pydantic import ValidationError

from cache.compress import DTYPES, block_count, chunk_names, packed_limit, packed_metadata
from cache.contents import Id, closure
from cache.entries import Entry
from cache.json_types import fault
from cache.keys import Components
from cache.layout import CARRIED, FORMAT, STAGES, ArraySpec, array_spec, chunk_rows, group_metadata, metadata_bytes
from cache.members import Members, Span
from cache.recipes import validate_recipe
from cache.schema import entry_fault, stage_fault
from cache.seal import sealed, unsealed

EXPORT_FORMAT = "headstart-export/1"
INDEX = "headstart-export.json"
JSON_BYTES = 64 * 2**20  # of the index, or of a manifest, at most
_KEY = re.compile(r"[0-9a-f]{32}")
_ARRAY_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
_ROW_BYTES = 4096  # a block of rows is held in memory: 256 MiB at most
_INDEX = {
    "format": str,
    "ref": {"name": str, "dataset": _KEY, "recipe": dict, "sources": {str: {str: str}}},
    "entries": [{"stage": str, "key": _KEY, "manifest": _KEY}],
}


@dataclass(frozen=True)
class PackedEntry:
    """An entry in an archive: its manifest without seal, and where its chunks are, by array and block of rows."""

    manifest: dict[str, Any]
    chunks: dict[str, list[list[Span]]] = field(default_factory=dict)

    @property
    def id(self) -> Id:
        """Stage and key."""
        return self.manifest["stage"], self.manifest["key"]

    @property
    def components(self) -> Components:
        """What the key is made from."""
        return Components(**self.manifest["components"])

    @property
    def bytes(self) -> int:
        """Size of the array files in a store."""
        return sum(int(array["bytes"]) for array in self.manifest["arrays"].values())


@dataclass(frozen=True)
class Archive:
    """What an archive holds. `ref`: {"name", "dataset", "recipe", "sources"}."""

    ref: dict[str, Any]
    entries: list[PackedEntry]


def read_archive(path: Path, file: BinaryIO) -> Archive:
    """Check everything but the numbers, and find out where they are. Raises StoreError naming file and member."""
    members = Members(path, file)
    ref, seals = _read_index(members)
    entries = []
    for one, seal in seals.items():
        entries.append(read_entry(members, one))
        if sealed(entries[-1].manifest)["md5"] != seal:
            raise members.wrong(f"{'/'.join(one)}/zarr.json", f"it is not the manifest that {INDEX} lists")
    members.end()
    known = {one.id: Entry(Path(*one.id), one.manifest) for one in entries}
    if wrong := closure_fault(ref["dataset"], known):
        raise members.wrong(INDEX, wrong)
    return Archive(ref, entries)


def closure_fault(dataset: str, known: Mapping[Id, Entry]) -> str:
    """What a dataset was made from and is not known, or is known and it was not made from; "" for nothing."""
    needed = closure(("datasets", dataset), known)
    for one in in_order(needed - known.keys())[:1]:
        return f"{'/'.join(one)} is missing, which the dataset was made from"
    for one in in_order(known.keys() - needed)[:1]:
        return f"the dataset was not made from {'/'.join(one)}"
    return ""


def index_bytes(ref: Mapping[str, Any], seals: Mapping[Id, str]) -> bytes:
    """The first member. `seals`: the entries in their order, each with the seal of its manifest."""
    listed = [{"stage": stage, "key": key, "manifest": seal} for (stage, key), seal in seals.items()]
    kept = {name: ref[name] for name in ("name", "dataset", "recipe", "sources")}
    return metadata_bytes(sealed({"format": EXPORT_FORMAT, "ref": kept, "entries": listed}))


def manifest_bytes(manifest: Mapping[str, Any]) -> bytes:
    """`zarr.json` of an entry, from its manifest without seal."""
    return metadata_bytes(group_metadata(sealed(dict(manifest))))


def array_specs(manifest: Mapping[str, Any]) -> Iterator[tuple[ArraySpec, int]]:
    """The arrays of an entry in the order of its manifest, each with its number of rows."""
    for name, array in manifest["arrays"].items():
        yield array_spec(name, array), array["shape"][0]


def in_order(ids: set[Id]) -> list[Id]:
    """Entries in the order in which an archive has them."""
    return sorted(ids, key=lambda one: (STAGES.index(one[0]), one[1]))


def ref_fault(ref: Mapping[str, Any]) -> str:
    """What keeps a ref from being that of an archive; "" for nothing."""
    try:
        recipe = validate_recipe(ref["recipe"])
    except ValidationError as error:
        first = error.errors()[0]
        return f"recipe.{'.'.join(map(str, first['loc']))}: {first['msg'].removeprefix('Value error, ')}"
    return "" if recipe.name == ref["name"] else f"it names {ref['name']!r}, but its recipe {recipe.name!r}"


def manifest_fault(manifest: dict[str, Any], one: Id) -> str:
    """What keeps a manifest (without seal) from being that of an entry in an archive; "" for nothing."""
    if manifest.get("format") != FORMAT:
        return f"its format is {manifest.get('format')!r}, and this version reads {FORMAT}"
    arrays = manifest.get("arrays")
    for name, array in arrays.items() if isinstance(arrays, dict) else ():
        if wrong := _array_fault(name, array):
            return f"arrays.{name[:40]}: {wrong}"
    if wrong := entry_fault(one[0], manifest) or stage_fault(one[0], manifest):
        return wrong
    named = manifest["components"]
    components = Components(named["stage"], named["version"], named["fields"], named["inputs"])
    said = (manifest["stage"], manifest["stage_version"], manifest["key"])
    if components.as_dict() != named or said != (components.stage, components.version, components.key):
        return "its key, stage or version is not that of its components"
    return "" if (components.stage, components.key) == one else f"it is that of {components.stage}/{components.key}"


def _array_fault(name: str, array: Any) -> str:
    """What is impossible about an array, whatever it means. Nothing has been computed with its shape before."""
    if not _ARRAY_NAME.fullmatch(name):
        return "that is no name of an array"
    if wrong := fault(array, {"shape": [int], "dtype": str}):
        return wrong
    shape, dtype = array["shape"], array["dtype"]
    if dtype not in DTYPES:
        return f"dtype {dtype[:40]!r} is not among {', '.join(DTYPES)}"
    if not 1 <= len(shape) <= 4 or not all(1 <= length < 2**40 for length in shape):
        return f"shape {str(shape[:5])[:100]} is not possible"
    row = math.prod(shape[1:]) * np.dtype(dtype).itemsize
    return "" if row <= _ROW_BYTES else f"a row has {row:,} bytes, and {_ROW_BYTES:,} are the most that are exported"


def _read_index(members: Members) -> tuple[dict[str, Any], dict[Id, str]]:
    """The ref, and the seal of every entry's manifest, in order."""
    data = members.content(INDEX, JSON_BYTES)
    try:
        index = unsealed(json.loads(data))
        if index.get("format") != EXPORT_FORMAT:
            raise ValueError(f"its format is {index.get('format')!r}, and this version reads {EXPORT_FORMAT}")
        if wrong := fault(index, _INDEX) or ref_fault(index["ref"]):
            raise ValueError(wrong)
        ref, seals = index["ref"], {(one["stage"], one["key"]): one["manifest"] for one in index["entries"]}
        if unknown := {stage for stage, _ in seals} - set(CARRIED):
            raise ValueError(f"there is no stage {min(unknown)[:40]!r}")
        if list(seals) != in_order(set(seals)) or index_bytes(ref, seals) != data:
            raise ValueError("it is not written as this version writes it")
    except (ValueError, RecursionError) as error:
        raise members.wrong(INDEX, str(error)) from None
    return ref, seals


def read_entry(members: Members, one: Id) -> PackedEntry:
    """The members of an entry, which come next, all but the numbers checked. Raises ArchiveError."""
    folder = "/".join(one)
    name = f"{folder}/zarr.json"
    data = members.content(name, JSON_BYTES)
    try:
        group = json.loads(data)
        manifest = unsealed(group.get("attributes") if isinstance(group, dict) else None)
        if wrong := manifest_fault(manifest, one):
            raise ValueError(wrong)
        if manifest_bytes(manifest) != data:
            raise ValueError("it is not written as this version writes it")
    except (ValueError, RecursionError) as error:
        raise members.wrong(name, str(error)) from None
    entry = PackedEntry(manifest)
    for spec, rows in array_specs(manifest):
        metadata = metadata_bytes(packed_metadata(spec, rows))
        name = f"{folder}/{spec.name}/zarr.json"
        if members.content(name, len(metadata)) != metadata:
            raise members.wrong(name, "it does not follow from the manifest")
        limit = packed_limit(spec.dtype, chunk_rows(rows))
        entry.chunks[spec.name] = [
            [members.span(f"{folder}/{spec.name}/{chunk}", limit) for chunk in chunk_names(spec, block)]
            for block in range(block_count(rows))
        ]
    return entry
