"""From the recipe to source files: which files there are, of which symbol and timeframe, and their fingerprints."""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path

from cache.keys import fingerprint, recall, remember
from cache.recipe import Recipe
from cache.seal import content_md5
from pipeline.files import SourceError, find_by_symbol, find_files
from pipeline.plan import SourceFile, Sources
from pipeline.symbols import symbols_in


def find_sources(recipe: Recipe, data_dir: Path, store: Path) -> Sources:
    """The source files of every symbol and timeframe, with the MD5 of their content (remembered in the store).

    Raises SourceError when there are none, when two files of a timeframe hold the same, and when a symbol that is asked
    for, or a timeframe of a symbol, has no file.
    """
    memo = store / "sources"
    found: dict[str, dict[str, list[SourceFile]]] = {}
    for timeframe, pattern in sorted(recipe.source.files.items()):
        if "{symbol}" in pattern:
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
    wanted = recipe.source.symbols or sorted(found)
    for symbol in wanted:
        if symbol not in found:
            hint = _nearest(symbol, found)
            raise SourceError(f"data.source.symbols names {symbol}, which the files do not hold{hint}")
        missing = [timeframe for timeframe in recipe.source.files if timeframe not in found[symbol]]
        if missing:
            pattern = recipe.source.files[missing[0]]
            raise SourceError(
                f"{symbol}: data.source.files.{missing[0]} = {pattern} holds nothing of it; add its file, or say in "
                "data.source.symbols which symbols to take"
            )
    return {symbol: found[symbol] for symbol in sorted(wanted)}


def source_file(path: Path, memo: Path) -> SourceFile:
    """A whole file and its fingerprint, which is remembered in the folder `memo`."""
    known = fingerprint(path, memo)
    return SourceFile(path, known.md5, known.identity, known.touched)


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


def _nearest(symbol: str, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(symbol, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; they hold {', '.join(sorted(known))}"
