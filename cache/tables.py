"""Tables, sizes and ages for people."""

import shlex
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

_AGES = ((86400 * 365.25, "y"), (86400, "d"), (3600, "h"), (60, "min"))
_NAMED = 3


def table(rows: Sequence[Sequence[str]], right: set[int]) -> Iterator[str]:
    """Lines of a table whose columns are as wide as they need to be; those in `right` are flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def few(names: Sequence[str]) -> str:
    """The first of many names, and how many more there are."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more:,} more" if more > 0 else "")


def first_of(lines: Sequence[str], count: int) -> list[str]:
    """No more than `count` of these lines, the last telling how many there are that are not told."""
    return list(lines) if len(lines) <= count else [*lines[: count - 1], f"… and {len(lines) - count + 1:,} more"]


def counted(number: int, noun: str) -> str:
    """`1 entry`, `2,000 entries`."""
    plural = noun[:-1] + "ies" if noun.endswith("y") else noun + "s"
    return f"{number:,} {noun if number == 1 else plural}"


def of_store(store: Path) -> str:
    """What a command needs to be about this store: ` --store DIR`, but for the one it takes by itself."""
    return "" if store == Path("store") else f" --store {shlex.quote(str(store))}"


def mb(size: int) -> str:
    """Millions of bytes."""
    return f"{size / 1e6:,.1f}"


def age(instant: str | datetime | None, now: datetime | None = None) -> str:
    """How long ago an instant (ISO 8601, or aware) was: `3 d ago`; `-` for None."""
    if instant is None:
        return "-"
    moment = datetime.fromisoformat(instant) if isinstance(instant, str) else instant
    seconds = ((now or datetime.now(UTC)) - moment).total_seconds()
    for length, unit in _AGES:
        if seconds >= length:
            return f"{seconds // length:.0f} {unit} ago"
    return "just now" if seconds >= 0 else f"at {moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"  # a clock was wrong
