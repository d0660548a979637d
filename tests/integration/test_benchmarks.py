"""benchmarks/peers.py with the ways that need no installation, on little data."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.peer_process import check

ROOT = Path(__file__).parents[2]


def test_peers_are_measured_and_written_into_the_page(tmp_path: Path) -> None:
    page = tmp_path / "benchmarks.md"
    page.write_text("# Benchmarks\n\n## Peers, side by side\n\nold\n\n## Other\n\nstays\n")
    small = ["--rows", "120000", "--repeats", "1", "--seconds", "0.01", "--windows", "500", "--page", page]
    command = [sys.executable, "-m", "benchmarks.peers", *small, "--ways", "tensors"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    assert "old" not in text and text.endswith("\n## Other\n\nstays\n")
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows] == ["| way", "| ---", "| Headstart", "| TensorDataset †"]
    for row in rows[2:]:
        assert len(row) == len(rows[0])
        for cell in row[4:]:
            assert float(re.fullmatch(r"([\d,.]+) \(once\)( \|)?", cell)[1].replace(",", "")) > 0
    assert "could not be measured" not in text
    assert text.count("\n* ") == 6  # what was claimed, each with a verdict


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    rng = np.random.default_rng(1)
    np.save(tmp_path / "x0.npy", rng.normal(size=(200, 6)).astype(np.float32))
    np.save(tmp_path / "ends.npy", np.arange(64, 200, dtype=np.int32)[:, None])
    return tmp_path


def test_a_batch_of_other_windows_is_not_timed(arrays: Path) -> None:
    values, ends = np.load(arrays / "x0.npy"), np.load(arrays / "ends.npy")
    numbers = torch.tensor([7, 3, 90])
    x = torch.from_numpy(np.stack([values[end - 64 : end] for (end,) in ends[numbers]]))
    check(arrays, numbers, [x], 3)
    for wrong in (
        (numbers, [x + 2e-6]),
        (numbers, [x.double()]),
        (numbers, [x[:, 1:]]),
        (numbers, [x, x]),
        (numbers + 1, [x]),
        (torch.tensor([3, 3, 90]), [x]),
    ):
        with pytest.raises(SystemExit):
            check(arrays, *wrong, 3)
    with pytest.raises(SystemExit):
        check(arrays, numbers.sort()[0], [x[[1, 0, 2]]], 3)  # not shuffled
    with pytest.raises(SystemExit):
        check(arrays, numbers, [x], 4)
