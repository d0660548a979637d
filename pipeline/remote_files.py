"""Source files at URLs (s3://…, https://…), by fsspec: parquet only, read in pieces where it lies and never copied.

Credentials come from the environment, as cache.remote_url tells. Imported only where a recipe names a URL: fsspec is an
extra.
"""

import glob
import hashlib
import re
import time
from pathlib import Path
from typing import Any

import fsspec

from cache.keys import Fingerprint, Identity, recall, remember
from cache.remote_url import INSTALL, protocol_of
from cache.seal import content_md5
from configs.errors import UserError
from pipeline.files import SourceError, url_of

_BLOCK = 1 << 22


def find_remote(url: str) -> list[Path]:
    """The parquet files that a URL means: one, a folder of them, or a pattern. Sorted; raises SourceError for none."""
    system, path = _system(url)
    try:
        if glob.has_magic(path):
            found = system.glob(path)
        elif not url.endswith(".parquet") and system.isdir(path):
            found = system.glob(f"{path.rstrip('/')}/*.parquet")
        else:  # strict: a web server that cannot be reached is not one without the file
            strict = {"strict": True} if url.startswith("http") else {}
            found = [path] if system.exists(path, **strict) else []
    except Exception as error:  # every backend has its own
        raise _unreachable(url, error) from None
    if not found:
        raise SourceError(f"{url}: no such file, folder or pattern there")
    return [Path(system.unstrip_protocol(one)) for one in sorted(found)]


def remote_identity(path: Path) -> Identity:
    """What tells that a remote file may have changed: its size, and of its time and tag what the server has of them.

    Where that is a time in whole seconds, another content of the same size within the second is not noticed.
    """
    url = url_of(path)
    system, inner = _system(url)
    try:
        known: dict[str, Any] = system.info(inner)
    except FileNotFoundError as error:
        cause = error.__cause__  # of a web server everything comes as this
        if isinstance(cause, Exception) and getattr(cause, "status", None) not in (404, 410):
            raise _unreachable(url, cause) from None
        raise SourceError(f"{url}: no such file there") from None
    except Exception as error:
        raise _unreachable(url, error) from None
    tag = {name.lower(): str(value) for name, value in known.items() if name.lower() in _TELLING and value}
    return url, int(known.get("size") or 0), int(content_md5(tag)[:15], 16) if tag else 0, 0, 0


_TELLING = ("etag", "md5", "mtime", "last_modified", "lastmodified", "last-modified", "updated", "content-md5")


def remote_fingerprint(path: Path, memo_dir: Path) -> Fingerprint:
    """MD5 of a remote file's content, remembered by its identity where the server tells a tag or a time."""
    identity = remote_identity(path)
    memo = memo_dir / f"{content_md5(identity[0])}.json"
    known = recall(memo)
    if known.get("file") == list(identity) and identity[2]:
        return Fingerprint(known["content"], identity, touched=False)
    digest = hashlib.md5(usedforsecurity=False)
    hashed_at_ns = time.time_ns()
    try:
        with open_remote(path) as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except UserError:
        raise
    except Exception as error:
        raise _unreachable(identity[0], error) from None
    check_remote_unchanged(path, identity)
    remember(memo, {"file": list(identity), "hashed_at_ns": hashed_at_ns, "content": digest.hexdigest()})
    touched = known.get("content") == digest.hexdigest() and known["file"] != list(identity)
    return Fingerprint(digest.hexdigest(), identity, touched)


def check_remote_unchanged(path: Path, identity: Identity) -> None:
    """Raise UserError when a remote file is no longer what it was."""
    if remote_identity(path) != identity:
        raise UserError(f"{identity[0]}: changed while it was being read; run the command again when it is written")


def open_remote(path: Path) -> Any:
    """A remote file, opened to be read in pieces."""
    system, inner = _system(url_of(path))
    return system.open(inner, "rb", block_size=_BLOCK)


def _system(url: str) -> tuple[Any, str]:
    protocol = protocol_of(url)
    try:
        system, path = fsspec.url_to_fs(url)
    except ImportError as error:
        raise SourceError(
            f"{url}: {protocol}:// needs a Python package that is not installed ({error}). Install it: "
            f"{INSTALL[protocol]}"
        ) from None
    return system, path


def _unreachable(url: str, error: Exception) -> SourceError:
    words = " ".join(str(error).split()) or type(error).__name__
    if _is_connection(error):
        return SourceError(
            f"{url}: the server cannot be reached ({words}); is the address right, and does it answer this machine?"
        )
    return SourceError(f"{url}: cannot be read ({words}); is the address right, and are you allowed to?")


def _is_connection(error: Exception) -> bool:
    """Whether there was no answer, as far as the backends' errors tell, which have no class in common."""
    if isinstance(error, FileNotFoundError | PermissionError) or hasattr(error, "status"):
        return False
    return isinstance(error, OSError) or bool(re.search("Connect|Timeout", type(error).__name__))
