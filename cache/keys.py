"""Content addresses: MD5 over canonical JSON of everything that decides an entry's bytes."""

import hashlib
import json
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cache.seal import canonical_json, content_md5, sealed, unsealed
from configs.errors import UserError

# The file system's clock may lag behind the process's; a file changed this recently is hashed again next time.
_SETTLED_NS = 50_000_000

GONE = "no such file any more; put it back, or run the command again without it"


@dataclass(frozen=True)
class Components:
    """Everything that decides the bytes of one entry. Its MD5 is the entry's name."""

    stage: str
    version: int
    fields: dict[str, Any]
    inputs: dict[str, Any]

    @cached_property
    def key(self) -> str:
        """MD5 of the components, 32 hexadecimal digits."""
        return content_md5(self.as_dict())

    def as_dict(self) -> dict[str, Any]:
        """As kept in the manifest."""
        return {"stage": self.stage, "version": self.version, "fields": self.fields, "inputs": self.inputs}


def file_md5(path: Path) -> str:
    """MD5 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


Identity = tuple[str, int, int, int, int]  # real path, size, modification time in ns, inode, change time in ns


@dataclass(frozen=True)
class Fingerprint:
    """A source file's MD5 and the identity it had then; `touched`: its content is what it was, its identity is not."""

    md5: str
    identity: Identity
    touched: bool


def file_identity(path: Path) -> Identity:
    """What tells that a file may have changed. Raises OSError.

    The system sets the change time at every write, and nobody can set it back; where a file system keeps none (some
    network and foreign ones), content that changes with size and modification time kept is not noticed.
    """
    path = Path(os.path.realpath(path))
    stat = path.stat()
    return str(path), stat.st_size, stat.st_mtime_ns, stat.st_ino, stat.st_ctime_ns


def fingerprint(path: Path, memo_dir: Path) -> Fingerprint:
    """Fingerprint a source file; the MD5 is remembered in `memo_dir` by the file's identity.

    Raises OSError when the file cannot be read, UserError when it changes meanwhile; a memo that cannot be written is
    done without.
    """
    identity = file_identity(path)
    memo = memo_dir / f"{hashlib.md5(identity[0].encode(), usedforsecurity=False).hexdigest()}.json"
    known = recall(memo)
    if known.get("file") == list(identity) and max(identity[2], identity[4]) + _SETTLED_NS < known["hashed_at_ns"]:
        return Fingerprint(known["content"], identity, touched=False)
    hashed_at_ns = time.time_ns()
    digest = file_md5(path)
    check_unchanged(path, identity)
    remember(memo, {"file": list(identity), "hashed_at_ns": hashed_at_ns, "content": digest})
    return Fingerprint(digest, identity, known.get("content") == digest and known["file"] != list(identity))


def check_unchanged(path: Path, identity: Identity) -> None:
    """Raise UserError when a file is no longer what it was, or no longer there."""
    try:
        now = file_identity(path)
    except FileNotFoundError:
        raise UserError(f"{path}: {GONE}") from None
    if now != identity:
        raise UserError(f"{path}: changed while it was being read; run the command again when it is written")


def remember(memo: Path, record: dict[str, Any]) -> None:
    """Keep a record in the store. One that cannot be kept, or whose store is not there, is done without.

    It is not synced, nor replaced in one step: its seal tells of a part of it, which is done without too.
    """
    with suppress(OSError):
        if memo.parent.parent.is_dir():
            memo.parent.mkdir(exist_ok=True)
            memo.write_bytes(canonical_json(sealed(record)))


def recall(memo: Path) -> dict[str, Any]:
    """What was remembered there; nothing where it is damaged."""
    with suppress(OSError, ValueError):
        return unsealed(json.loads(memo.read_bytes()))
    return {}
