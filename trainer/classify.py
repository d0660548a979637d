"""The task `classify`: which class is a recording of?

Shape suffixes: B batch, L rows, F features, C classes of a label.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cache.part import Part, part_of
from cache.reader import Dataset
from configs.errors import UserError
from trainer.augment import Sensor, augmented, mixed, mixing, sensor_of, window_draws
from trainer.axes import axes_of
from trainer.class_metrics import confusion, scores
from trainer.classifier import Classifier
from trainer.config import TrainerConfig
from trainer.data import Batch, WindowSource, spread
from trainer.inputs import all_visible, apply_masks
from trainer.masking import Masks
from trainer.measures import in_words
from trainer.predictions import Predictions, write_predictions
from trainer.task import Advance


@dataclass(frozen=True)
class Classify:
    """Tell the class of every label; each counts the same in the loss.

    Attributes:
        part: where labels, ids and groups of windows stand.
        classes: names of the classes, by label.
        binary: the label that another one was made into, if there is one: its class 1 is what is looked for.
        counts: how many training windows each class has, int64 [C] a label.
        class_weights: float32 [C] a label.
    """

    config: TrainerConfig
    part: Part
    seq_lens: tuple[int, ...]
    features: tuple[str, ...]
    classes: dict[str, list[str]]
    binary: str | None
    counts: tuple[Tensor, ...]
    class_weights: tuple[Tensor, ...]
    sensor: Sensor

    @property
    def monitors(self) -> dict[str, int]:
        """What of `validate` training.monitor may name."""
        measured = ("score", "accuracy", "macro_f1", *(["binary_f1"] if self.binary else []))
        return {"loss": 1, **dict.fromkeys(measured, -1)}

    @property
    def weights(self) -> dict[str, float]:
        """By label."""
        return dict.fromkeys(self.classes, 1 / len(self.classes))

    def compiled(self) -> "Classify":
        """The same with losses fused by torch.compile."""
        fused = replace(self)
        vars(fused)["losses"] = torch.compile(self.losses, dynamic=False)
        return fused

    def build_model(self) -> Classifier:
        """The model, initialised from the seed. Raises ValueError for dimensions that do not fit."""
        torch.manual_seed(self.config.training.seed)
        n_classes = tuple(len(known) for known in self.classes.values())
        return Classifier(len(self.features), self.seq_lens, (1,) * len(self.seq_lens), self.config.model, n_classes)

    def check(self, source: WindowSource) -> list[str]:
        """All there is to check was checked when the task was made."""
        return []

    def inputs(self, x_BLF: Tensor, padding_BL: Tensor) -> list[Tensor]:
        """What the model sees of windows: features, and 1 behind them where a row is padding; [B, L, F + 1]."""
        return apply_masks([x_BLF], Masks([padding_BL]), ())

    def drawn(self, batch: Batch, epoch: int | Tensor) -> list[Tensor]:
        """What the model sees of a batch, augmented as this epoch has it; the share of each class, [B, C] a label."""
        (x_BLF,), padding_BL = batch.x, padding_of(batch)
        settings, sensor = self.config.classify.augment, self.sensor
        keys_B = window_draws(self.config.training.seed, epoch, batch.index)
        x_BLF = augmented(x_BLF, padding_BL, keys_B, settings, sensor)
        shares = self.targets(batch.labels)
        if settings.mixup:
            share_B = mixing(keys_B, sensor)
            x_BLF, shares = mixed(x_BLF, share_B), [mixed(one, share_B) for one in shares]
            padding_BL = padding_BL & padding_BL.roll(1, 0)
        return [*self.inputs(x_BLF, padding_BL), *shares]

    def targets(self, label_BK: Tensor) -> list[Tensor]:
        """1 for the true class and 0 for the others, float32 [B, C] a label, of int64 [B, labels]."""
        numbers = [torch.arange(len(known), device=label_BK.device) for known in self.classes.values()]
        return [(label_B[:, None] == one).float() for label_B, one in zip(label_BK.unbind(1), numbers, strict=True)]

    def losses(self, logits: list[Tensor], targets: list[Tensor]) -> dict[str, Tensor]:
        """The loss of every label by its name, and their mean as `loss`."""
        settings = self.config.classify
        terms = {
            name: class_loss(logits_BC, target_BC, weight_C, settings.label_smoothing, settings.focal_gamma)
            for name, logits_BC, target_BC, weight_C in zip(
                self.classes, logits, targets, self.class_weights, strict=True
            )
        }
        return {"loss": torch.stack([*terms.values()]).mean(), **terms}

    def training_losses(self, model: torch.nn.Module, batch: Batch, drawn: list[Tensor]) -> dict[str, Tensor]:
        """The losses of one augmented batch."""
        x_BLC, *targets = drawn
        return self.losses(model([x_BLC]), targets)

    @torch.no_grad()
    def predict(self, model: torch.nn.Module, source: WindowSource, index_W: Tensor, advance: Advance) -> Predictions:
        """What the model makes of windows (int64 [W]). Raises UserError where that is no number."""
        model.eval()
        truth, logits = [], []
        for index_B in index_W.split(self.config.training.batch_size):
            batch = source.gather(index_B)
            logits.append(model(self.inputs(batch.x[0], padding_of(batch))))
            truth.append(batch.labels.clone())
            advance(len(batch))
        model.train()
        joined = tuple(torch.cat(parts).float() for parts in zip(*logits, strict=True))
        self._check_finite(index_W, joined)
        return Predictions(index_W, torch.cat(truth), joined)

    def _check_finite(self, index_W: Tensor, logits: tuple[Tensor, ...]) -> None:
        """Raise UserError where a model tells no number: whatever class came first would count as what it tells."""
        wrong_W = ~torch.stack([logits_WC.isfinite().all(dim=1) for logits_WC in logits]).all(dim=0)
        if wrong_W.any():
            number = int(index_W[wrong_W.cpu()][0])
            name = bytes(self.part.windows.array("id")[number]).rstrip(b"\0").decode()
            raise UserError(
                f"the model makes no number of {int(wrong_W.sum()):,} of {len(index_W):,} sequences, {name} the first: "
                "either training has diverged, and a lower training.lr helps, or their values are far beyond the others"
            )

    def validate(self, model: torch.nn.Module, source: WindowSource, advance: Advance) -> dict[str, float]:
        """Losses and scores over windows spread evenly over the validation part."""
        index_W = spread(source.val, self.config.training.val_windows)
        return self.measures(self.predict(model, source, index_W, advance))

    def measures(self, predictions: Predictions) -> dict[str, float]:
        """Losses and scores."""
        losses = self.losses(list(predictions.logits), self.targets(predictions.truth))
        found = scores(self.confusions(predictions), self.binary)
        return {**{name: float(value) for name, value in losses.items()}, **found}

    def confusions(self, predictions: Predictions) -> dict[str, Tensor]:
        """How often which class is predicted for which, by label: int64 [C, C], row the true class."""
        return {
            name: confusion(truth_W, logits_WC.argmax(dim=1), len(known))
            for (name, known), truth_W, logits_WC in zip(
                self.classes.items(), predictions.truth.unbind(1), predictions.logits, strict=True
            )
        }

    def baseline(self, source: WindowSource, advance: Advance) -> dict[str, float]:
        """The scores of telling every recording the class that most training recordings are of."""
        index_W = spread(source.val, self.config.training.val_windows)
        label = self.part.windows.array("label")[index_W.numpy()]
        return _prefixed(self.majority(torch.from_numpy(label.astype(np.int64))))

    def told(self, validation: Mapping[str, float]) -> str:
        """A validation in a line."""
        majority = f" (majority class: {validation['majority_score']:.3f})"
        return f"validation loss {validation['loss']:.4f}, {in_words(validation)}{majority}"

    def finish(self, model: torch.nn.Module, source: WindowSource, run: Path, advance: Advance) -> dict[str, float]:
        """Write predictions.csv of the whole validation part; its measures."""
        predictions = self.predict(model, source, source.val.all(), advance)
        write_predictions(run / "predictions.csv", predictions, self.part.windows, self.classes)
        return {**self.measures(predictions), **_prefixed(self.majority(predictions.truth))}

    def majority(self, truth_WK: Tensor) -> dict[str, float]:
        """The scores of telling every recording the class that most training recordings are of."""
        counts = {}
        for (name, known), truth_W, count_C in zip(self.classes.items(), truth_WK.unbind(1), self.counts, strict=True):
            counts[name] = confusion(truth_W, torch.full_like(truth_W, int(count_C.argmax())), len(known))
        return scores(counts, self.binary)


def padding_of(batch: Batch) -> Tensor:
    """Which rows of the one stream are padding: bool [B, L]."""
    return batch.padding[0] if batch.padding else all_visible(batch.x).hidden[0]


def _prefixed(majority: Mapping[str, float]) -> dict[str, float]:
    return {f"majority_{name}": value for name, value in majority.items()}


def class_loss(
    logits_BC: Tensor, target_BC: Tensor, weight_C: Tensor, smoothing: float = 0.0, gamma: float = 0.0
) -> Tensor:
    """Cross-entropy with weights of classes, smoothed labels (Szegedy et al. 2016) and focus (Lin et al. 2017).

    −Σ w·t·(1 − p)^gamma·log p over windows and classes, over Σ w·target, with t = (1 − smoothing)·target + smoothing/C:
    torch.nn.functional.cross_entropy where gamma is 0 and targets are classes. In float32, whatever autocast does.
    """
    log_p_BC = logits_BC.float().log_softmax(dim=1)
    smooth_BC = (1 - smoothing) * target_BC + smoothing / target_BC.shape[1]
    entropy_BC = -weight_C * smooth_BC * log_p_BC
    if gamma:
        entropy_BC = entropy_BC * (1 - log_p_BC.exp()).clamp(min=1e-6) ** gamma  # the root of 0 has no gradient
    return entropy_BC.sum() / (weight_C * target_BC).sum().clamp(min=1e-12)


def balanced_weights(count_C: Tensor) -> Tensor:
    """Weights float32 [C] by which all classes that occur count the same; those that do not occur have none."""
    present_C = count_C > 0
    return torch.where(present_C, count_C.sum() / (present_C.sum() * count_C.clamp(min=1)), 0).float()


def classify_task(config: TrainerConfig, dataset: Dataset, device: torch.device, fold: int | None = None) -> Classify:
    """The task for a fold of a dataset, with its tensors on the device where the batches are.

    Raises UserError where there are no labels, and for augmentations that the channels do not allow.
    """
    part = part_of(dataset, fold) if dataset.folds else None
    if part is None or "label" not in part.windows.manifest["arrays"]:
        raise UserError(f"training.task = classify needs labels, and {dataset.name} has none; set it to reconstruct")
    (stream,) = part.streams.values()
    features, statistics = tuple(stream.manifest["features"]), stream.manifest["statistics"]
    center, scale = (
        torch.tensor([statistics.get(name, {}).get(one, none) for one in features], device=device)
        for name, none in (("center", 0.0), ("scale", 1.0))
    )
    classes = part.windows.manifest["classes"]
    label = part.windows.array("label")
    labels = np.concatenate([label[one.start : one.stop] for one in part.train])
    counts = tuple(
        torch.from_numpy(np.bincount(labels[:, k], minlength=len(known))) for k, known in enumerate(classes.values())
    )
    weights = [
        balanced_weights(count) if config.classify.class_weights == "balanced" else torch.ones(len(count))
        for count in counts
    ]
    try:
        sensor = sensor_of(axes_of(features), center, scale, config.classify.augment)
    except ValueError as error:
        raise UserError(str(error)) from None
    binary = dataset.recipe["source"]["binary"]
    return Classify(
        config,
        part,
        tuple(dataset.seq_lens.values()),
        features,
        classes,
        binary["name"] if binary else None,
        counts,
        tuple(weight.to(device) for weight in weights),
        sensor,
    )
