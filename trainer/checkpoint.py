"""Weights and checkpoints as safetensors: atomic, and read without executing anything."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from cache.files import write_atomically
from configs.errors import UserError
from trainer.optim import AdamW, LossScaler, copy_state


@dataclass
class Progress:
    """Where a run is. (epoch, step within it) follow from `step`."""

    step: int = 0
    best_loss: float = float("inf")
    best_step: int = 0
    stale_epochs: int = 0
    best_score: float = float("inf")  # of what training.monitor names; lower is better


def save_weights(path: Path, model: nn.Module) -> None:
    """The model's state as safetensors."""
    write_atomically(path, save({name: tensor.contiguous() for name, tensor in model.state_dict().items()}))


def load_weights(path: Path, model: nn.Module) -> None:
    """Read what `save_weights` wrote. Raises UserError when it is damaged or of another model."""
    tensors, _ = _read(path)
    _copy(model.state_dict(), tensors, path)


def save_checkpoint(run: Path, model: nn.Module, optimizer: AdamW, scaler: LossScaler, progress: Progress) -> None:
    """Everything needed to go on as if nothing had happened, in one file."""
    tensors = {name: tensor.contiguous() for name, tensor in _state(model, optimizer, scaler).items()}
    metadata = {"progress": json.dumps(asdict(progress))}
    write_atomically(run / "last" / "checkpoint.safetensors", save(tensors, metadata))


def load_checkpoint(run: Path, model: nn.Module, optimizer: AdamW, scaler: LossScaler) -> Progress | None:
    """Continue from the last checkpoint, if there is one. Raises UserError when it is damaged or of another model."""
    path = run / "last" / "checkpoint.safetensors"
    if not path.exists():
        return None
    tensors, metadata = _read(path)
    _copy(_state(model, optimizer, scaler), tensors, path)
    return Progress(**json.loads(metadata["progress"]))


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{path}: damaged ({error}); delete it, or start a new run") from None


def _state(model: nn.Module, optimizer: AdamW, scaler: LossScaler) -> dict[str, Tensor]:
    parts = {"model": model.state_dict(), "optimizer": optimizer.state_tensors(), "scaler": scaler.state_tensors()}
    return {f"{part}.{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}


@torch.no_grad()
def _copy(own: dict[str, Tensor], given: dict[str, Tensor], path: Path) -> None:
    try:
        copy_state(own, given, "its content")
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
