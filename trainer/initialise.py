"""Begin with the encoder that another run has trained, such as one that has learnt to reconstruct."""

import json
from pathlib import Path
from typing import Any

from configs.errors import UserError
from configs.loader import differences
from trainer.checkpoint import load_weights
from trainer.described import identity
from trainer.model import WindowModel

_SAME = ("kind", "timeframes", "seq_lens", "bar_lengths", "features", "normalise", "model")


def load_backbone(run: Path, model: WindowModel, described: dict[str, Any]) -> str:
    """Give the model the backbone of a run's best weights; what to say about it.

    Of a run of all folds it takes the one of the same fold. `described` is what encoder.json will say of the model's
    own run. Raises UserError for a run that is not there, was trained on other channels or with another encoder,
    or has learnt labels that are to be told here.
    """
    fold = described.get("fold")
    if (run / f"fold{fold}").is_dir():
        run = run / f"fold{fold}"
    path, weights = run / "encoder.json", run / "best.safetensors"
    for needed in (path, weights):
        if not needed.is_file():
            raise UserError(f"training.init_from = {run}: it has no {needed.name}; name a run that has been trained")
    try:
        other = json.loads(path.read_bytes())
        changed = list(differences(_compared(other), _compared(described)))
    except (ValueError, TypeError, AttributeError):
        raise UserError(f"{path}: damaged; name another run as training.init_from") from None
    if changed:
        lines = "\n".join(f"  {key}: {old} there, {new} here" for key, old, new in changed)
        raise UserError(f"training.init_from = {run}: its encoder is not of the kind that is wanted here:\n{lines}")
    warning = "" if fold is None else _overlap(run, other, described)
    load_weights(weights, model, identity(other), "backbone.")
    return f"begins with the encoder of {run}{warning}"


def _overlap(run: Path, other: dict[str, Any], described: dict[str, Any]) -> str:
    """What to say of recordings that a run has trained on and the fold validates on. Raises UserError for labels."""
    fold, task = described["fold"], other.get("task")
    if other.get("dataset") != described["dataset"]:
        return f"; it is of another dataset, and may have seen recordings that fold {fold} validates on"
    if other.get("fold") == fold:
        return ""
    if task == "classify":
        raise UserError(
            f"training.init_from = {run}: it has learnt the labels of recordings that fold {fold} validates on, so "
            f"that scores would mean nothing; name a run of fold {fold}, or of all folds"
        )
    without = ", without labels," if task == "reconstruct" else ""
    return f"; it has seen{without} recordings that fold {fold} validates on"


def _compared(described: dict[str, Any]) -> dict[str, Any]:
    """What must be the same; dropout may differ."""
    found = {name: described.get(name) for name in _SAME}
    return found | {"model": {name: value for name, value in described["model"].items() if name != "dropout"}}
