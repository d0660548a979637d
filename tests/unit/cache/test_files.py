import errno
from pathlib import Path

import pytest

from cache.files import in_words, listing


def test_a_listing(tmp_path: Path):
    for name in ("b", "a", ".c"):
        (tmp_path / name).touch()
    assert [path.name for path in listing(tmp_path)] == [".c", "a", "b"]
    assert listing(tmp_path / "none") == []


def test_what_is_no_folder_is_not_an_empty_one(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file"):
        listing(tmp_path / "file")
    (tmp_path / "link").symlink_to("a disk that is not there")
    with pytest.raises(FileNotFoundError, match="link"):
        listing(tmp_path / "link")


def test_words():
    assert in_words(PermissionError(errno.EACCES, "Permission denied", "store/refs")) == "store/refs: permission denied"
    assert in_words(OSError(errno.EIO, "Input/output error")) == "input/output: input/output error"
    assert in_words(OSError("just so")) == "input/output: just so"
    assert in_words(ValueError("Another")) == "Another"
