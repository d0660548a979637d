"""Text separated by commas, tabs or semicolons: which of them, what the columns are called, and the rows as text."""

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv

from pipeline.convert import converted
from pipeline.files import SourceError

_SEPARATORS = {",": "comma", "\t": "tab", ";": "semicolon"}
_BLOCK_BYTES = 1 << 21
_PEEK_BYTES = 1 << 18
_NUMBER = re.compile(r"[-+]?\d[\d.,:/ -]*([eE][-+]?\d+)?")
_RAGGED = re.compile(r"Row #(\d+): Expected (\d+) columns, got (\d+): (.*)", re.DOTALL)  # Arrow's words
_UTF8 = "save the file as UTF-8"


@dataclass(frozen=True)
class Text:
    """A file of separated text: its separator, the names in its first line, and where the rows begin, in bytes."""

    path: Path
    separator: str
    names: tuple[str, ...]
    begin: int
    empty: bool

    @property
    def format(self) -> str:
        """Such as tab-separated text, for the log."""
        return f"{_SEPARATORS[self.separator]}-separated text"

    def batches(self, names: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
        """The columns `names` as text; empty fields are null. The size of batches follows `rows` only roughly.

        Raises SourceError naming the row (from 0 after the header; lines without a character do not count) for rows
        that have not as many fields as the header, for quotes that span lines and for what is not UTF-8.
        """
        wanted = [self.names.index(name) for name in names]
        row = 0
        for batch in self._parsed(_BLOCK_BYTES if rows > 10_000 else _PEEK_BYTES):
            for k, name in enumerate(self.names):  # an open quote in any of them swallows rows
                self._refuse_line_breaks(batch.column(k), name, row)
            columns = [self._utf8(batch.column(k), self.names[k], row) for k in wanted]
            yield pa.RecordBatch.from_arrays(columns, names=list(names))
            row += batch.num_rows

    def _parsed(self, block_bytes: int) -> Iterator[pa.RecordBatch]:
        every = [str(k) for k in range(len(self.names))]
        try:
            with pa.csv.open_csv(
                pa.OSFile(str(self.path)),
                # without threads, which would forget the numbers of rows and gain nothing
                pa.csv.ReadOptions(use_threads=False, block_size=block_bytes, skip_rows=1, column_names=every),
                pa.csv.ParseOptions(delimiter=self.separator),
                pa.csv.ConvertOptions(
                    column_types=dict.fromkeys(every, pa.binary()), strings_can_be_null=True, null_values=[""]
                ),
            ) as reader:
                yield from reader
        except pa.ArrowInvalid as error:
            bad = _RAGGED.search(str(error))  # an invalid_row_handler would fail on what is not UTF-8
            if not bad:
                raise
            fields = "1 field" if bad[3] == "1" else f"{bad[3]} fields"
            raise SourceError(
                f"{self.path}: row {int(bad[1]) - 2:,} has {fields}, but the header has {bad[2]}: {_cut(bad[4])}; "
                "correct or remove the row"
            ) from None

    def _refuse_line_breaks(self, column: pa.Array, name: str, row: int) -> None:
        data = column.buffers()[2]
        text = data.to_pybytes() if data is not None else b""
        if b"\n" not in text and b"\r" not in text:
            return
        for at, value in enumerate(column.to_pylist()):
            if value and (b"\n" in value or b"\r" in value):
                raise SourceError(
                    f"{self.path}: column {name}, row {row + at:,}: a quoted field holds a line break, "
                    f"{_cut(value.decode(errors='replace'))}; the quote is perhaps never closed. Correct the row"
                )

    def _utf8(self, column: pa.Array, name: str, row: int) -> pa.Array:
        try:
            return column.cast(pa.string())
        except pa.ArrowInvalid:
            pass

        def refuse(at: int, what: str) -> SourceError:
            return SourceError(f"{self.path}: column {name}, row {row + at:,}: {what}")

        return converted(column, lambda part: part.cast(pa.string()), lambda *_: f"is not UTF-8; {_UTF8}", refuse)


def sniff(path: Path, head: bytes) -> Text:
    """Find the separator and the names in the first line of a text file, given the bytes it begins with.

    Raises SourceError for what is no text or has no header.
    """
    line, rest = _first_line(head)
    if len(line) == len(head) and path.stat().st_size > len(head):
        raise SourceError(f"{path}: neither parquet, Arrow nor text in lines; convert it to one of them")
    if re.search(rb"[\x00-\x08\x0e-\x1f\x7f]", line):
        raise SourceError(f"{path}: binary data that is neither parquet nor Arrow; fetch it again, or convert it")
    try:
        header = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(f"{path}: its first line is not UTF-8 ({_cut(repr(line[error.start :]))}); {_UTF8}") from None
    if not header.strip():
        raise SourceError(f"{path}: its first line is empty; it must hold the names of the columns")
    split = {mark: next(csv.reader([header], delimiter=mark)) for mark in _SEPARATORS}
    separator = max(split, key=lambda mark: len(split[mark]))
    if len(split[separator]) < 2:
        raise SourceError(
            f"{path}: its first line, {_cut(header)}, holds no comma, tab or semicolon; separate columns by one of them"
        )
    names = tuple(name.strip() or f"Unnamed: {k}" for k, name in enumerate(split[separator]))
    if 2 * sum(bool(_NUMBER.fullmatch(name)) for name in names) > len(names):
        raise SourceError(
            f"{path}: its first line, {_cut(header)}, holds values; put the names of the columns before it, such as "
            f"{separator.join(('time', 'open', 'high', 'low', 'close'))!r}"
        )
    return Text(
        path,
        separator,
        names,
        len(head) - len(rest),
        empty=not rest.strip(b" \r\n") and path.stat().st_size <= len(head),
    )


def _first_line(head: bytes) -> tuple[bytes, bytes]:
    match = re.search(rb"\r\n|\n|\r", head)
    return (head[: match.start()], head[match.end() :]) if match else (head, b"")


def _cut(text: str) -> str:
    return f"{text[:60]!r}…" if len(text) > 60 else repr(text)
