"""Training on several GPUs of one host: how it scales, and whether they learn what one does.

Runs of bin/train, one after another: on one GPU, on several with as many windows each, and on one with the windows of
all. Data: one-minute bars by bin/simulate and the dataset `sim` of configs/production.yaml, in a store.

    python -m benchmarks.train_gpus --store STORE           prints a table, and writes it into docs/benchmarks.md
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import measure

STEPS, LOGGED, SETTLED = 600, 50, 200  # rates count after so many


def main() -> None:
    """Train, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--batches", type=int, nargs="+", default=(64, 256, 1024), help="windows of each GPU")
    options = parser.parse_args()
    several, lines = options.devices, []
    for batch in options.batches:
        one, many, same = (
            trained(options.store, devices, windows)
            for devices, windows in ((1, batch), (several, batch * several), (1, batch * several))
        )
        apart = max(abs(a["loss"] / b["loss"] - 1) for a, b in zip(many, same, strict=True))
        rates = [rate(of) for of in (one, many, same)]
        lines.append(
            (str(batch), *(f"{r:,.0f}" for r in rates), f"{rates[1] / rates[0] / several:.3f}", f"{apart:.2%}")
        )
    import torch  # here, so that its memory on a GPU, if any, is not there while others train

    head = ("windows a GPU", "one, windows/s", f"{several}, windows/s", "one with all, windows/s", "efficiency")
    rows = [(*head, "losses apart, at most"), ["--:"] * (1 + len(head)), *lines]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    name = torch.cuda.get_device_name()
    text = f"{several} × {name}, bf16, {STEPS} steps, medians after step {SETTLED}.\n\n{table}"
    print(text)
    measure.replace_section(measure.PAGE, "Training on several GPUs", text)


def trained(store: Path, devices: int, batch: int) -> list[dict[str, Any]]:
    """The log of a run."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "trainer.train_command", "--config", "configs/production.yaml"]
        settings = {
            "batch_size": batch,
            "steps_per_epoch": STEPS,
            "max_epochs": 1,
            "log_every": LOGGED,
            "val_windows": 64,
        }
        words = ["data.name=sim", "data.source.files.m1=simfx_m1.parquet"]
        words += [f"training.{key}={value}" for key, value in settings.items()]
        run = Path(folder) / "run"
        subprocess.run([*command, *words, "--store", store, "--run", run, "--devices", str(devices)], check=True)
        records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        return [record for record in records if record["kind"] == "train"]


def rate(log: list[dict[str, Any]]) -> float:
    """Windows a second."""
    return statistics.median(record["windows_per_second"] for record in log if record["step"] > SETTLED)


if __name__ == "__main__":
    main()
