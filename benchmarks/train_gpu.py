"""Training on one GPU: Headstart's step as a CUDA graph, compiled, and eager, against a Lightning Trainer.

The Trainer has the same model, masks and loss, bf16-mixed, and a DataLoader with 8 workers over the same memory maps.
Each is a process of its own, one after the other. Data: one-minute bars by bin/simulate and the dataset `sim` of
configs/production.yaml, in a store.

    python -m benchmarks.train_gpu --store STORE            prints a table, and writes it into docs/benchmarks.md

`--ways` and `--batches` choose some of it; with `--results FILE` the table has what earlier calls kept there, too.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.train_rival import lightning_step

BATCHES = (64, 256, 1024)
WAYS = ("lightning", "eager", "graph", "compile", "host")
ROUNDS = 3


def main() -> None:
    """Start the processes, or be one."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS)
    parser.add_argument("--results", type=Path, help="JSON of earlier results, to add to")
    parser.add_argument("--one", nargs=2, metavar=("WAY", "BATCH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        way, batch = options.one[0], int(options.one[1])
        print(json.dumps(measure_one(options.store, way, batch)))
        return
    command = [sys.executable, "-m", "benchmarks.train_gpu", "--store", str(options.store), "--one"]
    kept = options.results and options.results.exists()
    found: dict[str, dict[str, Any]] = json.loads(options.results.read_text()) if kept else {}
    for batch, way in itertools.product(options.batches, options.ways):
        ended = subprocess.run([*command, way, str(batch)], stdout=subprocess.PIPE, text=True)
        if ended.returncode == 0:
            found[f"{batch} {way}"] = json.loads(ended.stdout.splitlines()[-1])
    if options.results:
        options.results.write_text(json.dumps(found))
    table = as_table(found)
    print(table)
    measure.replace_section(measure.PAGE, "Training on one GPU", table)


def measure_one(store: Path, way: str, batch: int) -> dict[str, Any]:
    """Iterations a second of one way, and what it cost to get there."""
    import torch

    from cache.reader import open_dataset

    began = time.perf_counter()
    if way == "lightning":
        step = lightning_step(session_of(store, batch), open_dataset(store, "sim"))
    else:
        step = our_step(store, way, batch)
    step(1)
    torch.cuda.synchronize()
    first = time.perf_counter() - began
    step(15)
    seconds = []
    for _ in range(ROUNDS):
        count = 20 if way in ("lightning", "eager") else 50
        seconds.append(seconds_of(step, count) / count)
    peak = torch.cuda.max_memory_allocated() / 2**30
    share = data_share(step, our_step(store, way, batch, still=True)) if way in ("graph", "host") else None
    median = statistics.median(seconds)
    return {
        "gpu": torch.cuda.get_device_name(),
        "it/s": 1 / median,
        "spread": (max(seconds) - min(seconds)) / median,
        "windows/s": batch / median,
        "first": first,
        "peak": peak,
        "data": share,
        **getattr(step, "facts", dict)(),
    }


def data_share(step: Callable[[int], None], still: Callable[[int], None]) -> float:
    """What part of a step the fetching takes: the step against one that trains on the same batch again and again."""
    still(15)
    found = [[seconds_of(one, 50) for one in (step, still)] for _ in range(ROUNDS)]
    return statistics.median(1 - without / whole for whole, without in found)


def seconds_of(step: Callable[[int], None], count: int) -> float:
    """Of so many steps."""
    import torch

    torch.cuda.synchronize()
    start = time.perf_counter()
    step(count)
    torch.cuda.synchronize()
    return time.perf_counter() - start


def session_of(store: Path, batch: int, *overrides: str) -> Any:
    """The production model on the dataset, ready to train."""
    from cache.console import Console
    from cache.reader import open_dataset
    from configs.loader import load_config
    from trainer.config import parse_trainer
    from trainer.session import open_session

    config = load_config(
        "configs/production.yaml",
        ["data.name=sim", f"training.batch_size={batch}", "training.steps_per_epoch=null", *overrides],
    )
    return open_session(parse_trainer(config), open_dataset(store, "sim"), Console(sys.stderr))


class OurStep:
    """Headstart's step, and what it says of itself."""

    def __init__(self, store: Path, way: str, batch: int, still: bool) -> None:
        import torch

        from trainer.optim import one_cycle
        from trainer.step import TrainingStep

        if way == "host":  # as where the streams do not fit
            torch.cuda.mem_get_info = lambda device=None: (0, 0)  # type: ignore[method-assign]
        session = self.session = session_of(store, batch, f"training.step={'graph' if way == 'host' else way}")
        rates = one_cycle(100_000, 1e-3, 0.05)
        self.step = TrainingStep(session.config, session.source, session.task, session.model, rates, session.ranks)
        session.model.train()
        if still:
            batches = self.step._batches
            batches.provide(0)
            loaded = [[one.clone() for one in of] for of in batches.load(torch.tensor(0, device=session.source.home))]
            batches.load = lambda number: loaded  # type: ignore[method-assign]
            batches.provide = lambda step: None  # type: ignore[method-assign]

    def __call__(self, count: int) -> None:
        for _ in range(count):
            self.step.run()

    def facts(self) -> dict[str, Any]:
        """FLOPs a window forward and backward, the loss, and what keeps compiled artefacts."""
        from trainer.model_size import forward_flops

        if self.session.compiled:
            self.session.compiled.save()
        return {"flops": 3 * forward_flops(self.session.model), "loss": self.step.log.take()["loss"]}


def our_step(store: Path, way: str, batch: int, still: bool = False) -> Callable[[int], None]:
    """Steps of Headstart; `still`: on the first batch always."""
    return OurStep(store, way, batch, still)


def as_table(found: dict[str, dict[str, Any]]) -> str:
    """Markdown."""
    gpu = next(iter(found.values()))["gpu"]
    lines = [
        f"One {gpu}, bf16, medians of {ROUNDS} rounds; `first` is from an open dataset to the end of the first step;",
        "`data`: by how much a step is longer than one on the same batch again.",
        "",
        "| batch | way | it/s | × Lightning | windows/s | data | TFLOP/s | first | peak GiB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in sorted(found, key=lambda name: (int(name.split()[0]), WAYS.index(name.split()[1]))):
        (batch, way), one = name.split(), found[name]
        rival = found.get(f"{batch} lightning", {}).get("it/s")
        times = f"{one['it/s'] / rival:.1f}" if rival else "–"
        flops = f"{one['flops'] * one['windows/s'] / 1e12:.0f}" if "flops" in one else "–"
        data = f"{one['data']:.1%}" if one.get("data") is not None else "–"
        rates = (f"{one['it/s']:.0f}", times, f"{one['windows/s']:,.0f}", data, flops)
        cells = (batch, way, *rates, f"{one['first']:.1f} s")
        lines.append(f"| {' | '.join(cells)} | {one['peak']:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
