"""Begin with the encoder that another run has trained, such as one that has learnt to reconstruct."""

import json
from pathlib import Path
from typing import Any

from cache.json_types import fault
from configs.errors import UserError
from configs.loader import differences
from trainer.checkpoint import load_weights
from trainer.described import ENCODER_FORMAT, SEEN, identity
from trainer.model import WindowModel

_SAME = ("kind", "timeframes", "seq_lens", "bar_lengths", "features", "normalise", "model")
_READ = {"format": int, "model": dict, "seen": [SEEN]}


def load_backbone(run: Path, model: WindowModel, described: dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    """Give the model the backbone of a run's best weights; what to say about it, and what it has seen.

    Of a run of all folds it takes the one of the same fold. `described` is what encoder.json says of the model's own
    run. Raises UserError for a run that is not there, was trained on other channels or with another encoder, or has
    learnt labels that are to be told here, be it from a run that it began with.
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
        if (found := other["format"]) != ENCODER_FORMAT:
            raise UserError(f"{path}: has format {found}, and this version reads {ENCODER_FORMAT}; train the run again")
        if wrong := fault(other, _READ):
            raise ValueError(wrong)
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: damaged; name another run as training.init_from") from None
    if changed := list(differences(_compared(other), _compared(described))):
        lines = "\n".join(f"  {key}: {old} there, {new} here" for key, old, new in changed)
        raise UserError(f"training.init_from = {run}: its encoder is not of the kind that is wanted here:\n{lines}")
    seen, own = other["seen"], described["seen"]
    remarks = [_overlap(run, one, own[0], before=number > 0) for number, one in enumerate(seen) if own]
    load_weights(weights, model, identity(other), "backbone.")
    return "; ".join([f"begins with the encoder of {run}", *dict.fromkeys(filter(None, remarks))]), seen


def _overlap(run: Path, seen: dict[str, Any], own: dict[str, Any], before: bool) -> str:
    """What to say of recordings that a run, or one `before` it, has learnt from and the own fold validates on.

    Other entries may hold the same recordings, which cannot be told; the same ones in other folds all but surely share
    some. Raises UserError for labels.
    """
    fold, task = own["fold"], seen["task"]
    if (seen["windows"], seen["fold"]) == (own["windows"], fold):
        return ""
    labels = {"reconstruct": "without", "classify": "with"}.get(task, "perhaps with") + " their labels"
    if not {*seen["recordings"]} & {*own["recordings"]}:
        return f"it has seen recordings of another dataset, {labels}, and fold {fold} may validate on some of them"
    if task != "classify":
        return f"it has seen, {labels}, recordings that fold {fold} validates on"
    who, remedy = ("it began with a run that", ", that began with none of another") if before else ("it", "")
    raise UserError(
        f"training.init_from = {run}: {who} has learnt the labels of recordings that fold {fold} validates on, so that "
        f"scores would mean nothing; name a run of fold {fold} of this dataset, or of all its folds{remedy}"
    )


def _compared(described: dict[str, Any]) -> dict[str, Any]:
    """What must be the same; dropout may differ."""
    found = {name: described.get(name) for name in _SAME}
    return found | {"model": {name: value for name, value in described["model"].items() if name != "dropout"}}
