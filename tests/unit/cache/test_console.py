import errno
import io
import re
import sys
import time
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from cache import console
from cache.console import Console, Lines, command
from configs.errors import UserError


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything happens five times as fast."""
    for name in ("_LOOK_SECONDS", "_SILENCE_SECONDS", "_LINE_SECONDS"):
        monkeypatch.setattr(console, name, getattr(console, name) / 5)


def said(one: Console) -> list[str]:
    stream = one.stream
    assert isinstance(stream, io.StringIO)
    return [line for line in stream.getvalue().splitlines() if line.strip(" .")]


def test_a_bar_in_a_log_file_is_lines():
    one = Console(io.StringIO())
    with one.bar("building", "rows", 2000) as bar:
        bar.update(1234)
        bar.set_postfix_str("loss 0.5")
        time.sleep(0.22)
        one.line("  built something")
        bar.update(700)
        time.sleep(0.22)
        time.sleep(2)  # another line is due
    lines = said(one)
    assert lines[:2] == ["  building: 1,234 of 2,000 rows, 0 s, loss 0.5", "  built something"]
    assert lines[2].startswith("  building: 1,934 of 2,000 rows, ")
    assert len(lines) == 3


def test_a_bar_in_a_log_file_is_a_line_every_ten_seconds_and_dots_between():
    one = Console(io.StringIO())
    with one.bar("building", "rows", 2000) as bar:
        time.sleep(2.9)  # fourteen and a half seconds, as time goes here
        bar.update(1500)
    assert re.fullmatch(
        r"  building: 0 of 2,000 rows, 0 s\n  \.{9,14}\n  building: 0 of 2,000 rows, 2 s\n  \.{2,6}\n",
        one.stream.getvalue(),  # type: ignore[attr-defined]
    )


def test_short_bars_add_up():
    """Nothing is said of any, unless so many follow each other that it is silent for long."""
    one = Console(io.StringIO())
    for number in range(10):
        with one.bar(f"building {number}", "rows"):
            time.sleep(0.1)  # half a second
    assert 4 <= len(said(one)) <= 7  # a line of each that is told of


def test_a_phase_whose_line_has_ended_leaves_word_to_the_bar_inside_it():
    one = Console(io.StringIO())
    with one.phase("work"), one.bar("building", "rows"):
        one.line("  built something")
        time.sleep(1)
    assert re.fullmatch(
        r"  work \n  built something\n  building: 0 rows, 0 s\n  \.{3,7}\n  work 1\.\d\d s\n",
        one.stream.getvalue(),  # type: ignore[attr-defined]
    )


def test_a_short_bar_in_a_log_file_is_nothing():
    one = Console(io.StringIO())
    with one.bar("building", "rows") as bar:
        bar.update(5)
        assert bar.n == 5
    assert said(one) == []


@pytest.mark.parametrize(
    ("unit", "total", "line"),
    [
        ("B", 45_678_900, "1.2 of 45.7 MB"),
        ("B", 0, "1.2 MB"),
        ("rows", None, "1,234,567 rows"),
        ("MB", None, "1,234,567 MB"),
    ],
)
def test_amounts(unit: str, total: int | None, line: str):
    one = Console(io.StringIO())
    lines = Lines(one, "reading", unit, total)
    lines.update(1_234_567)
    lines.refresh()
    assert said(one) == [f"  reading: {line}, 0 s"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_beside_a_bar_on_a_terminal_stand_alone():
    one = Console(Terminal())
    with one.bar("building", "rows", 10) as bar:
        bar.update(5)
        one.line("  built something")
    text = one.stream.getvalue()  # type: ignore[attr-defined]
    assert "\r  built something\n" in text
    assert text.index("built something") < text.index("  building:  50%")


def test_waiting_is_told_again_and_again():
    one = Console(io.StringIO())
    tick = one.waiting_for("another")
    tick()
    assert said(one) == []
    time.sleep(0.2)
    tick()
    tick()
    assert said(one) == ["  waiting for another"]
    time.sleep(1)
    tick()
    assert one.stream.getvalue() == "  waiting for another\n  ."  # type: ignore[attr-defined]
    time.sleep(1.1)
    tick()
    assert said(one) == ["  waiting for another"] * 2
    one.line("done")
    assert said(one) == [*["  waiting for another"] * 2, "done"]


def test_waiting_is_told_once_beside_a_bar_that_moves():
    one = Console(Terminal())
    with one.bar("building", "rows"):
        tick = one.waiting_for("another")
        for _ in range(10):
            tick()
            time.sleep(0.15)
    assert one.stream.getvalue().count("waiting for another") == 1  # type: ignore[attr-defined]


class Failing(io.StringIO):
    """A stream that nobody reads any more, or that has no space."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def write(self, text: str) -> int:
        raise OSError(self.number, {errno.EPIPE: "Broken pipe", errno.ENOSPC: "No space left on device"}[self.number])


def test_work_goes_on_when_nobody_reads():
    one = Console(Failing(errno.EPIPE))
    one.line("first")
    with one.phase("work"), one.bar("building", "rows") as bar:
        time.sleep(0.3)
        bar.update(1)
    assert list(one.phases) == ["work"]


def test_a_full_stream_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError) as caught:
        Console(Failing(errno.ENOSPC)).line("first")
    assert str(caught.value) == "standard output: no space left on device"
    monkeypatch.setattr(sys, "stderr", Failing(errno.ENOSPC))
    with pytest.raises(UserError, match="standard error: no space left on device"):
        Console(sys.stderr).line("first")


def test_a_command_begins_where_its_wrapper_says(monkeypatch: pytest.MonkeyPatch):
    """The system's start of the process is that of whoever called exec."""
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    monkeypatch.setenv("HEADSTART_UPTIME", str(uptime - 5))
    assert 5 <= Console(io.StringIO()).since_start() < 6
    monkeypatch.delenv("HEADSTART_UPTIME")
    ours = Console(io.StringIO()).since_start()
    assert ours > 0.1  # of the tests' own process


def ends(fault: BaseException, **settings: Any) -> tuple[int, str]:
    @command(**settings)
    def fails() -> None:
        raise fault

    done = CliRunner().invoke(fails, [])
    return done.exit_code, done.stderr


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("fault", "settings", "words"),
    [
        (KeyboardInterrupt(), {}, "interrupted"),
        (KeyboardInterrupt(), {"kept": True}, "interrupted; what was finished is kept"),
        (FULL, {}, "no space left on device; free some and run the command again"),
        (
            FULL,
            {"kept": True},
            "no space left on device; free some and run the command again, what was finished is kept",
        ),
        (MemoryError("all"), {}, "out of memory: all"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), {}, "x: permission denied"),
    ],
)
def test_how_commands_fail(fault: BaseException, settings: dict[str, Any], words: str):
    assert ends(fault, **settings) == (1, f"\nerror: {words}\n")


def test_a_listing_that_nobody_reads_ends_quietly():
    assert ends(BrokenPipeError(errno.EPIPE, "Broken pipe")) == (141, "")


def test_a_command_is_a_click_command(tmp_path: Path):
    @command(name="some")
    def some() -> None:
        """Do."""

    assert isinstance(some, click.Command)
    assert CliRunner().invoke(some, []).exit_code == 0
