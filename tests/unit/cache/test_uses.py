import json
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cache.contents import read_diary
from cache.uses import Use, read_uses, record_use

ROOT = Path(__file__).parents[3]


def write(store: Path, *lines: str) -> None:
    (store / "uses.jsonl").write_text("".join(line + "\n" for line in lines))


def line(at: str = "2024-01-01T00:00:00+00:00", dataset: str = "a", saved: object = 1) -> str:
    return json.dumps({"at": at, "by": "train", "dataset": dataset, "saved": saved})


def test_uses_read_back_in_order(tmp_path: Path):
    before = datetime.now(UTC).replace(microsecond=0)
    record_use(tmp_path, "build", "a" * 32, 1.23456)
    record_use(tmp_path, "train", "b" * 32, 2)
    first, second = read_uses(tmp_path)
    assert (first.by, first.dataset, first.saved) == ("build", "a" * 32, 1.235)
    assert (second.by, second.dataset, second.saved) == ("train", "b" * 32, 2)
    assert before <= datetime.fromisoformat(first.at) <= datetime.now(UTC)


def test_a_store_without_a_diary(tmp_path: Path):
    assert list(read_uses(tmp_path)) == []


def test_a_store_that_cannot_be_written_is_used_all_the_same(tmp_path: Path):
    record_use(tmp_path / "none", "train", "a", 1)
    (tmp_path / "uses.jsonl").mkdir()
    record_use(tmp_path, "train", "a", 1)


def test_lines_that_make_no_sense_are_passed_over(tmp_path: Path):
    good = line()
    write(tmp_path, good, "", "{", "5", "[1]", '{"at": 1}', good[:-9], "\x00\xff", good)
    with (tmp_path / "uses.jsonl").open("ab") as file:
        file.write(b"\xff\xfe\n" + good.encode()[:20])  # cut off
    assert list(read_uses(tmp_path)) == [Use("2024-01-01T00:00:00+00:00", "train", "a", 1)] * 2


def test_lines_of_several_processes_do_not_mix(tmp_path: Path):
    write_many = (
        "import sys\nfrom pathlib import Path\nfrom cache.uses import record_use\n"
        "for i in range(200): record_use(Path(sys.argv[1]), 'train', sys.argv[2] * 32, i)"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", write_many, tmp_path, letter], cwd=ROOT) for letter in ("a", "b", "c")
    ]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    lines = (tmp_path / "uses.jsonl").read_text().splitlines()
    assert len(lines) == 600
    for letter in ("a", "b", "c"):
        assert [use.saved for use in read_uses(tmp_path) if use.dataset == letter * 32] == list(range(200))
    assert all(
        re.fullmatch(r'\{"at": "[^"]+", "by": "train", "dataset": "[abc]{32}", "saved": \d+\}', one) for one in lines
    )


def test_the_diary_sums_up(tmp_path: Path):
    write(
        tmp_path,
        line("2024-01-02T00:00:00+00:00", "a", 1),
        line("2024-01-01T00:00:00+00:00", "a", 2.5),  # a clock that was put back
        line("2024-01-01T12:00:00+02:00", "b", 4),
    )
    diary = read_diary(tmp_path)
    assert diary.saved == {"a": 3.5, "b": 4}
    assert diary.last == {"a": datetime(2024, 1, 2, tzinfo=UTC), "b": datetime(2024, 1, 1, 10, tzinfo=UTC)}


@pytest.mark.parametrize(
    "bad",
    [
        line(at="yesterday"),
        json.dumps({"at": 5, "by": "train", "dataset": "a", "saved": 1}),
        line(saved="much"),
        line(saved=None),
        '{"at": "2024-01-01T00:00:00+00:00", "by": "train", "dataset": "a", "saved": NaN}',
        '{"at": "2024-01-01T00:00:00+00:00", "by": "train", "dataset": "a", "saved": 1e999}',
    ],
)
def test_no_line_spoils_the_sums(tmp_path: Path, bad: str):
    write(tmp_path, line(), bad, line())
    assert read_diary(tmp_path).saved == {"a": 2}


def test_an_instant_without_a_zone_is_one_all_the_same(tmp_path: Path):
    write(tmp_path, line(at="2024-01-01T00:00:00"), line())
    assert read_diary(tmp_path).last["a"].tzinfo is not None
