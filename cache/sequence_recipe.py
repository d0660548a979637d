"""The recipe of sequences: recordings of sensors, each with labels and of somebody."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from cache.layout import ALL_FOLDS, fold_name
from cache.recipe import RecipeName
from configs.loader import Model, differences

Names = Annotated[list[str], Field(min_length=1)]
Fill = Literal["forward", "backward", "zero"]
Normalise = Literal["robust", "standard", "none"]


class Binary(Model):
    """A further label of two classes: is `label` one of `positive`?"""

    name: str
    label: str
    positive: Names


class SequencePolicy(Model):
    """What to do with recordings that cannot be taken as they are, fault by fault."""

    unsorted: Literal["error", "sort"]
    duplicate: Literal["error", "keep_first", "keep_last"]
    not_finite: Literal["error", "missing"]
    unlabelled: Literal["error", "drop"]
    changing: Literal["error", "drop"]
    single_row: Literal["error", "keep", "drop"]
    empty_channel: Literal["zero", "error", "drop"]


class SequencesSource(Model):
    """Where recordings come from and what their columns are."""

    kind: Literal["sequences"]
    files: str
    id: str
    order: str
    group: str
    labels: Names
    binary: Binary | None
    channels: Names
    sentinels: list[float]
    policy: SequencePolicy

    @model_validator(mode="after")
    def _consistent(self) -> "SequencesSource":
        roles = {"id": self.id, "order": self.order, "group": self.group}
        named = [*roles.values(), *self.labels]
        for name in named:
            if named.count(name) > 1:
                raise ValueError(f"names column {name} twice; id, order, group and labels are different columns")
        if self.binary and self.binary.label not in self.labels:
            raise ValueError(f"binary.label = {self.binary.label} is not among labels = {self.labels}")
        if self.binary and self.binary.name in self.labels:
            raise ValueError(f"binary.name = {self.binary.name} is a label already; call it otherwise")
        return self


class Length(Model):
    """How recordings of all lengths become sequences of one."""

    mode: Literal["interpolate", "pad"]
    seq_len: Annotated[int, Field(ge=2)]


class Folds(Model):
    """Into how many parts the groups are dealt."""

    count: Annotated[int, Field(ge=2, le=127)]  # fold numbers are int8
    seed: Annotated[int, Field(ge=0, lt=2**32)]


class SequenceRecipe(Model):
    """The whole `data:` section where `source.kind` is sequences."""

    name: RecipeName
    source: SequencesSource
    fill: Annotated[list[Fill], Field(min_length=1)]
    derive: list[str]
    length: Length
    normalise: Normalise
    folds: Folds

    @model_validator(mode="after")
    def _consistent(self) -> "SequenceRecipe":
        if self.fill[-1] != "zero":
            raise ValueError(f"fill = {self.fill} must end with zero, or channels without any value stay empty")
        return self

    @property
    def labels(self) -> list[str]:
        """The names of all labels, the derived one last."""
        return [*self.source.labels, *([self.source.binary.name] if self.source.binary else [])]

    @property
    def streams(self) -> list[str]:
        """The streams that a dataset has: one a fold, or one for all of them."""
        return [fold_name(k) for k in range(self.folds.count)] if self.normalise != "none" else [ALL_FOLDS]

    def differs_from(self, other: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
        """Dotted keys whose values differ from `other`, a recipe as dumped earlier: (key, other's value, own value)."""
        yield from differences(other, self.model_dump(), "data")
