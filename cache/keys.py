"""Content addresses: MD5 over canonical JSON of everything that decides an entry's bytes."""

import hashlib
import json
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache.files import write_atomically

# The file system's clock may lag behind the process's; a file changed this recently is hashed again next time.
_SETTLED_NS = 50_000_000


def canonical_json(value: Any) -> bytes:
    """UTF-8 JSON with sorted keys and no white space; floats in Python's shortest round-trip form, NaN refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


@dataclass(frozen=True)
class Components:
    """Everything that decides the bytes of one entry. Its MD5 is the entry's name."""

    stage: str
    version: int
    fields: dict[str, Any]
    inputs: dict[str, Any]

    @property
    def key(self) -> str:
        """MD5 of the components, 32 hexadecimal digits."""
        return hashlib.md5(canonical_json(self.as_dict()), usedforsecurity=False).hexdigest()

    def as_dict(self) -> dict[str, Any]:
        """As kept in the manifest."""
        return {"stage": self.stage, "version": self.version, "fields": self.fields, "inputs": self.inputs}


def file_md5(path: Path) -> str:
    """MD5 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def source_md5(path: Path, memo_dir: Path) -> str:
    """MD5 of a source file, remembered in `memo_dir` by path, size, modification time and inode.

    Raises OSError when the file cannot be read; a memo that cannot be written is done without.
    """
    path = Path(os.path.realpath(path))
    stat = path.stat()
    identity = [str(path), stat.st_size, stat.st_mtime_ns, stat.st_ino]
    memo = memo_dir / f"{hashlib.md5(str(path).encode(), usedforsecurity=False).hexdigest()}.json"
    try:
        known = json.loads(memo.read_bytes())
        if known["file"] == identity and stat.st_mtime_ns + _SETTLED_NS < known["hashed_at_ns"]:
            return str(known["md5"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    hashed_at_ns = time.time_ns()
    digest = file_md5(path)
    after = path.stat()
    if [str(path), after.st_size, after.st_mtime_ns, after.st_ino] == identity:
        with suppress(OSError):
            write_atomically(memo, canonical_json({"file": identity, "hashed_at_ns": hashed_at_ns, "md5": digest}))
    return digest
