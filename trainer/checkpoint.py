"""Weights and checkpoints as safetensors: atomic, and read without executing anything.

Their header tells the MD5 of their content, since a damaged number is a number too, and which run they are of.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from cache.files import write_atomically
from configs.errors import UserError
from configs.loader import differences
from trainer.average import WeightAverage
from trainer.optim import AdamW, LossScaler, copy_state

_TOLD = "headstart"


@dataclass
class Progress:
    """Where a run is. (epoch, step within it) follow from `step`."""

    step: int = 0
    best_loss: float = float("inf")
    best_step: int = 0
    stale_epochs: int = 0
    best_score: float = float("inf")  # of what training.monitor names; lower is better


def save_weights(path: Path, model: nn.Module, of: Mapping[str, Any]) -> None:
    """The model's state as safetensors. `of` tells of the run, as trainer/described.py has it."""
    _write(path, model.state_dict(), {"of": of})


def load_weights(path: Path, model: nn.Module, of: Mapping[str, Any], only: str = "") -> None:
    """Read what `save_weights` wrote, or the part of it whose names begin with `only`.

    Raises UserError when it is damaged, of another run than `of` or of another model, or holds a number that is not
    finite.
    """
    tensors, written = _read(path, "copy it again from where the run was trained, or train again")
    if lines := "\n".join(
        f"  {name}: {old} there, {new} here" for name, old, new in differences(written["of"], dict(of))
    ):
        raise UserError(
            f"{path}: holds the weights of another run:\n{lines}\nCopy the file again from where this run was trained, "
            "or train again"
        )
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise UserError(
                f"{path}: {name} holds numbers that are not finite, so that all results would be NaN; copy the file "
                "again from where the run was trained, or train again, with a lower training.lr"
            )
    own, given = (
        {name: one for name, one in of.items() if name.startswith(only)} for of in (model.state_dict(), tensors)
    )
    _copy(own, given, path)


def save_checkpoint(
    run: Path,
    model: nn.Module,
    optimizer: AdamW,
    scaler: LossScaler,
    progress: Progress,
    average: WeightAverage | None = None,
) -> None:
    """Everything needed to go on as if nothing had happened, in one file."""
    state = _state(model, optimizer, scaler, average)
    _write(run / "last" / "checkpoint.safetensors", state, {"progress": asdict(progress)})


def has_checkpoint(run: Path) -> bool:
    """Whether there is something to go on from."""
    return (run / "last" / "checkpoint.safetensors").exists()


def load_checkpoint(
    run: Path, model: nn.Module, optimizer: AdamW, scaler: LossScaler, average: WeightAverage | None = None
) -> Progress | None:
    """Continue from the last checkpoint, if there is one. Raises UserError when it is damaged or of another model."""
    if not has_checkpoint(run):
        return None
    path = run / "last" / "checkpoint.safetensors"
    remedy = "delete it, and --resume begins at the first step; or start a new run"
    tensors, written = _read(path, remedy)
    _copy(_state(model, optimizer, scaler, average), tensors, path)
    return Progress(**written["progress"])


def _write(path: Path, tensors: Mapping[str, Tensor], told: Mapping[str, Any]) -> None:
    """Tensors, and what is told of them, as one text: the order of several would vary from process to process."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, save(plain, {_TOLD: json.dumps({"md5": _md5(plain), **told}, sort_keys=True)}))


def _read(path: Path, remedy: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            told: dict[str, Any] = json.loads((file.metadata() or {})[_TOLD])
        if told["md5"] == _md5(tensors):
            return tensors, told
        found = "its content is not what was written"
    except SafetensorError as error:
        found = str(error)
    except (KeyError, TypeError, ValueError):
        found = "its header does not tell what was written"
    raise UserError(f"{path}: damaged ({found}); {remedy}")


def _md5(tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.md5(usedforsecurity=False)
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _state(model: nn.Module, optimizer: AdamW, scaler: LossScaler, average: WeightAverage | None) -> dict[str, Tensor]:
    parts = {"model": model.state_dict(), "optimizer": optimizer.state_tensors(), "scaler": scaler.state_tensors()}
    parts |= {"average": average.state_tensors()} if average else {}
    return {f"{part}.{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}


@torch.no_grad()
def _copy(own: dict[str, Tensor], given: dict[str, Tensor], path: Path) -> None:
    try:
        copy_state(own, given, "its content")
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
