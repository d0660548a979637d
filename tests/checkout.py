"""A folder that looks like a fresh checkout, and the code blocks of Markdown pages, to be run in it."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_NAMED = re.compile(r"# ([\w/.-]+\.(?:py|yaml))\n")


@dataclass(frozen=True)
class Block:
    """A fenced block. One whose first line is a comment with a path is the file of that path."""

    language: str
    text: str

    @property
    def path(self) -> str | None:
        named = _NAMED.match(self.text)
        return named and named[1]

    @property
    def commands(self) -> list[str]:
        return [line.split(" #")[0].strip() for line in self.text.splitlines() if line.strip()]


def blocks_of(page: Path) -> list[Block]:
    return [Block(*found) for found in _BLOCK.findall(page.read_text())]


def make_checkout(place: Path) -> Path:
    """What a clone holds and commands need, in `place`/main, with a home beside it."""
    checkout = place / "main"
    for name in ("bin", "cache", "configs", "pipeline", "trainer"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "constraints.txt"):
        shutil.copy2(ROOT / name, checkout / name)
    (checkout / ".venv").symlink_to(sys.prefix)  # what the tests themselves run in
    return checkout


def run(command: str, checkout: Path) -> str:
    """Run a command line there; what it prints. It must succeed."""
    settings = {"HOME": str(checkout.parent / "home"), "PYTHONPATH": str(checkout)}
    done = subprocess.run(
        command, shell=True, cwd=checkout, env=os.environ | settings, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout
