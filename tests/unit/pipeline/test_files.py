import os
import socket
from pathlib import Path

import pytest

from pipeline.files import SourceError, check_regular, find_by_symbol, find_files


def touch(folder: Path, *names: str) -> list[Path]:
    paths = [folder / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return paths


def fault_of(find, *arguments) -> str:
    with pytest.raises(SourceError) as caught:
        find(*arguments)
    return str(caught.value)


def test_files_are_a_file_a_folder_or_a_pattern_sorted_by_name(tmp_path: Path):
    folder = tmp_path / "m1"
    names = ["2024-02.parquet", "2024-01.parquet", "a.CSV", "b.tsv", "c.feather", "d.arrow"]
    touch(folder, *names, "notes.txt", ".2024-01.parquet", "README")
    assert find_files(tmp_path, "m1/notes.txt") == [folder / "notes.txt"]
    assert find_files(tmp_path, "m1") == [folder / name for name in sorted(names)]
    assert find_files(tmp_path, "m?") == find_files(tmp_path, "m1")
    assert find_files(tmp_path, "m1/2024-*.parquet") == [folder / "2024-01.parquet", folder / "2024-02.parquet"]
    assert find_files(tmp_path, "**/notes.txt") == [folder / "notes.txt"]
    assert find_files(Path("/nowhere"), str(folder / "2024-*.parquet")) == find_files(tmp_path, "m1/2024-*.parquet")
    assert find_files(Path("/nowhere"), str(folder)) == find_files(tmp_path, "m1")


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path: Path):
    touch(tmp_path, "m1[ab].csv", "m1a.csv")
    assert find_files(tmp_path, "m1[ab].csv") == [tmp_path / "m1[ab].csv"]


@pytest.mark.parametrize(
    "pattern", ["none.parquet", "*.parquet", "/nowhere/none.parquet", "/nowhere/*.parquet", "**/*.csv"]
)
def test_no_file_is_an_error_that_says_where_was_looked(tmp_path: Path, pattern: str):
    assert fault_of(find_files, tmp_path, pattern) == (
        f"{tmp_path / pattern}: no such file, directory or pattern; --data-dir says where the recipe's paths begin"
    )


@pytest.mark.parametrize("names", [[], ["notes.txt", ".hidden.csv"]])
def test_a_folder_without_bars_is_an_error(tmp_path: Path, names: list[str]):
    (tmp_path / "empty").mkdir()
    touch(tmp_path / "empty", *names)
    assert fault_of(find_files, tmp_path, "empty") == (
        f"{tmp_path / 'empty'}: there is no *.parquet, *.csv, *.tsv, *.feather or *.arrow in this directory; "
        "put the files there, or remove the directory"
    )


