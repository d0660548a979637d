"""What `--help` says, of all commands as a set: every option told, every example one that the command takes."""

import re
import shlex
import subprocess
from importlib import import_module
from pathlib import Path

import click
import pytest

from tests.checkout import ROOT

SCRIPTS = {path.name: path.read_text() for path in (ROOT / "bin").iterdir() if not path.name.startswith("_")}
MAINS = {
    f"bin/{name}": import_module(found[1]).main
    for name, text in SCRIPTS.items()
    if (found := re.search(r"-m ((?:cache|pipeline|trainer)\.\w+) ", text))
}
COMMANDS: dict[str, click.Command] = {
    **{name: main for name, main in MAINS.items() if not isinstance(main, click.Group)},
    **{f"bin/cache {name}": command for name, command in MAINS["bin/cache"].commands.items()},
}


def help_of(name: str) -> str:
    return COMMANDS[name].get_help(click.Context(COMMANDS[name], info_name=name))


def command_of(words: list[str]) -> str:
    return " ".join(words[: 2 if words[0] == "bin/cache" else 1])


def test_all_commands_are_looked_at() -> None:
    assert {"bin/train", "bin/encode", "bin/build-cache", "bin/cache explain", "bin/cache pull"} <= COMMANDS.keys()
    assert {*SCRIPTS} - {name.removeprefix("bin/") for name in MAINS} == {"demo", "install", "test"}


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_are_lines_that_the_commands_take(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "simfx_m1.parquet").touch()
    lines = re.findall(r"^ +(bin/.*)$", help_of(name).split("Examples:\n")[1], re.MULTILINE)
    words = [shlex.split(line.split(" | ")[0]) for line in lines]
    assert name in {command_of(one) for one in words}
    for one in words:
        taken = command_of(one)
        COMMANDS[taken].make_context(taken, one[len(taken.split()) :])  # raises for what it does not know


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_told_and_the_first_sentence_is_short(name: str) -> None:
    command = COMMANDS[name]
    for option in command.params:
        if isinstance(option, click.Option):
            assert re.search(r"[.?:\])]$", option.help or ""), option.name
    first, _, _ = (command.help or "").partition("\n\n")
    assert first.endswith(".") and ". " not in first
    if name.startswith("bin/cache "):
        assert "..." not in command.get_short_help_str(65)  # as bin/cache --help lists it


@pytest.mark.parametrize("name", ["demo", "install", "test"])
def test_scripts_help_without_doing_anything(name: str) -> None:
    done = subprocess.run([ROOT / "bin" / name, "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"Usage: bin/{name}") and f"Examples:\n  bin/{name}" in done.stdout


def test_what_cannot_be_installed_is_refused() -> None:
    done = subprocess.run([ROOT / "bin/install", "vis"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "bin/install: vis is not known; known ones: viz, sequences, remote, scale, test\n"


def test_the_table_of_the_readme_names_options_that_there_are() -> None:
    rows = re.findall(r"^\| (`bin/.*?) \| ", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(rows) > 10
    for row in rows:
        words = re.findall(r"[\w/-]+", row)
        of = [name for name in COMMANDS if name.split()[0] in words and {*name.split()[1:]} <= {*words}]
        known = {option for name in of for one in COMMANDS[name].params for option in one.opts}
        assert of and {word for word in words if word.startswith("--")} <= known, row
