"""The recordings of a dataset as one series of sequences, however many entries they lie in."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.entries import Entry, open_entry
from pipeline.files import SourceError
from pipeline.sequences import as_names

BLOCK_SEQUENCES = 256


class RecordingSeries:
    """Read-only view of `recordings` entries, in the order of their keys. Entries without sequences are passed over."""

    def __init__(self, store: Path, keys: Sequence[str]) -> None:
        every = [open_entry(store, "recordings", key) for key in keys]
        self.entries = [entry for entry in every if entry.manifest["sequences"]]
        if not self.entries:
            names = ", ".join(dict.fromkeys(entry.manifest["origin"] for entry in every))
            raise SourceError(f"{names}: data.source.policy leaves no sequence; look at the files")
        first = self.entries[0].manifest
        for entry in self.entries:
            if entry.manifest["channels"] != first["channels"]:
                raise SourceError(
                    f"{entry.manifest['origin']} has the channels {', '.join(entry.manifest['channels'])}, but "
                    f"{first['origin']} has {', '.join(first['channels'])}; give them the same columns in the same "
                    "order, or name the channels in data.source.channels"
                )

    def __len__(self) -> int:
        return sum(int(entry.manifest["sequences"]) for entry in self.entries)

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the columns of values."""
        return tuple(self.entries[0].manifest["channels"])

    @property
    def rows(self) -> NDArray[np.int32]:
        """Rows of each sequence, int32 [n]."""
        return self._joined("rows")

    @property
    def time(self) -> NDArray[np.int64]:
        """Order of the last row of each, int64 [n]."""
        return self._joined("time")

    @property
    def ids(self) -> NDArray[np.uint8]:
        """Ids, uint8 [n, width]. Raises SourceError when a sequence is in two places."""
        found = [entry.array("id") for entry in self.entries]
        width = max(one.shape[1] for one in found)
        ids = np.concatenate([np.pad(one, ((0, 0), (0, width - one.shape[1]))) for one in found])
        names, origins = (
            as_names(ids),
            [e.manifest["origin"] for e in self.entries for _ in range(e.manifest["sequences"])],
        )
        first: dict[str, str] = {}
        for name, origin in zip(names, origins, strict=True):
            if name in first:
                where = f"twice in {origin}" if origin == first[name] else f"in {first[name]} and in {origin}"
                remedy = "let its rows stand together, or set data.source.policy.unsorted=sort"
                raise SourceError(
                    f"sequence {name} is {where}; {remedy if origin == first[name] else 'give each its own id'}"
                )
            first[name] = origin
        return ids

    @property
    def group(self) -> tuple[NDArray[np.int32], list[str]]:
        """Codes int32 [n] and the names that they count, in alphabetical order."""
        return _unified([(entry.array("group"), entry.manifest["groups"]) for entry in self.entries])

    def label(self, column: int, name: str) -> tuple[NDArray[np.int32], list[str]]:
        """The same for one of the labels."""
        return _unified([(entry.array("label")[:, column], entry.manifest["classes"][name]) for entry in self.entries])

    def blocks(self) -> Iterator[tuple[Entry, NDArray[np.int64]]]:
        """Blocks of at most BLOCK_SEQUENCES that cover all: an entry, and the bounds int64 [n + 1] of n sequences."""
        for entry in self.entries:
            bounds = bounds_of(entry)
            for start in range(0, len(bounds) - 1, BLOCK_SEQUENCES):
                yield entry, bounds[start : start + BLOCK_SEQUENCES + 1]

    def one(self, number: int) -> tuple[Entry, NDArray[np.int64]]:
        """A block of the one sequence with this number."""
        for entry in self.entries:
            if number < entry.manifest["sequences"]:
                return entry, bounds_of(entry)[number : number + 2]
            number -= entry.manifest["sequences"]
        raise IndexError(number)

    def _joined(self, name: str) -> NDArray[Any]:
        return np.concatenate([entry.array(name) for entry in self.entries])


def bounds_of(entry: Entry) -> NDArray[np.int64]:
    """Row numbers where the sequences of an entry begin, and its last one ends: int64 [n + 1]."""
    return np.concatenate([[0], np.cumsum(entry.array("rows"), dtype=np.int64)])


def _unified(parts: list[tuple[NDArray[np.int32], list[str]]]) -> tuple[NDArray[np.int32], list[str]]:
    names = sorted({name for _, known in parts for name in known})
    place = {name: code for code, name in enumerate(names)}
    return np.concatenate([np.array([place[name] for name in known], np.int32)[codes] for codes, known in parts]), names
