"""From the recipe to the files that hold recordings, and to the parts of them that entries are made of."""

import csv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from cache.sequence_recipe import SequenceRecipe
from pipeline.files import find_files
from pipeline.plan import Sources
from pipeline.sequences_columns import find_columns
from pipeline.sources import refuse_copies, source_file
from pipeline.tables import HEAD_BYTES, open_table
from pipeline.text import Text, sniff

SHARD_BYTES = 8 << 20  # of text: small enough that a killed build loses little and that several cores have work


def find_recordings(recipe: SequenceRecipe, data_dir: Path, store: Path) -> Sources:
    """The files in order of their names, long text files in parts that each hold whole sequences.

    Parquet and Arrow files, and with `policy.unsorted = sort` all files, are taken as a whole. Raises SourceError when
    there is none, when one lacks a column, and when two hold the same.
    """
    files = [source_file(path, store / "sources") for path in find_files(data_dir, recipe.source.files)]
    refuse_copies(files)
    found = []
    for file in files:
        path = file.path
        table = open_table(path)
        columns = find_columns(table, recipe.source)
        parts = []
        if table.is_text and recipe.source.policy.unsorted == "error":
            with path.open("rb") as opened:
                text = sniff(path, opened.read(HEAD_BYTES))
                parts = list(_parts(opened, text, text.names.index(columns.id)))
        found += [replace(file, span=part) for part in parts] if len(parts) > 1 else [file]
    return {recipe.name: {"recordings": found}}


def _parts(file: BinaryIO, text: Text, column: int) -> Iterator[tuple[int, int]]:
    """Ranges of bytes, each of about SHARD_BYTES and from the first row of a sequence to the last of one."""
    start, size = text.begin, file.seek(0, 2)
    while start < size:
        stop = _next_sequence(file, start + SHARD_BYTES, text.separator, column) or size
        yield start, stop
        start = stop


def _next_sequence(file: BinaryIO, start: int, separator: str, column: int) -> int | None:
    """Where the first row after `start` begins whose sequence is not that of the row before; None where none does."""
    file.seek(start)
    file.readline()  # the rest of a row
    before = None
    at = file.tell()
    while line := file.readline():
        fields = next(csv.reader([line.decode(errors="replace")], delimiter=separator), [])
        if len(fields) > column:
            if before is not None and fields[column] != before:
                return at
            before = fields[column]
        at = file.tell()
    return None
