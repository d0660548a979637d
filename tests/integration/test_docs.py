"""Every block of code in docs/ is run, page by page and in order, in a folder that looks like a fresh checkout.

Blocks of sh are run line by line, those of python as a script; a block that begins with a path is written there, and so
is yaml. Sizes are made small by options that commands have.
"""

import re
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests import code_page
from tests.checkout import ROOT, Block, blocks_of, make_checkout, run

PAGES = {page.name: blocks_of(page) for page in sorted((ROOT / "docs").glob("*.md"))}
RUNNABLE = ("sh", "python", "yaml")
TRIALS = ("--find-lr", "--profile")
ELSEWHERE = ("lightning", "jax")  # Headstart does not install them: blocks that import one run where it is there


@dataclass
class Place:
    """The checkout, and the commands that have been run in it: pages share the demo's store."""

    checkout: Path
    done: set[str] = field(default_factory=set)

    def sh(self, command: str) -> None:
        if command not in self.done:
            run(shortened(command), self.checkout)
            self.done.add(command)

    def python(self, text: str) -> str:
        (self.checkout / "block.py").write_text(text)
        return run(".venv/bin/python block.py", self.checkout)


def shortened(command: str) -> str:
    if command.startswith("bin/simulate --out"):
        return f"{command} --rows 30000"
    if command.startswith("bin/train"):
        return f"{command} {'--batch-size 4' if any(trial in command for trial in TRIALS) else '--fast-dev-run'}"
    if command.startswith("bin/encode") and "--out" in command:
        return f"{command} --split val"
    return command


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(make_checkout(tmp_path_factory.mktemp("docs")))
    place.sh("bin/simulate --out data/demo")
    place.sh("bin/build-cache --config configs/demo.yaml --data-dir data/demo")
    return place


@pytest.mark.parametrize("page", [name for name, blocks in PAGES.items() if {b.language for b in blocks} & {*RUNNABLE}])
def test_all_blocks_of_a_page(page: str, place: Place) -> None:
    for block in PAGES[page]:
        if block.path:
            (place.checkout / block.path).write_text(block.text)
        elif block.language == "sh":
            for command in block.commands:
                place.sh(command)
        elif block.language == "python" and all(find_spec(name) for name in ELSEWHERE if imports(block, name)):
            assert place.python(block.text)


def imports(block: Block, module: str) -> bool:
    return re.search(rf"^import {module}$", block.text, re.MULTILINE) is not None


def test_the_format_of_recordings_is_read_as_told(place: Place) -> None:
    (first,) = (block for block in PAGES["format.md"] if block.language == "python")
    (second,) = (block for block in PAGES["format.md"] if block.language == "py")
    run("bin/simulate --kind imu --out data/imu --sequences 250", place.checkout)
    place.sh("bin/build-cache --config configs/imu.yaml --data-dir data/imu")
    head, there, _ = first.text.replace("refs/demo.json", "refs/imu.json").partition("\nends = ")
    assert there
    assert place.python(head + second.text).count("[") > 20


def test_no_block_is_of_a_kind_that_is_not_run() -> None:
    found = {(page, block.language) for page, blocks in PAGES.items() for block in blocks}
    assert {language for _, language in found} <= {*RUNNABLE, "py", "text", "mermaid", ""}
    assert {page for page, language in found if language == "py"} == {"format.md"}


def test_the_page_of_the_code_is_that_of_the_code() -> None:
    assert code_page.PAGE.read_text() == code_page.page(), "run .venv/bin/python -m tests.code_page"


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs" / name for name in PAGES)]:
        for target in re.findall(r"\]\(([^)#\s]+)\)", page.read_text()):
            assert "://" in target or (page.parent / target).exists(), (page.name, target)
