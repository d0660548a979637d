"""Which symbols a dataset is made of, what each is for, and what is told of those that cannot be built."""

import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase

from cache.recipe import Recipe
from cache.tables import table
from configs.errors import UserError

Faults = Mapping[str, str]  # by symbol, why it cannot be built


def choose(recipe: Recipe, found: Collection[str]) -> list[str]:
    """The symbols that the recipe takes of those found, sorted.

    Raises UserError for a name or pattern of the recipe that is none of theirs, and when none is left.
    """
    source, universe = recipe.source, recipe.universe
    fields = {
        "data.source.symbols": source.symbols or (),
        "data.source.exclude": source.exclude,
        "data.universe.hold_out": universe.hold_out,
        "data.universe.weights": universe.weights,
    }
    for field, patterns in fields.items():
        for pattern in patterns:
            if not matching(found, [pattern]):
                raise UserError(f"{field} names {pattern}, which the files do not hold{_nearest(pattern, found)}")
    wanted = matching(found, source.symbols or ["*"])
    excluded = matching(wanted, source.exclude)
    if len(excluded) == len(wanted):
        raise UserError(f"data.source.exclude leaves none of the {len(wanted)} symbols; take something off its list")
    return [symbol for symbol in wanted if symbol not in excluded]


def matching(symbols: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """The symbols that are one of these names or fit one of these patterns, sorted."""
    exact = set(patterns)
    wild = [pattern for pattern in exact if re.search(r"[*?[]", pattern)]
    return sorted(s for s in set(symbols) if s in exact or any(fnmatchcase(s, pattern) for pattern in wild))


def held_out(recipe: Recipe, symbols: Iterable[str]) -> list[str]:
    """Those of these symbols that never train. Raises UserError when no other is left, or none of those meant is."""
    known = list(symbols)
    held = matching(known, recipe.universe.hold_out)
    if recipe.universe.hold_out and not held:
        raise UserError(
            f"{recipe.name}: data.universe.hold_out names {', '.join(recipe.universe.hold_out)}, and none of these is "
            "left: they are excluded, or left out because they cannot be built; hold out others"
        )
    if len(held) == len(known):
        raise UserError(
            f"{recipe.name}: data.universe.hold_out holds out all {len(known)} symbols, and none is left to train on"
        )
    return held


def weights(recipe: Recipe, symbols: Iterable[str]) -> dict[str, float]:
    """The weight of every symbol: that of its name, else of the first pattern that it fits, else 1."""
    given = recipe.universe.weights
    return {
        symbol: given.get(symbol, next((w for p, w in given.items() if fnmatchcase(symbol, p)), 1.0))
        for symbol in symbols
    }


def unusable(faults: Faults, total: int) -> UserError:
    """The error for symbols that cannot be built: of the only one what is wrong with it, else a table."""
    if total == 1:
        return UserError(*faults.values())
    lines = "".join(f"\n  {line}" for line in fault_table(faults))
    if len(faults) == total:
        return UserError(
            f"none of the {total} symbols can be built:{lines}\nthat leaves no dataset; correct some of them"
        )
    return UserError(
        f"{len(faults)} of {total} symbols cannot be built:{lines}\ndata.universe.failing=leave_out builds the dataset "
        "without such symbols, data.source.exclude without those that it names"
    )


def fault_table(faults: Faults) -> list[str]:
    """A line a reason, with the symbols that it is of."""
    symbols: dict[str, list[str]] = {}
    for symbol, reason in faults.items():
        symbols.setdefault(reason, []).append(symbol)
    rows = [("symbol", "why")]
    for reason, of in symbols.items():
        rows.append((of[0] + f" and {len(of) - 1} more" * (len(of) > 1), reason))
    return list(table(rows, right=set()))


def _nearest(symbol: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(symbol, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; they hold {_listed(sorted(known))}"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return ", ".join(names[:20]) + more
