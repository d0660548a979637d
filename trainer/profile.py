"""Where the time of a step goes: a trace for chrome://tracing or Perfetto, and a summary in a dozen lines."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from trainer.model_size import forward_flops
from trainer.optim import one_cycle
from trainer.session import Session
from trainer.step import TrainingStep

WARM_UP = 15  # steps, until the step is compiled and captured
SHOWN = 8
# Dense half-precision matrix products, FLOP/s, from the makers' data sheets.
_PEAKS = {"B200": 2.25e15, "H200": 989e12, "H100": 989e12, "A100": 312e12, "L40": 181e12, "L4": 121e12, "4090": 165e12}


def profile_session(session: Session, path: Path, steps: int, advance: Callable[[int], object]) -> list[str]:
    """Do `steps` steps after the warm-up, write trace.json into the run directory, and tell where their time went.

    Of several ranks all do the steps, and the first writes.
    """
    config, device = session.config, session.source.device
    rates = one_cycle(WARM_UP + 3 * steps, config.lr, config.warmup)
    step = TrainingStep(config, session.source, session.task, session.model, rates, session.ranks)
    session.model.train()
    for _ in range(WARM_UP):
        step.run()
        advance(1)
    seconds = _timed(step.run, steps, device)
    loading = _timed(step.load_next, steps, device)
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # or it prints when it starts and stops
    with profile(activities=kinds, acc_events=True) as profiler:  # or it warns of further cycles
        for _ in range(steps):
            step.run()
            advance(1)
        _wait(device)
    if session.ranks.main:
        path.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(path / "trace.json"))
    windows = config.batch_size * config.accumulate
    flops = 3 * forward_flops(session.model) * windows / seconds
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    peak = next((peak for gpu, peak in _PEAKS.items() if gpu in name), None)
    share = f", {flops / peak:.1%} of what {name} can do in half precision" if peak else ""
    lines = [
        f"{1e3 * seconds:.2f} ms a step: {1 / seconds:,.1f} it/s, {windows / seconds:,.0f} windows/s",
        f"{flops / 1e12:.2f} TFLOP/s in matrix products and attention{share}",
        f"fetching a batch takes {loading / seconds:.1%} of a step"
        + (", beside it" if session.source.placement == "device" else ""),
    ]
    spent = {
        one.key: (one.self_device_time_total if device.type == "cuda" else one.self_cpu_time_total, one.count)
        for one in profiler.key_averages()
    }
    total = sum(microseconds for microseconds, _ in spent.values()) or 1
    most = sorted(spent.items(), key=lambda item: -item[1][0])[:SHOWN]
    lines += [f"{used / total:6.1%}  {count / steps:6.0f} a step  {key[:80]}" for key, (used, count) in most]
    return [*lines, f"the trace, for https://ui.perfetto.dev: {path / 'trace.json'}"]


def _timed(call: Callable[[], object], count: int, device: torch.device) -> float:
    """Mean seconds of a call."""
    _wait(device)
    began = time.perf_counter()
    for _ in range(count):
        call()
    _wait(device)
    return (time.perf_counter() - began) / count


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
