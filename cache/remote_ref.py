"""What a remote store says of a dataset: the ref, and every entry that it needs. Nothing else has to be listed."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cache.archive import in_order, ref_fault
from cache.contents import Id
from cache.entries import Entry
from cache.json_types import fault
from cache.layout import CARRIED
from cache.seal import canonical_json, content_md5, sealed, unsealed

REMOTE_FORMAT = "headstart-remote/1"
_KEY = re.compile(r"[0-9a-f]{32}")
_RECORD = {
    "format": str,
    "ref": {"name": str, "dataset": _KEY, "recipe": dict, "sources": {str: {str: str}}},
    "entries": [{"stage": str, "key": _KEY, "bytes": int, "arrays": _KEY}],
}


@dataclass(frozen=True)
class Listed:
    """An entry: the size of its array files in a store, and the MD5 of what its manifest says of the arrays.

    Whoever built the entry, and when, makes no difference to that.
    """

    id: Id
    bytes: int
    arrays: str

    @property
    def object(self) -> str:
        """Where it lies in a remote store."""
        return f"{'/'.join(self.id)}.tar"


@dataclass(frozen=True)
class RemoteRef:
    """`ref`: {"name", "dataset", "recipe", "sources"}."""

    ref: dict[str, Any]
    entries: list[Listed]


def ref_object(name: str) -> str:
    """Where the ref of a dataset lies in a remote store."""
    return f"refs/{name}.json"


def listed(entry: Entry) -> Listed:
    """What is said of an entry."""
    return Listed((entry.manifest["stage"], entry.key), entry.bytes, content_md5(entry.manifest["arrays"]))


def record_bytes(ref: Mapping[str, Any], entries: Iterable[Listed]) -> bytes:
    """The object. The same dataset gives the same bytes."""
    kept = {name: ref[name] for name in ("name", "dataset", "recipe", "sources")}
    rows = [{"stage": one.id[0], "key": one.id[1], "bytes": one.bytes, "arrays": one.arrays} for one in entries]
    return canonical_json(sealed({"format": REMOTE_FORMAT, "ref": kept, "entries": rows}))


def parse_record(data: bytes, name: str) -> RemoteRef:
    """What the object says that should be of the dataset `name`. Raises ValueError saying what is wrong."""
    try:
        record = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("it is no JSON") from None
    if not isinstance(record, dict) or record.get("format") != REMOTE_FORMAT:
        raise ValueError(f"it is no ref of a remote store in the format {REMOTE_FORMAT}")
    record = unsealed(record)
    if wrong := fault(record, _RECORD) or ref_fault(record["ref"]):
        raise ValueError(wrong)
    if record["ref"]["name"] != name:
        raise ValueError(f"it is the ref of {record['ref']['name']}")
    entries = [Listed((one["stage"], one["key"]), one["bytes"], one["arrays"]) for one in record["entries"]]
    ids = [one.id for one in entries]
    if not {stage for stage, _ in ids} <= set(CARRIED) or ids != in_order(set(ids)):
        raise ValueError("its entries are not listed as this version lists them")
    return RemoteRef(record["ref"], entries)
