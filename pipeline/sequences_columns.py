"""Which columns of a file hold what of recordings."""

import difflib
from dataclasses import dataclass
from fnmatch import fnmatchcase

import pyarrow as pa

from cache.sequence_recipe import SequencesSource
from pipeline.files import SourceError
from pipeline.tables import Table


@dataclass(frozen=True)
class Columns:
    """The names of the columns that a recipe asks for, patterns resolved in the order of the file."""

    id: str
    order: str
    group: str
    labels: tuple[str, ...]
    channels: tuple[str, ...]

    @property
    def words(self) -> tuple[str, ...]:
        """Columns that hold names: id, group and labels."""
        return (self.id, self.group, *self.labels)

    @property
    def numbers(self) -> tuple[str, ...]:
        """Columns that hold numbers: order and channels."""
        return (self.order, *self.channels)


def find_columns(table: Table, source: SequencesSource) -> Columns:
    """Find the columns in a file. Raises SourceError for what is not there, is there twice or has another type."""
    path, names = table.path, table.names
    roles = {"id": source.id, "order": source.order, "group": source.group}
    for role, name in [*roles.items(), *(("labels", name) for name in source.labels)]:
        if name not in names:
            raise SourceError(
                f"{path}: data.source.{role} names {name}, which is no column of it{_nearest(name, names)}"
            )
    named = (*roles.values(), *source.labels)
    channels: dict[str, None] = {}
    for pattern in source.channels:
        if pattern in named:
            raise SourceError(f"{path}: data.source.channels names {pattern}, which is no channel: it has another role")
        found = [name for name in names if name == pattern or (name not in named and fnmatchcase(name, pattern))]
        if not found:
            raise SourceError(
                f"{path}: data.source.channels has {pattern}, which no column of it matches{_nearest(pattern, names)}"
            )
        channels.update(dict.fromkeys(found))
    columns = Columns(source.id, source.order, source.group, tuple(source.labels), tuple(channels))
    for name in (*columns.words, *columns.numbers):
        if names.count(name) > 1:
            raise SourceError(f"{path}: {names.count(name)} columns are called {name}; rename one")
    for name in columns.numbers:
        kind = table.type_of(name)
        numeric = pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind)
        if not (numeric or table.is_text):
            raise SourceError(f"{path}: column {name} holds {kind}, not numbers; store it as float64")
    return columns


def _nearest(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]}?" if close else f"; its columns are {', '.join(names)}"
