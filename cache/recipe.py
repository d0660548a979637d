"""The recipe: the `data:` section of a configuration, typed. It says what is to be built, and nothing about how."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from cache.timeframes import duration_ns, timeframe_ns
from configs.loader import Model, differences


def _checked(check: Any) -> BeforeValidator:
    """Run `check` on the text for its errors, and keep the value as it was written."""

    def validate(value: Any) -> Any:
        check(str(value))
        return value

    return BeforeValidator(validate)


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, KeyError):  # KeyError: ZoneInfoNotFoundError
        raise ValueError(f"{name!r} is not a time zone; write an IANA name such as UTC or America/New_York") from None


def _instant(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            f"{text!r} is not an instant; write for example 2018-01-01 or 2018-01-01T17:00+00:00"
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _name(text: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{,99}", text):
        raise ValueError(
            "a name begins with a letter or a digit, goes on with letters, digits, . _ and -, and has at most 100 "
            "characters"
        )


def _python(text: str) -> None:
    if not text.endswith(".py"):
        raise ValueError("a plug-in is a Python file, whose name ends in .py")


RecipeName = Annotated[str, _checked(_name)]
Timeframe = Annotated[str, _checked(timeframe_ns)]
Duration = Annotated[str, _checked(duration_ns)]
Zone = Annotated[str, _checked(_zone)]
Bars = Annotated[int, Field(ge=1)]
OneOrEach = Annotated[  # told apart before they are checked, so that a fault is told once
    Annotated[Bars, Tag("one")] | Annotated[dict[Timeframe, Bars], Tag("each")],
    Discriminator(lambda value: "each" if isinstance(value, dict) else "one"),
]
Role = Literal["time", "open", "high", "low", "close"]


class Session(Model):
    """Trading days: each closes at `at` local time in zone `tz`, so a day has 23, 24 or 25 hours."""

    tz: Zone
    at: Annotated[str, Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")]


class Policy(Model):
    """What to do with rows that cannot be true, fault by fault."""

    missing: Literal["error", "drop"]
    not_finite: Literal["error", "drop"]
    not_positive: Literal["error", "drop"]
    high: Literal["error", "drop"]
    low: Literal["error", "drop"]
    duplicate: Literal["error", "keep_first", "keep_last"]
    unsorted: Literal["error", "sort"]


class BarsSource(Model):
    """Where bars come from and what their time stamps mean."""

    kind: Literal["bars"]
    files: Annotated[dict[Timeframe, str], Field(min_length=1)]
    symbol: str | None
    symbol_columns: list[str]
    symbols: Annotated[list[str], Field(min_length=1)] | None
    exclude: list[str]
    label: Literal["left", "right"]
    timezone: Zone
    session: Session | None
    columns: dict[Role, str]
    points_per_unit: Annotated[float, Field(gt=0)] | None
    policy: Policy

    @model_validator(mode="after")
    def _symbols_once(self) -> "BarsSource":
        patterns = [name for name, pattern in self.files.items() if "{symbol}" in pattern]
        if patterns and len(patterns) < len(self.files):
            missing = next(name for name in self.files if name not in patterns)
            raise ValueError(
                f"files.{missing} lacks the {{symbol}} that files.{patterns[0]} has; every entry has it, or none"
            )
        if patterns and self.symbol_columns:
            raise ValueError("symbols come from symbol_columns or from {symbol} in files, not from both; leave one out")
        if self.symbol and (patterns or self.symbol_columns):
            raise ValueError("symbol names one symbol, but the files hold several; leave it out")
        for field in ("symbols", "exclude"):
            if getattr(self, field) and not (patterns or self.symbol_columns):
                raise ValueError(
                    f"{field} chooses among several symbols, but neither symbol_columns nor a {{symbol}} in files "
                    "tells them apart; give one of the two"
                )
        return self


class Window(Model):
    """What one sample is."""

    seq_len: OneOrEach | None
    span: Duration | None
    min_bars: Bars
    stride: Bars
    min_coverage: Annotated[float, Field(ge=0, le=1)]
    max_staleness: dict[Timeframe, Duration]


class Features(Model):
    """Which feature set streams hold (pipeline/features.py), and a user's file that adds columns to it."""

    set: str
    plugin: Annotated[str, _checked(_python)] | None = None
    statistics: Literal["symbol", "pooled"]


