"""The tar file of an archive: regular files alone, in a fixed order, whose headers follow from name and size.

Reading is strict instead of clever. A header must be, byte for byte, the one that the export writes for the name that
is due there: so there are no links, no devices, no other paths, nothing twice, and no size that its reader does not
allow.
"""

import os
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cache.entries import StoreError

END = bytes(1024)
_UNIT = 512
_PACKERS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip"}
_KINDS = {b"1": "a hard link", b"2": "a symbolic link", b"5": "a folder", b"0": "the file", b"\0": "the file"}
_REMEDY = "Fetch the file again, or export it anew with bin/cache export"


@dataclass(frozen=True)
class Span:
    """Where the content of a member lies in the file, in bytes."""

    name: str
    offset: int
    size: int


def member(name: str, data: bytes) -> bytes:
    """A member as it is written: header, content, zeros up to a multiple of 512 bytes."""
    return _header(name, len(data)) + data + _padding(len(data))


class ArchiveError(StoreError):
    """Something is wrong with a member; `fault` says which and what, without the file and the remedy."""

    def __init__(self, path: Path, fault: str) -> None:
        super().__init__(f"{path}: {fault}. {_REMEDY}")
        self.fault = fault


def archive_error(path: Path, name: str, what: str) -> ArchiveError:
    """An error about a member. `what` may hold words of the archive's own, which are cut to a decent length."""
    told = "".join(letter if letter.isprintable() else "?" for letter in what[:300])
    return ArchiveError(path, f"{name}: {told}")


def read_span(file: BinaryIO, span: Span) -> bytes:
    """The content of a member, from any thread. Raises ValueError when the file has become shorter."""
    data = _read(file, span.offset, span.size)
    if len(data) < span.size:
        raise ValueError("the file ends within it")
    return data


class Members:
    """Goes through the members of an archive. Raises StoreError when something else comes than what is asked for."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self._file = file
        self._size = os.fstat(file.fileno()).st_size
        self._at = 0

    def span(self, name: str, limit: int) -> Span:
        """Where the next member is, which must be `name` with at most `limit` bytes."""
        header = _read(self._file, self._at, _UNIT)
        size = int(header[124:135], 8) if re.fullmatch(rb"[0-7]{11}", header[124:135]) else -1
        if size < 0 or header != _header(name, size):
            raise self.wrong(name, _in_its_place(header, name, first=not self._at))
        if size > limit:
            raise self.wrong(name, f"it has {size:,} bytes, but {limit:,} are the most that it can need")
        span = Span(name, self._at + _UNIT, size)
        self._at += _UNIT + size + len(_padding(size))
        if self._at > self._size:
            raise self.wrong(name, "the archive is cut off within it")
        if any(_read(self._file, span.offset + size, self._at - span.offset - size)):
            raise self.wrong(name, "zeros should follow it, but something else does")
        return span

    def content(self, name: str, limit: int) -> bytes:
        """The next member's content."""
        return read_span(self._file, self.span(name, limit))

    def end(self) -> None:
        """Check that nothing follows but the end mark."""
        if self._size != self._at + len(END) or _read(self._file, self._at, len(END)) != END:
            raise self.wrong("the end", "after the last member should come 1,024 zeros, and nothing else")

    def wrong(self, name: str, what: str) -> ArchiveError:
        """An error about a member."""
        return archive_error(self.path, name, what)


def _header(name: str, size: int) -> bytes:
    """POSIX ustar: a regular file, mode 644, of nobody and no time."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.USTAR_FORMAT)


def _padding(size: int) -> bytes:
    return bytes(-size % _UNIT)


def _read(file: BinaryIO, offset: int, size: int) -> bytes:
    """As many bytes as there are."""
    data = os.pread(file.fileno(), size, offset)
    while len(data) < size and (more := os.pread(file.fileno(), size - len(data), offset + len(data))):
        data += more
    return data


def _in_its_place(header: bytes, name: str, first: bool) -> str:
    """In words: what is there instead of a member."""
    if first:
        for magic, packer in _PACKERS.items():
            if header.startswith(magic):
                return f"it should come first, but the file is packed with {packer}; unpack that before the import"
        if not header:
            return "it should come first, but the file is empty"
    if len(header) < _UNIT:
        return "it should come here, but the file ends"
    if not any(header):
        return "it should come here, but the archive ends"
    try:
        info = tarfile.TarInfo.frombuf(header, "utf-8", "replace")
    except (tarfile.TarError, ValueError, OverflowError):
        return "it should come here, but this is no header of a tar archive"
    kind = _KINDS.get(info.type, "a device" if info.type in (b"3", b"4", b"6") else "an extension of tar")
    if (kind, info.name) == ("the file", name):
        return "its size, owner, mode or time is not as bin/cache export writes it; the archive was packed anew"
    return f"it should come here, but there is {kind} {info.name[:100]!r}"
