"""Tables, sizes and ages for people."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

_AGES = ((86400 * 365.25, "y"), (86400, "d"), (3600, "h"), (60, "min"))


def table(rows: Sequence[Sequence[str]], right: set[int]) -> Iterator[str]:
    """Lines of a table whose columns are as wide as they need to be; those in `right` are flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


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
