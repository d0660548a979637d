"""From the recipe to source files: which files there are, of which symbol and timeframe, and their fingerprints."""

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from cache.keys import check_unchanged, fingerprint, recall, remember
from cache.recipe import Recipe
from cache.seal import content_md5
from pipeline.files import SourceError, find_by_symbol, find_files, is_url
from pipeline.plan import SourceFile, Sources
from pipeline.symbols import symbols_in
from pipeline.universe import choose


def find_sources(recipe: Recipe, data_dir: Path, store: Path) -> Sources:
    """The source files of every symbol and timeframe, with the MD5 of their content (remembered in the store).

    A timeframe of a symbol that no file holds anything of has an empty list. Raises SourceError when there are no files
    and when two of a timeframe hold the same, and UserError for symbols that are asked for and not there.
    """
    memo = store / "sources"
    found: dict[str, dict[str, list[SourceFile]]] = {}
    for timeframe, pattern in sorted(recipe.source.files.items()):
        if is_url(pattern):
            paths = {recipe.symbol: _remote(pattern)}
        elif "{symbol}" in pattern:
            paths = find_by_symbol(data_dir, pattern)
        else:
            paths = {recipe.symbol: find_files(data_dir, pattern)}
        for symbol, of_symbol in paths.items():
            files = [source_file(path, memo) for path in of_symbol]
            refuse_copies(files)
            if recipe.source.symbol_columns:
                for file in files:
                    for name, rows in _symbols_of(file, recipe.source.symbol_columns, memo).items():
                        of_timeframe = found.setdefault(name, {}).setdefault(timeframe, [])
                        of_timeframe.append(SourceFile(file.path, file.md5, file.identity, file.touched, rows))
            else:
                found.setdefault(symbol, {})[timeframe] = files
    timeframes = recipe.source.files
    return {symbol: {name: found[symbol].get(name, []) for name in timeframes} for symbol in choose(recipe, found)}


def source_file(path: Path, memo: Path) -> SourceFile:
    """A whole file and its fingerprint, which is remembered in the folder `memo`."""
    if is_url(path):
        from pipeline.remote_files import remote_fingerprint  # fsspec is an extra

        known = remote_fingerprint(path, memo)
    else:
        known = fingerprint(path, memo)
    return SourceFile(path, known.md5, known.identity, known.touched)


def check_source(file: SourceFile) -> None:
    """Raise UserError when a file is no longer what it was when it was hashed."""
    if file.identity and is_url(file.path):
        from pipeline.remote_files import check_remote_unchanged  # fsspec is an extra

        check_remote_unchanged(file.path, file.identity)
    elif file.identity:
        check_unchanged(file.path, file.identity)


def _remote(url: str) -> list[Path]:
    if "{symbol}" in url:
        raise SourceError(
            f"{url}: {{symbol}} cannot stand in a URL; use data.source.symbol_columns, or fetch the files"
        )
    if find_spec("fsspec") is None:
        raise SourceError(f"{url}: files at a URL need fsspec, which is not there: run bin/install remote")
    from pipeline.remote_files import find_remote  # fsspec is an extra

    return find_remote(url)


def refuse_copies(files: Iterable[SourceFile]) -> None:
    """Raise SourceError for two files of the same content."""
    first: dict[str, Path] = {}
    for file in files:
        if (same := first.setdefault(file.md5, file.path)) != file.path:
            raise SourceError(f"{file.path}: the same content as {same.name}; remove one of them")


def _symbols_of(file: SourceFile, columns: list[str], memo: Path) -> dict[str, dict[str, str]]:
    """The symbols in a file, {name: {column: value}}, remembered by the file's content."""
    of = [file.md5, columns]
    path = memo / f"{content_md5(of)}-symbols.json"
    known = recall(path)
    values = known.get("symbols") if known.get("of") == of else None
    if values is None:
        values = [list(one) for one in symbols_in(file.path, columns)]
        remember(path, {"of": of, "symbols": values})
    named = {"-".join(one): dict(zip(columns, one, strict=True)) for one in values}
    if len(named) < len(values):
        raise SourceError(f"{file.path}: symbols in {columns} get the same name when joined by -; rename one of them")
    return named
