"""Every command of the README is run, in a folder that looks like a fresh checkout, on little data."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
REAL_BARS = ROOT.parent / "shared" / "data" / "bars"
COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    checkout = tmp_path_factory.mktemp("place") / "main"
    for name in ("bin", "cache", "configs", "pipeline", "trainer"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "constraints.txt"):
        shutil.copy2(ROOT / name, checkout / name)
    (checkout / ".venv").symlink_to(ROOT / ".venv")
    (mine,) = (block for block in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL) if "name: mine" in block)
    (checkout / "configs/mine.yaml").write_text(mine)
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


def run(command: str, checkout: Path) -> str:
    home = {"HOME": str(checkout.parent / "home")}
    done = subprocess.run(
        command, shell=True, cwd=checkout, env=os.environ | home, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


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


def test_the_python_of_the_format_reads_a_store(checkout: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/format.md").read_text(), re.DOTALL)
    printed = run(f"{ROOT / '.venv/bin/python'} - <<'CODE'\n{code}\nCODE", checkout)
    assert printed.count("[") == 65  # 64 bars, each a row of the printed array
