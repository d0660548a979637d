"""Opens a file of bars by its content, not its name: parquet, Arrow IPC (Feather) or separated text.

Everything is read in batches, so that memory does not grow with the file. An Arrow file, whose writer chose the
batches, is mapped: what is not compressed stays on disk, and a compressed batch is held as a whole.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from pipeline.files import SourceError, check_regular, is_url, url_of
from pipeline.text import Text, sniff

HEAD_BYTES = 1 << 16
_MEND = "fetch it again"
_UNPACK = "unpack it first"
_EXPORT = "export it as text, or convert it, for example by pandas.read_excel(…).to_parquet(…)"
_OTHERS = (  # what files begin with that are something else: what they are and what to do
    (rb"\x1f\x8b", "compressed by gzip", _UNPACK),
    (rb"\x28\xb5\x2f\xfd", "compressed by zstd", _UNPACK),
    (rb"BZh[1-9]", "compressed by bzip2", _UNPACK),
    (rb"\xfd7zXZ\x00", "compressed by xz", _UNPACK),
    (rb"PK\x03\x04(?s:.){0,2000}(xl/|\[Content_Types\])", "an Excel workbook", _EXPORT),
    (rb"PK(\x03\x04|\x05\x06)", "a zip archive", _UNPACK),
    (rb"\xd0\xcf\x11\xe0", "an Excel workbook", _EXPORT),
    (rb"FEA1", "Feather of version 1", "write it again, for example by pandas.read_feather(…).to_parquet(…)"),
    (rb"\xff\xff\xff\xff", "an Arrow stream, whose end cannot be told from a cut", "write an Arrow file or parquet"),
    (rb"PARE", "encrypted parquet", "decrypt it first"),
    (rb"\x89HDF", "HDF5", "convert it, for example by pandas.read_hdf(…).to_parquet(…)"),
    (rb"\x93NUMPY", "a NumPy array, whose columns have no names", "write the columns as parquet or text"),
    (rb"SQLite format 3", "an SQLite database", "convert it, for example by pandas.read_sql(…).to_parquet(…)"),
    (rb"\xff\xfe|\xfe\xff|([^\x00]\x00){8}|(\x00[^\x00]){8}", "text in UTF-16", "save it as UTF-8"),
    (rb"(\xef\xbb\xbf)?\s*(?i:<!doctype|<html|<\?xml|<head|<body|<table)", "a web page or XML, no table", _MEND),
    (rb"(\xef\xbb\xbf)?\s*[{\[]", "JSON", "convert it, for example by pandas.read_json(…).to_parquet(…)"),
)


@dataclass(frozen=True)
class Table:
    """A file of rows and named columns. Columns of text files are all text; `index` are those pandas kept as index."""

    path: Path
    format: str  # for the log
    schema: pa.Schema
    index: tuple[str, ...]
    rows: int | None  # None where only reading tells
    _read: Callable[[Sequence[str], int], Iterator[pa.RecordBatch]]

    @property
    def names(self) -> list[str]:
        """The names of all columns, in order; a name may come twice."""
        return list(self.schema.names)

    @property
    def is_text(self) -> bool:
        """Whether numbers, too, are text in this file."""
        return self.format.endswith("text")

    def type_of(self, name: str) -> pa.DataType:
        """The type of the first column of that name."""
        return self.schema.field(self.names.index(name)).type

    def kind_of(self, name: str) -> str:
        """The same for the log."""
        return "text" if self.is_text else str(self.type_of(name))

    def batches(self, names: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
        """The columns `names` (each once in the file) in batches of 1 to `rows` rows.

        Raises SourceError for what cannot be read, and for a text file's rows that have not as many fields as its
        header.
        """
        row = 0
        try:
            for batch in self._read(names, rows):
                for start in range(0, batch.num_rows, rows):
                    yield batch.slice(start, rows)
                row += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise SourceError(
                f"{self.path}: cannot be read beyond row {row:,} ({error}); fetch the file again"
            ) from None


def open_table(path: Path) -> Table:
    """Open a file of any format.

    Raises SourceError for what is no table, is empty or no regular file, and OSError for what is missing or forbidden.
    """
    if is_url(path):
        from pipeline.remote_files import open_remote  # fsspec is an extra

        try:
            table = _parquet(path, open_remote(path))
        except ValueError as error:  # fsspec's, for a web server that only gives whole files
            raise SourceError(f"{url_of(path)}: cannot be read in parts ({error}); fetch the file") from None
        if table.rows == 0:
            raise SourceError(f"{url_of(path)}: holds no rows; {_MEND}")
        return table
    check_regular(path)
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if not head:
        raise SourceError(f"{path}: an empty file; {_MEND}")
    if head.startswith(b"PAR1"):
        table = _parquet(path)
    elif head.startswith(b"ARROW1"):
        table = _arrow(path)
    else:
        for begin, what, remedy in _OTHERS:
            if re.match(begin, head):
                raise SourceError(f"{path}: {what}; {remedy}")
        table = _text(path, sniff(path, head))
    if table.rows == 0:
        raise SourceError(f"{path}: holds no rows; {_MEND}")
    return table


def _parquet(path: Path, opened: Any = None) -> Table:
    try:
        file = pq.ParquetFile(opened or path)
        schema, rows = file.schema_arrow, file.metadata.num_rows
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _damaged(path, "parquet", error) from None
    return Table(path, "parquet", schema, _index(schema), rows, lambda n, k: file.iter_batches(k, columns=list(n)))


def _arrow(path: Path) -> Table:
    try:
        with pa.memory_map(str(path)) as file, pa.ipc.open_file(file) as reader:
            schema = reader.schema
            empty = not any(reader.get_batch(i).num_rows for i in range(reader.num_record_batches))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _damaged(path, "Arrow", error) from None

    def read(names: Sequence[str], _: int) -> Iterator[pa.RecordBatch]:
        options = pa.ipc.IpcReadOptions(included_fields=sorted(schema.names.index(name) for name in names))
        with pa.memory_map(str(path)) as file, pa.ipc.open_file(file, options=options) as reader:
            for i in range(reader.num_record_batches):
                batch = reader.get_batch(i)
                batch.validate(full=True)  # a damaged offset of text would end the process
                yield batch

    return Table(path, "Arrow", schema, _index(schema), 0 if empty else None, read)


def _text(path: Path, text: Text) -> Table:
    schema = pa.schema([pa.field(name, pa.string()) for name in text.names])
    index = tuple(name for name in text.names[:1] if name == "Unnamed: 0")  # as pandas writes an index without a name
    return Table(path, text.format, schema, index, 0 if text.empty else None, text.batches)


def _index(schema: pa.Schema) -> tuple[str, ...]:
    try:
        described = (schema.pandas_metadata or {}).get("index_columns", [])
    except (ValueError, AttributeError):  # not JSON, or not of pandas' shape
        return ()
    return tuple(name for name in described if isinstance(name, str) and name in schema.names)


def _damaged(path: Path, format: str, error: Exception) -> Exception:
    if getattr(error, "errno", None):  # the system's own, such as a missing file; Arrow's for damage have none
        return error
    return SourceError(f"{path}: not a readable {format} file, perhaps truncated ({error}); {_MEND}")
