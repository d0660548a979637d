"""What a build tells about a dataset of sequences: what was read and repaired, and what is in every fold."""

from collections import Counter
from collections.abc import Iterator, Sequence

from cache.entries import Entry
from cache.part import part_of
from cache.reader import Dataset
from cache.tables import table


def sequence_lines(dataset: Dataset, sources: Sequence[Entry]) -> Iterator[str]:
    """Lines for people. `sources` are the recordings."""
    rows = sum(entry.shape("values")[0] for entry in sources if entry.manifest["sequences"])
    count = sum(entry.manifest["sequences"] for entry in sources)
    for name in dict.fromkeys(entry.manifest["origin"] for entry in sources):
        yield from _repaired(name, [entry for entry in sources if entry.manifest["origin"] == name])
    (one,), recipe = dataset.symbols.values(), dataset.recipe
    streams = list(one.streams.values())
    features, groups = streams[0].manifest["features"], one.windows.manifest["groups"]
    length = next(iter(dataset.seq_lens.values()))
    yield f"  {rows:,} rows loaded: {count:,} unique sequences of {len(groups):,} groups, {len(features)} channels"
    yield from _left(sources, recipe["fill"], rows * len(sources[0].manifest["channels"]))
    yield f"  streams: {', '.join(features)}; {length} rows a sequence"
    for label, classes in one.windows.manifest["classes"].items():
        yield f"  label {label}: {len(classes)} classes, {', '.join(classes[:12])}{', …' * (len(classes) > 12)}"
    header = ("fold", "training", "validation", "groups")
    lines: list[tuple[str, ...]] = [header]
    for number, fold in enumerate(dataset.entry.manifest["folds"]):
        part = part_of(dataset, number)
        train = sum(map(len, part.train))
        lines.append((str(number), f"{train:,}", f"{len(part.val):,}", str(len(fold["groups"]))))
    yield from (f"  {line}" for line in table(lines, right={0, 1, 2, 3}))


def _left(sources: Sequence[Entry], fill: Sequence[str], values: int) -> Iterator[str]:
    """Columns that were not read, and values that were not there."""
    if unused := list(dict.fromkeys(name for entry in sources for name in entry.manifest["unused"])):
        yield f"  not used: {', '.join(unused[:12])}{f' … {len(unused):,} columns in all' * (len(unused) > 12)}"
    missing: Counter[str] = Counter()
    for entry in sources:
        missing.update(entry.manifest["missing"])
    if count := missing.total():
        ((most, _),) = missing.most_common(1)
        told = f"{count:,} of {values:,} ({count / values:.1%}), most often in {most}"
        yield f"  missing values: {told}; filled {', '.join(fill)}"


def _repaired(name: str, entries: list[Entry]) -> Iterator[str]:
    """What policies did to a file, over all of its parts."""
    total: dict[str, dict[str, int]] = {}
    for entry in entries:
        for fault, change in entry.manifest["repaired"].items():
            known = total.setdefault(fault, dict.fromkeys(change, 0) | {"first_row": change["first_row"]})
            for unit, count in change.items():
                known[unit] = min(known[unit], count) if unit == "first_row" else known[unit] + count
    for fault, change in total.items():
        unit, done = ("rows", "changed") if "rows" in change else ("sequences", "left out")
        yield (
            f"  {name}: data.source.policy.{fault} {done} {unit}: {change[unit]:,}, the first of them at row "
            f"{change['first_row']:,}"
        )