@pytest.mark.parametrize("pattern", ["data/bars.parquet", "data/*.parquet", "data", "dat?"])
@pytest.mark.parametrize("kind", ["a directory", "a named pipe", "a socket", "a symbolic link"])
def test_what_is_no_regular_file_is_an_error(tmp_path: Path, pattern: str, kind: str, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "data" / "bars.parquet"
    path.parent.mkdir()
    if kind == "a directory":
        if pattern.startswith("data/"):
            touch(path.parent, "other.parquet")
        path.mkdir()
    elif kind == "a named pipe":
        os.mkfifo(path)
    elif kind == "a socket":
        monkeypatch.chdir(path.parent)  # names of sockets are short
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    else:
        path.symlink_to("/nowhere/bars.parquet")
    if kind == "a directory" and pattern.startswith("data/bars"):
        return  # a directory that is named is one of files
    expected = (
        f"{path}: a symbolic link to /nowhere/bars.parquet, which does not exist; mend or remove it"
        if kind == "a symbolic link"
        else f"{path}: {kind}, not a regular file; let data.source.files match files only"
    )
    assert fault_of(find_files, tmp_path, pattern) == expected
    assert fault_of(check_regular, path) == expected


def test_devices_are_no_files():
    assert fault_of(find_files, Path("/dev"), "null") == (
        "/dev/null: a device, not a regular file; let data.source.files match files only"
    )


def test_links_to_files_and_folders_are_followed(tmp_path: Path):
    touch(tmp_path / "real", "a.csv")
    (tmp_path / "m1").symlink_to("real")
    (tmp_path / "b.csv").symlink_to("real/a.csv")
    assert find_files(tmp_path, "m1") == [tmp_path / "m1" / "a.csv"]
    assert find_files(tmp_path, "*.csv") == [tmp_path / "b.csv"]


# --- one symbol a file


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("{symbol}/m1.parquet", {"AUDUSD": ["AUDUSD/m1.parquet"], "EURUSD": ["EURUSD/m1.parquet"]}),
        ("{symbol}_m1.parquet", {"A": ["A_m1.parquet"], "B_m1_m1": ["B_m1_m1_m1.parquet"]}),
        (
            "{symbol}/m1/*.parquet",
            {"GBPUSD": ["GBPUSD/m1/2023.parquet", "GBPUSD/m1/2024.parquet"], "a b": ["a b/m1/x.parquet"]},
        ),
        ("{symbol}/m1", {"GBPUSD": ["GBPUSD/m1/2023.parquet", "GBPUSD/m1/2024.parquet"], "a b": ["a b/m1/x.parquet"]}),
        ("{symbol}_h1_*.csv", {"C": ["C_h1_2023.csv", "C_h1_2024_h1_.csv"]}),
        ("spot-{symbol}/[mh]1.csv", {"D": ["spot-D/h1.csv", "spot-D/m1.csv"]}),
        ("spot-{symbol}/[!h]1.csv", {"D": ["spot-D/d1.csv", "spot-D/m1.csv"]}),
        ("spot-D/{symbol}[!h].csv", {"d": ["spot-D/d1.csv"], "h": ["spot-D/h1.csv"], "m": ["spot-D/m1.csv"]}),
        ("spot-D/{symbol}[!1-9].csv", {"q": ["spot-D/qh.csv"]}),
        ("**/{symbol}.feather", {"X": ["deep/1/X.feather", "deep/2/X.feather"], "Y": ["Y.feather"]}),
        ("deep/?/{symbol}.feather", {"X": ["deep/1/X.feather", "deep/2/X.feather"]}),
        ("{symbol}/**/y.tsv", {"deep2": ["deep2/a/b/y.tsv", "deep2/a/y.tsv"]}),
        ("{symbol}", {"only": ["only/q.arrow"]}),
    ],
)
def test_symbols_are_what_stands_in_their_place(tmp_path: Path, pattern: str, expected: dict[str, list[str]]):
    if pattern == "{symbol}":
        touch(tmp_path, "only/q.arrow")
    else:
        touch(tmp_path, "EURUSD/m1.parquet", "AUDUSD/m1.parquet", "AUDUSD/h1.parquet", "A_m1.parquet")
        touch(tmp_path, "B_m1_m1_m1.parquet", "_m1.parquet", ".D_m1.parquet", "a b/m1/x.parquet", "x_m1.parquet.bak")
        touch(tmp_path, "GBPUSD/m1/2024.parquet", "GBPUSD/m1/2023.parquet", "GBPUSD/m1/.hidden.parquet")
        touch(
            tmp_path,
            "C_h1_2024_h1_.csv",
            "C_h1_2023.csv",
            "spot-D/m1.csv",
            "spot-D/h1.csv",
            "spot-D/d1.csv",
            "spot-D/qh.csv",
        )
        touch(tmp_path, "deep/1/X.feather", "deep/2/X.feather", "Y.feather", "deep2/a/b/y.tsv", "deep2/a/y.tsv")
    found = find_by_symbol(tmp_path, pattern)
    assert {symbol: [str(path.relative_to(tmp_path)) for path in paths] for symbol, paths in found.items()} == expected
    assert list(found) == sorted(found)
    assert find_by_symbol(Path("/nowhere"), f"{tmp_path}/{pattern}") == found


@pytest.mark.parametrize("pattern", ["{symbol}.parquet", "{symbol}/m1.parquet", "none/{symbol}.csv", "{symbol}"])
def test_no_symbol_at_all_is_an_error(tmp_path: Path, pattern: str):
    touch(tmp_path, ".parquet", "m1.txt/x") if pattern != "{symbol}" else None
    assert fault_of(find_by_symbol, tmp_path, pattern) == (
        f"{tmp_path / pattern}: nothing matches, where {{symbol}} stands for any text but /; --data-dir says where the "
        "recipe's paths begin"
    )


def test_the_place_of_the_symbol_is_one(tmp_path: Path):
    for pattern in ("{symbol}/{symbol}.csv", "m1.csv"):
        assert fault_of(find_by_symbol, tmp_path, pattern) == f"{tmp_path / pattern}: {{symbol}} must stand in it once"


def test_a_fault_of_a_symbol_stands_in_the_place_of_its_files(tmp_path: Path):
    (good,) = touch(tmp_path, "A.csv")
    os.mkfifo(tmp_path / "B.csv")
    (tmp_path / "C.csv").mkdir()
    found = find_by_symbol(tmp_path, "{symbol}.csv")
    assert list(found) == ["A", "B", "C"]
    assert found["A"] == [good]
    assert str(found["B"]) == (
        f"{tmp_path / 'B.csv'}: a named pipe, not a regular file; let data.source.files match files only"
    )
    assert str(found["C"]).startswith(f"{tmp_path / 'C.csv'}: there is no *.parquet, ")


def test_a_file_that_has_gone(tmp_path: Path):
    assert fault_of(check_regular, tmp_path / "A.csv") == (
        f"{tmp_path / 'A.csv'}: no such file any more; put it back, or run the command again without it"
    )
