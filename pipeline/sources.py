"""From the recipe to source files: which files there are, of which symbol and timeframe, and their fingerprints."""

from collections.abc import Iterable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from cache.files import in_words
from cache.keys import check_unchanged, fingerprint, recall, remember
from cache.recipe import Recipe
from cache.seal import content_md5
from pipeline.files import OF_A_SYMBOL, SourceError, find_by_symbol, find_files, is_url
from pipeline.plan import SourceFile, Sources
from pipeline.symbols import symbols_in
from pipeline.universe import choose


def find_sources(recipe: Recipe, data_dir: Path, store: Path) -> Sources:
    """The source files of every symbol and timeframe, with the MD5 of their content (remembered in the store).

    A timeframe of a symbol that no file holds anything of has an empty list. Raises SourceError when there are no files
    and when two of a timeframe hold the same, OSError for what cannot be read, and UserError for symbols that are asked
    for and not there. Where every symbol has files of its own, a fault of these stands in their place.
    """
    memo, patterns, columns = store / "sources", recipe.source.files, recipe.source.symbol_columns
    if any("{symbol}" in pattern for pattern in patterns.values()):
        paths = {name: _paths_by_symbol(data_dir, pattern) for name, pattern in patterns.items()}
        chosen = choose(recipe, {symbol for of_timeframe in paths.values() for symbol in of_timeframe})
        return {
            symbol: {name: _files_or_fault(of.get(symbol, []), memo) for name, of in paths.items()} for symbol in chosen
        }
    found: dict[str, dict[str, list[SourceFile]]] = {}
    for name, pattern in sorted(patterns.items()):
        for file in _files(_remote(pattern) if is_url(pattern) else find_files(data_dir, pattern), memo):
            symbols = _symbols_of(file, columns, memo) if columns else {recipe.symbol: {}}
            for symbol, rows in symbols.items():
                found.setdefault(symbol, {}).setdefault(name, []).append(replace(file, rows=rows))
    return {symbol: {name: found[symbol].get(name, []) for name in patterns} for symbol in choose(recipe, found)}


def _files(paths: Iterable[Path], memo: Path) -> list[SourceFile]:
    files = [source_file(path, memo) for path in paths]
    refuse_copies(files)
    return files


def _files_or_fault(paths: list[Path] | Exception, memo: Path) -> list[SourceFile]:
    try:
        if isinstance(paths, Exception):
            raise paths
        return _files(paths, memo)
    except OF_A_SYMBOL as error:
        return [SourceFile(Path(), "", fault=in_words(error))]


def _paths_by_symbol(data_dir: Path, pattern: str) -> dict[str, list[Path] | Exception]:
    if is_url(pattern):
        raise SourceError(
            f"{pattern}: {{symbol}} cannot stand in a URL; use data.source.symbol_columns, or fetch the files"
        )
    return find_by_symbol(data_dir, pattern)


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