class Universe(Model):
    """What becomes of each of several symbols. Keys and items are names, or patterns such as `binance-*`."""

    failing: Literal["error", "leave_out"]
    hold_out: list[str]
    weights: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]]


class Split(Model):
    """How time is divided into training and validation."""

    val_fraction: Annotated[float, Field(gt=0, lt=1)] | None
    train_end: Annotated[str, _checked(_instant)] | None
    embargo: Duration


class Recipe(Model):
    """The whole `data:` section."""

    name: RecipeName
    source: BarsSource
    timeframes: Annotated[list[Timeframe], Field(min_length=1)]
    window: Window
    features: Features
    split: Split
    universe: Universe

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        base, base_ns = self.base, timeframe_ns(self.base)
        for left, right in zip(self.timeframes, self.timeframes[1:], strict=False):
            if timeframe_ns(left) >= timeframe_ns(right):
                raise ValueError(f"timeframes go from the base upwards, each once, but {left} stands before {right}")
        for name in self.timeframes:
            if timeframe_ns(name) % base_ns:
                raise ValueError(f"timeframe {name} is not a whole number of {base} bars; leave one of the two out")
        if base not in self.source.files:
            raise ValueError(
                f"source.files has no entry for {base}, the base timeframe; it has {sorted(self.source.files)}"
            )
        _known("source.files", self.source.files, self.timeframes)
        _known("window.max_staleness", self.window.max_staleness, self.timeframes)
        if self.window.seq_len is None and self.window.span is None:
            raise ValueError("window says neither seq_len nor span; give one of them")
        if self.split.val_fraction is None and self.split.train_end is None:
            raise ValueError("split says neither val_fraction nor train_end; give one of them")
        if isinstance(self.window.seq_len, dict):
            _known("window.seq_len", self.window.seq_len, self.timeframes)
            missing = [name for name in self.timeframes if name not in self.window.seq_len]
            if missing:
                raise ValueError(f"window.seq_len names no length for {', '.join(missing)}; give one for each")
        for name, length in self.seq_lens.items():
            if self.window.span and length < self.window.min_bars:
                raise ValueError(
                    f"window.span = {self.window.span} is {length} bars of {name}, fewer than window.min_bars = "
                    f"{self.window.min_bars}; lengthen the span or leave {name} out"
                )
        return self

    @property
    def base(self) -> str:
        """The timeframe whose bar closes are the decision times."""
        return self.timeframes[0]

    @property
    def symbol(self) -> str:
        """The symbol's name where the files hold one symbol: stated, or the recipe's name in capitals."""
        return self.source.symbol or self.name.upper()

    @property
    def seq_lens(self) -> dict[str, int]:
        """Window length in bars, per timeframe."""
        if self.window.span:
            return {name: duration_ns(self.window.span) // timeframe_ns(name) for name in self.timeframes}
        if isinstance(self.window.seq_len, dict):
            return {name: self.window.seq_len[name] for name in self.timeframes}
        assert self.window.seq_len is not None  # checked above
        return dict.fromkeys(self.timeframes, self.window.seq_len)

    @property
    def train_end_ns(self) -> int | None:
        """`split.train_end` in nanoseconds UTC; None where `split.val_fraction` decides."""
        if self.split.train_end is None:
            return None
        return int(_instant(self.split.train_end).timestamp()) * 10**9

    def differs_from(self, other: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
        """Dotted keys whose values differ from `other`, a recipe as dumped earlier: (key, other's value, own value).

        A plug-in may lie elsewhere than it did.
        """
        for key, old, new in differences(other, self.model_dump(), "data"):
            if key != "data.features.plugin" or None in (old, new):
                yield key, old, new


def _known(field: str, names: dict[str, Any], timeframes: list[str]) -> None:
    for name in names:
        if name not in timeframes:
            raise ValueError(
                f"{field} names {name}, which is not among timeframes = {timeframes}; add it there, or take it out"
            )
