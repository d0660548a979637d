"""Which files a recipe's `files` values mean."""

import errno
import glob
import os
import re
import stat
from pathlib import Path

from cache.keys import GONE
from configs.errors import UserError

SUFFIXES = (".parquet", ".csv", ".tsv", ".feather", ".arrow")
_SYMBOL = "{symbol}"
_URL = re.compile(r"([a-z][a-z0-9+.-]+):/+(.*)", re.DOTALL)
_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class SourceError(UserError):
    """A fault in a source file."""


OF_A_SYMBOL = (UserError, FileNotFoundError, PermissionError)  # other symbols can do without its files


def is_url(pattern: str | Path) -> bool:
    """Whether a recipe's `files` value, or the path of a source file, is a URL."""
    return _URL.fullmatch(str(pattern)) is not None


def url_of(path: Path) -> str:
    """The URL that was kept as a path, in which `//` is one `/`."""
    match = _URL.fullmatch(str(path))
    assert match, path
    return f"{match[1]}://{'/' * (match[1] == 'file')}{match[2]}"


def find_files(data_dir: Path, pattern: str) -> list[Path]:
    """The files that a recipe's `files` value means: a file, a directory of them, or a glob. Sorted by name.

    Of a directory, the files named as parquet, Arrow or text are taken (`SUFFIXES`). Raises SourceError when there is
    none, and for what is no regular file, and OSError for a folder that must not be looked into.
    """
    path = data_dir / pattern
    found = [path] if path.is_file() else _expanded(_matches(data_dir, pattern))
    if not found:
        raise SourceError(f"{path}: no such file, directory or pattern; --data-dir says where the recipe's paths begin")
    return found


def find_by_symbol(data_dir: Path, pattern: str) -> dict[str, list[Path] | Exception]:
    """The files of every symbol, for a pattern such as `{symbol}/m1.parquet` or `{symbol}_m1_*.csv`.

    `{symbol}` stands once in it, for any text but `/`; the rest is as for `find_files`, whose error of a symbol stands
    in the place of its files. Symbols and their files are sorted. Raises SourceError when nothing matches.
    """
    path = data_dir / pattern
    if pattern.count(_SYMBOL) != 1:
        raise SourceError(f"{path}: {_SYMBOL} must stand in it once")
    parts = pattern.split("/")
    at = next(i for i, part in enumerate(parts) if _SYMBOL in part)
    named = re.compile("(.+?)".join(map(_as_regex, parts[at].split(_SYMBOL))))
    rest = "/".join(parts[at + 1 :])
    found: dict[str, list[Path]] = {}
    faults: dict[str, Exception] = {}
    for match in _matches(data_dir, "/".join([*parts[:at], parts[at].replace(_SYMBOL, "*")])):
        if symbol := named.fullmatch(match.name):
            try:
                if matches := [match] if not rest else _matches(match, rest) if match.is_dir() else []:
                    found.setdefault(symbol[1], []).extend(_expanded(matches))
            except OF_A_SYMBOL as error:
                faults[symbol[1]] = error
    if not found and not faults:
        raise SourceError(
            f"{path}: nothing matches, where {_SYMBOL} stands for any text but /; --data-dir says where the recipe's "
            "paths begin"
        )
    return {symbol: faults.get(symbol) or sorted(found[symbol]) for symbol in sorted({*found, *faults})}


def check_regular(path: Path) -> None:
    """Raise SourceError for a directory, pipe, device or dangling link, and for what does not exist (any more)."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if path.is_symlink():
            raise SourceError(
                f"{path}: a symbolic link to {path.readlink()}, which does not exist; mend or remove it"
            ) from None
        raise SourceError(f"{path}: {GONE}") from None
    if not stat.S_ISREG(mode):
        kind = next((kind for test, kind in _KINDS if test(mode)), "something special")
        raise SourceError(f"{path}: {kind}, not a regular file; let data.source.files match files only")


def _matches(root: Path, pattern: str) -> list[Path]:
    """What a pattern matches. Raises OSError for a closed folder on the way, which a glob passes over."""
    parts = pattern.split("/")
    for n, part in enumerate(parts):
        listed = glob.has_magic(part) or (n and parts[n - 1] == "**")
        for folder in _glob(root, "/".join(parts[:n]) or "/") if n else [root]:
            if part and folder.is_dir() and not os.access(folder, os.R_OK | os.X_OK if listed else os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
    return _glob(root, pattern)


def _glob(root: Path, pattern: str) -> list[Path]:
    return [
        root / match
        for match in glob.glob(pattern, root_dir=root, recursive=True)  # noqa: PTH207 - Path.glob refuses absolute ones
    ]


def _expanded(matches: list[Path]) -> list[Path]:
    """The one directory that was meant by its files, or the files themselves; sorted, and all of them regular."""
    if len(matches) == 1 and matches[0].is_dir():
        (folder,) = matches
        matches = [
            path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
        ]
        if not matches:
            *others, last = (f"*{suffix}" for suffix in SUFFIXES)
            raise SourceError(
                f"{folder}: there is no {', '.join(others)} or {last} in this directory; put the files there, or "
                "remove the directory"
            )
    for path in matches:
        check_regular(path)
    return sorted(matches)


def _as_regex(part: str) -> str:
    """What a piece of one component of a glob matches, as a regular expression."""
    pieces = re.split(r"(\*+|\?|\[[^]]+\])", part)
    wild = {"*": ".*?", "?": "."}
    return "".join(
        (wild.get(piece[0]) or piece.replace("[!", "[^", 1)) if odd else re.escape(piece)
        for odd, piece in ((i % 2, piece) for i, piece in enumerate(pieces))
    )
