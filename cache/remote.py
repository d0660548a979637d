"""A remote store: objects below a URL, reached through fsspec. Whoever lists nothing can be served by any web server.

    refs/<name>.json        what a name stands for, and all entries that it needs (cache/remote_ref.py); written last
    <stage>/<key>.tar       one entry in the compressed profile, as the archive of an export holds it

An object is there whole or not at all: object stores see to that, and a folder gets a temporary name and a rename.
"""

import errno
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from fsspec.callbacks import Callback

from cache.entries import StoreError
from cache.files import becoming
from cache.parallel import Advance, StoppedError
from cache.remote_url import CREDENTIALS, INSTALL, WRITABLE, protocol_of

Result = TypeVar("Result")
_HTTP_WAITS = (1.0, 2.0, 4.0)  # seconds between tries; the other backends try again on their own
_SILENT_SECONDS = 60  # of a server that is connected
_OWN_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class _Moved(Callback):  # type: ignore[misc]  # fsspec has no types
    """Tells `advance` how much of `size` has moved, in proportion; what is moved again in a second try is not told."""

    def __init__(self, size: int, limit: int, advance: Advance) -> None:
        super().__init__()
        self._size, self._limit, self._advance = size, limit, advance
        self._told = 0

    def call(self, *_: Any, **__: Any) -> None:
        """Called by fsspec after every piece."""
        if self.value > self._limit:
            raise OverflowError
        self.tell(min(self._size, self._size * self.value // self.size) if self.size else 0)

    def tell(self, done: int) -> None:
        """So much of `size` is done."""
        self._advance(max(done - self._told, 0))
        self._told = max(done, self._told)


class Remote:
    """The objects below a URL, for many threads. Raises StoreError naming the object and a remedy."""

    def __init__(self, url: str) -> None:
        """Check the URL and load its backend; nothing is asked of the server yet."""
        self.url = url.rstrip("/")
        self.protocol = protocol_of(url)
        settings: dict[str, Any] = {}
        try:
            fsspec.get_filesystem_class(self.protocol)
            if self.protocol.startswith("http"):
                from aiohttp import ClientTimeout  # here, because only http:// needs it

                # the default ends every transfer after five minutes
                timeout = ClientTimeout(total=None, sock_connect=_SILENT_SECONDS, sock_read=_SILENT_SECONDS)
                settings["client_kwargs"] = {"timeout": timeout, "trust_env": True}
        except ImportError as error:
            raise StoreError(
                f"{url}: {self.protocol}:// needs a Python package that is not installed ({error}). Install it: "
                f"{INSTALL[self.protocol]}"
            ) from None
        if self.protocol == "s3":
            # every array is checked by MD5, and some servers answer a range with the checksum of the whole object
            settings["config_kwargs"] = {"response_checksum_validation": "when_required"}
        self._fs, path = self._asked(url, lambda: fsspec.url_to_fs(self.url, **settings))
        self._path = path.rstrip("/")

    def where(self, name: str) -> str:
        """An object's URL."""
        return f"{self.url}/{name}"

    def check_writable(self) -> None:
        """Raise StoreError where nothing can be pushed to, as far as the URL tells."""
        if self.protocol.startswith("http"):
            raise StoreError(f"{self.url}: a web server can only be pulled from; push to {WRITABLE}")
        if self.protocol == "file" and (Path(self._path) / "locks").exists():
            raise StoreError(f"{self.url}: a store that is worked in; push to a folder of its own")

    def read(self, name: str, most: int | None = None) -> bytes | None:
        """An object's content, or about the first `most` bytes of it; None where there is none."""
        limits = {} if most is None else {"start": 0, "end": most}
        try:
            return bytes(self._asked(self.where(name), lambda: self._fs.cat_file(f"{self._path}/{name}", **limits)))
        except FileNotFoundError:
            return None

    def write(self, name: str, path: Path, size: int, advance: Advance) -> None:
        """Make a file an object, replacing one of that name. `advance` is told `size` in all."""
        target, moved = f"{self._path}/{name}", _Moved(size, path.stat().st_size, advance)
        try:
            self._asked(self.where(name), lambda: self._put(path, target, moved))
        except FileNotFoundError as error:
            if self.protocol == "file":
                raise
            raise StoreError(f"{self.where(name)}: cannot be written: {error}. Make the bucket first") from None
        moved.tell(size)

    def fetch(self, name: str, path: Path, size: int, limit: int, advance: Advance) -> None:
        """Copy an object to a file. `advance` is told `size` in all; more than `limit` bytes are refused."""
        moved = _Moved(size, limit, advance)

        def get() -> None:
            moved.value, moved.size = 0, None
            self._fs.get_file(f"{self._path}/{name}", str(path), callback=moved)

        try:
            self._asked(self.where(name), get)
        except FileNotFoundError:
            raise StoreError(
                f"{self.where(name)}: missing, and the dataset needs it. Push the dataset again from where it is whole"
            ) from None
        except OverflowError:
            raise self.damaged(name, f"it is larger than {limit:,} bytes, which is more than it can need") from None
        moved.tell(size)

    def damaged(self, name: str, what: str) -> StoreError:
        """An error about an object that is not as it was pushed."""
        return StoreError(
            f"{self.where(name)}: damaged, {what}. Remove this object and push the dataset again from where it is whole"
        )

    def _put(self, path: Path, target: str, moved: _Moved) -> None:
        if self.protocol != "file":
            self._fs.put_file(str(path), target, callback=moved)
            return
        place = Path(target)
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = place.with_name(f".{place.name}.{uuid.uuid4().hex}.partial")
        with temporary.open("wb") as file, becoming(place, file), path.open("rb") as source:
            shutil.copyfileobj(source, file)

    def _asked(self, where: str, ask: Callable[[], Result]) -> Result:
        """What the backend answers. Raises FileNotFoundError, OSError of this machine's disk, and StoreError."""
        waits = list(_HTTP_WAITS) if self.protocol.startswith("http") else []
        while True:
            try:
                return ask()
            except (FileNotFoundError, StoppedError, OverflowError):
                raise
            except Exception as error:  # backends have no common class of errors
                of_disk = isinstance(error, OSError) and (self.protocol == "file" or error.errno in _OWN_DISK)
                if of_disk:
                    raise
                if not waits or _is_refusal(error):
                    raise self._in_words(where, error) from error
                time.sleep(waits.pop(0))

    def _in_words(self, where: str, error: Exception) -> StoreError:
        words = " ".join((str(error) or type(error).__name__).split())[:300].rstrip(".")
        if not _is_refusal(error):
            return StoreError(
                f"{where}: {words}. When the server can be reached, run the command again: it goes on from there"
            )
        return StoreError(f"{where}: access refused ({words}). Credentials come from {CREDENTIALS[self.protocol]}")


def _is_refusal(error: Exception) -> bool:
    """Whether trying again is of no use, because credentials are missing or not accepted."""
    refused = getattr(error, "status", 0) in (401, 403, 407)
    return refused or isinstance(error, PermissionError) or "Credential" in type(error).__name__
