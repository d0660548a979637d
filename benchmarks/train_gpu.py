"""Training on one GPU: Headstart's step as a CUDA graph, compiled, and eager, against a Lightning Trainer.

The Trainer has the same model, masks and loss, bf16-mixed, and a DataLoader with 8 workers over the same memory maps.
All of them are processes of their own; compiling may overlap, but only one process at a time measures. Data: one-minute
bars by bin/simulate and the dataset `sim` of configs/production.yaml, in a store.

    python -m benchmarks.train_gpu --store STORE            prints a table, and writes it into docs/benchmarks.md

`--ways` and `--batches` choose some of it; with `--results FILE` the table has what earlier calls kept there, too.
"""

import argparse
import fcntl
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import measure

BATCHES = (64, 256, 1024)
WAYS = ("lightning", "eager", "graph", "compile", "host")
WORKERS, ROUNDS = 8, 3


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
    for batch in options.batches:  # the ways of one batch size fit a GPU's memory together
        started = {
            way: subprocess.Popen([*command, way, str(batch)], stdout=subprocess.PIPE, text=True)
            for way in options.ways
        }
        for way, process in started.items():
            out, _ = process.communicate()
            if process.returncode == 0:
                found[f"{batch} {way}"] = json.loads(out.splitlines()[-1])
    if options.results:
        options.results.write_text(json.dumps(found))
    table = as_table(found)
    print(table)
    measure.replace_section(measure.PAGE, "Training on one GPU", table)


def measure_one(store: Path, way: str, batch: int) -> dict[str, Any]:
    """Iterations a second of one way, and what it cost to get there."""
    import torch

    began = time.perf_counter()
    step = lightning_step(store, batch) if way == "lightning" else our_step(store, way, batch)
    step(1)
    torch.cuda.synchronize()
    first = time.perf_counter() - began
    step(15)
    seconds = []
    with alone(store):
        for _ in range(ROUNDS):
            torch.cuda.synchronize()
            start = time.perf_counter()
            count = 20 if way in ("lightning", "eager") else 50
            step(count)
            torch.cuda.synchronize()
            seconds.append((time.perf_counter() - start) / count)
    median = statistics.median(seconds)
    return {
        "gpu": torch.cuda.get_device_name(),
        "it/s": 1 / median,
        "spread": (max(seconds) - min(seconds)) / median,
        "windows/s": batch / median,
        "first": first,
        "peak": torch.cuda.max_memory_allocated() / 2**30,
        **getattr(step, "facts", dict)(),
    }


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

    def __init__(self, store: Path, way: str, batch: int) -> None:
        import torch

        from trainer.optim import one_cycle
        from trainer.step import TrainingStep

        mode = way if way != "host" else "graph"
        if way == "host":  # as where the streams do not fit
            torch.cuda.mem_get_info = lambda device=None: (0, 0)  # type: ignore[method-assign]
        self.session = session_of(store, batch, f"training.step={mode}")
        session = self.session
        rates = one_cycle(100_000, 1e-3, 0.05)
        self.step = TrainingStep(session.config, session.source, session.task, session.model, rates, session.ranks)
        session.model.train()

    def __call__(self, count: int) -> None:
        for _ in range(count):
            self.step.run()

    def facts(self) -> dict[str, Any]:
        """FLOPs a window forward and backward, the loss, and what keeps compiled artefacts."""
        from trainer.model_size import forward_flops

        if self.session.compiled:
            self.session.compiled.save()
        return {"flops": 3 * forward_flops(self.session.model), "loss": self.step.log.take()["loss"]}


def our_step(store: Path, way: str, batch: int) -> Callable[[int], None]:
    """Steps of Headstart."""
    return OurStep(store, way, batch)


def lightning_step(store: Path, batch: int) -> Callable[[int], None]:
    """Steps of a Lightning Trainer, which is let go on for `count` steps at a time."""
    import lightning
    import torch

    from cache.reader import open_dataset
    from trainer.data import WindowSource

    session = session_of(store, batch)
    rows = WindowSource(open_dataset(store, "sim"), torch.device("cpu"))
    windows = RivalWindows(rows, len(rows.train))
    loader = torch.utils.data.DataLoader(
        windows, batch, shuffle=True, num_workers=WORKERS, pin_memory=True, drop_last=True, persistent_workers=True
    )
    source, task, config = session.source, session.task, session.config

    class Module(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = session.model

        def training_step(self, fetched: list[Any], number: int) -> Any:
            index, *arrays = fetched
            batch = source.batch(index, arrays)
            losses = task.training_losses(self.model, batch, task.drawn(batch, 0))
            self.log_dict(losses, prog_bar=False)
            return losses["loss"]

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.parameters(), config.lr, fused=True)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, 100_000)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    module = Module()
    batches = endless(loader)
    trainer = lightning.Trainer(
        max_steps=-1, accelerator="gpu", devices=1, precision="bf16-mixed", gradient_clip_val=None, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    return Fit(trainer, module, batches)


class Fit:
    """`trainer.fit` in portions: it stays in the loop, in a thread, and is fed so many batches."""

    def __init__(self, trainer: Any, module: Any, batches: Iterator[Any]) -> None:
        import queue
        import threading

        self.wanted: queue.Queue[int] = queue.Queue()
        self.done: queue.Queue[int] = queue.Queue()

        def feed() -> Iterator[Any]:
            while True:
                count = self.wanted.get()
                for _ in range(count):
                    yield next(batches)
                self.done.put(count)

        class Endless:
            def __iter__(self) -> Iterator[Any]:
                return feed()

        threading.Thread(target=lambda: trainer.fit(module, Endless()), daemon=True).start()

    def __call__(self, count: int) -> None:
        self.wanted.put(count)
        self.done.get()


class RivalWindows:
    """A map-style dataset of windows, one slice of each memory map a window."""

    def __init__(self, source: Any, count: int) -> None:
        self.source, self.count = source, count
        (self.train,) = source.train.ranges

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place: int) -> list[Any]:
        import torch

        index = torch.tensor([self.train[place]])
        return [index[0], *(one[0].clone() for one in self.source.fetch(index))]


def endless(loader: Any) -> Iterator[Any]:
    """Epoch after epoch."""
    while True:
        yield from loader


@contextmanager
def alone(store: Path) -> Iterator[None]:
    """Measure while no other process of this benchmark does."""
    with (store / ".benchmark").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def as_table(found: dict[str, dict[str, Any]]) -> str:
    """Markdown."""
    gpu = next(iter(found.values()))["gpu"]
    lines = [
        f"One {gpu}, bf16, medians of {ROUNDS} rounds; `first` is from an open dataset to the end of the first step.",
        "",
        "| batch | way | it/s | × Lightning | windows/s | TFLOP/s | first | peak GiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in sorted(found, key=lambda name: (int(name.split()[0]), WAYS.index(name.split()[1]))):
        (batch, way), one = name.split(), found[name]
        rival = found.get(f"{batch} lightning", {}).get("it/s")
        times = f"{one['it/s'] / rival:.1f}" if rival else "–"
        flops = f"{one['flops'] * one['windows/s'] / 1e12:.0f}" if "flops" in one else "–"
        cells = (batch, way, f"{one['it/s']:.0f}", times, f"{one['windows/s']:,.0f}", flops, f"{one['first']:.1f} s")
        lines.append(f"| {' | '.join(cells)} | {one['peak']:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
