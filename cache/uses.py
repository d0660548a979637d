"""The store's diary: one line a build that found something, and a line a start of training.

It tells when a dataset was last used, and how many seconds of building were not needed again.
"""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path


@dataclass(frozen=True)
class Use:
    """At an instant (ISO 8601, UTC) `by` (build or train) needed a dataset, and `saved` seconds of building."""

    at: str
    by: str
    dataset: str  # key
    saved: float


def record_use(store: Path, by: str, dataset: str, saved: float) -> None:
    """Add a line. A store that cannot be written is used all the same."""
    use = Use(datetime.now(UTC).isoformat(timespec="seconds"), by, dataset, round(saved, 3))
    line = json.dumps(asdict(use)).encode() + b"\n"
    with suppress(OSError), (store / "uses.jsonl").open("ab", buffering=0) as file:
        file.write(line)  # in one piece, so that lines of several processes do not mix


def read_uses(store: Path) -> Iterator[Use]:
    """All lines, oldest first; one that was cut off is passed over."""
    with suppress(FileNotFoundError):
        for line in (store / "uses.jsonl").read_text(errors="replace").splitlines():
            with suppress(ValueError, TypeError):
                yield Use(**json.loads(line))
