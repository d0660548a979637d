"""Memory: what a process holds, and what to do when a GPU has too little."""

import resource
import sys
from collections.abc import Callable

import torch

from configs.errors import UserError
from trainer.config import TrainingConfig


def memory_use(device: torch.device) -> dict[str, float]:
    """Peaks so far in MB (10⁶ bytes): `rss_mb` of the process, `cuda_mb` allocated on the GPU where there is one."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    use = {"rss_mb": round(peak / 1e6, 1)}
    if device.type == "cuda":
        use["cuda_mb"] = round(torch.cuda.max_memory_allocated(device) / 1e6, 1)
    return use


def out_of_memory_advice(config: TrainingConfig, device: torch.device, attempt: Callable[[int], None]) -> UserError:
    """The error for a step that did not fit, with a batch size that was tried and does.

    `attempt` runs forward and backward of one batch of a given size; it raises torch.OutOfMemoryError as the step did.
    """
    size = config.batch_size
    while size > 1:
        size //= 2
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        try:
            attempt(size)
        except torch.OutOfMemoryError:
            continue
        used = f" ({memory_use(device)['cuda_mb'] / 1e3:.1f} GB at its peak)" if device.type == "cuda" else ""
        accumulate = config.accumulate * -(-config.batch_size // size)
        precision = "" if config.precision != "fp32" else "; training.precision=bf16 takes about half of it"
        return UserError(
            f"out of GPU memory with training.batch_size = {config.batch_size}. Tried here: batches of {size} fit"
            f"{used}. The same steps with less memory: training.batch_size={size} training.accumulate={accumulate}"
            f"{precision}"
        )
    return UserError(
        f"out of GPU memory even with batches of 1 (training.batch_size = {config.batch_size} was asked for); make the "
        "model smaller (model.d_model, model.encoder.n_layers) or the windows shorter (data.window.seq_len)"
    )
