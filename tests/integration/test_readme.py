"""Every command of the README is run, in a folder that looks like a fresh checkout, on little data."""

import re
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.checkout import ROOT, blocks_of, make_checkout, run

REAL_BARS = ROOT.parent / "shared" / "data" / "bars"
BLOCKS = blocks_of(ROOT / "README.md")
COMMANDS = [command for block in BLOCKS if block.language == "sh" for command in block.commands]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    checkout = make_checkout(tmp_path_factory.mktemp("place"))
    for block in BLOCKS:
        if block.path:
            (checkout / block.path).write_text(block.text)
    demo = checkout / "configs/demo.yaml"  # few steps, and few windows to evaluate
    shorter = {"val_fraction: 0.2": "val_fraction: 0.05", "max_epochs: 4": "max_epochs: 1", "epoch: 150": "epoch: 10"}
    for long, short in shorter.items():
        assert demo.read_text().count(long) == 1
        demo.write_text(demo.read_text().replace(long, short))
    bars = checkout.parent / "home" / "bars"
    subprocess.run([ROOT / "bin/simulate", "--out", bars, "--rows", "75000"], check=True, capture_output=True)
    (bars / "simfx_m1.parquet").rename(bars / "eurusd_m1.parquet")
    if REAL_BARS.is_dir():
        beginning = pq.read_table(REAL_BARS / "sse_composite_m1.parquet").slice(0, 42_000)
        pq.write_table(beginning, bars / "sse_composite_m1.parquet")
    return checkout


def test_all_commands_in_order(checkout: Path) -> None:
    assert {command.split()[0] for command in COMMANDS} >= {"bin/demo", "bin/build-cache", "bin/train", "bin/evaluate"}
    for command in COMMANDS:
        if command == "bin/test" or ("sse" in command and not REAL_BARS.is_dir()):
            continue  # this is what runs now; the real bars are not everywhere
        if command == "bin/demo":
            continue  # has a test of its own
        if command.startswith("bin/train"):
            command += " --fast-dev-run"
        run(command, checkout)


def test_the_demo_and_its_second_run(checkout: Path) -> None:
    first = run("bin/demo", checkout)
    assert "best validation loss" in first
    picture = checkout / "runs/demo/reconstructions.png"
    assert picture.stat().st_size > 30_000
    second = run("bin/demo", checkout)
    assert "data/demo/simfx_m1.parquet is there already" in second
    assert "nothing was built" in second
    assert "The run runs/demo has finished" in second
    for suggestion in re.findall(r"^   (bin/\S+ .*?)(?:   |$)", first.split("What to try next")[1], re.MULTILINE):
        if not suggestion.startswith("bin/demo"):
            run(suggestion, checkout)


def test_the_python_of_the_readme(checkout: Path) -> None:
    """It names frames that a reader has; here they are made of the demo's bars."""
    if not (checkout / "runs/demo/best.safetensors").exists():
        run("bin/demo", checkout)
    (code,) = (block.text for block in BLOCKS if block.language == "python")
    frames = """import pandas
m1 = pandas.read_parquet("data/demo/simfx_m1.parquet").set_index("timestamp")
m1 = m1[: m1.index[m1.index.minute == 59][-1]]  # to the end of an hour
ways = dict(open="first", high="max", low="min", close="last")
m5, m15, h1 = (m1.resample(f"{minutes}min").agg(ways).dropna() for minutes in (5, 15, 60))
"""
    (checkout / "block.py").write_text(f"{frames}\n{code}\nprint(embedding.shape)\n")
    assert "[1, 4, 12, 48]" in run(".venv/bin/python block.py", checkout)


def test_every_block_of_the_readme_is_of_a_kind_that_is_run() -> None:
    assert {block.language for block in BLOCKS} <= {"sh", "python", "yaml", "text", "mermaid", ""}
    assert all(block.path for block in BLOCKS if block.language == "yaml")
