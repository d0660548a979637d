"""Deciding that nothing has to be built: source files unchanged, and only touched.

Everything between the imports and the answer "all entries are there": finding the files, their MD5s (remembered by
path, size, modification time and inode), the keys of all entries, a look at each entry. Beside it what the same
decision costs by hashing the source every time, and by hashing what was built as well.
"""

import hashlib
import os
from pathlib import Path

from benchmarks import measure
from cache.recipe import Recipe
from configs.loader import load_config
from pipeline.bars_plan import make_plan
from pipeline.explain import look_up
from pipeline.sources import find_sources

ROWS = 6_000_000  # a source of about 45 MB


def decide(recipe: Recipe, data: Path, store: Path) -> int:
    """The number of entries to build."""
    sources = find_sources(recipe, data, store)
    return len(look_up(make_plan(recipe, sources), sources, data, store).missing)


def hash_files(paths: list[Path]) -> None:
    for path in paths:
        with path.open("rb") as file:
            hashlib.file_digest(file, "md5")


def main() -> None:
    parser = measure.parser(__doc__ or "", repeats=15)
    parser.set_defaults(rows=ROWS)
    arguments = parser.parse_args()
    with measure.scratch() as folder:
        data = measure.data_dir(arguments.data, arguments.rows, folder)
        store = measure.build_store(data, folder / "store")
        recipe = load_config("configs/demo.yaml", measure.OVERRIDES).parse("data", Recipe)
        source = data / measure.FILE_NAME
        built = list(store.glob("*/*/*/c.*"))

        def unchanged() -> None:
            assert decide(recipe, data, store) == 0

        times = iter(range(10**9, 2 * 10**9))

        def touched() -> None:
            os.utime(source, (next(times),) * 2)
            assert decide(recipe, data, store) == 0

        subjects = {
            "unchanged": unchanged,
            "hash": lambda: hash_files([source]),
            "hash all": lambda: hash_files([source, *built]),
        }
        seconds = measure.interleave(subjects, arguments.repeats)
        seconds |= measure.interleave({"touched": touched}, arguments.repeats)  # what was just changed is hashed anew
        print(measure.environment("numpy", "pydantic"))
        size = source.stat().st_size / 1e6
        print(f"\n{size:.0f} MB of source, {sum(p.stat().st_size for p in built) / 1e6:,.0f} MB of entries\n")
        names = {
            "unchanged": "Headstart, source unchanged",
            "touched": "Headstart, source touched: one rehash, still a hit",
            "hash": "MD5 of the source",
            "hash all": "MD5 of the source and of all that was built",
        }
        rows = [
            (
                text,
                f"{measure.median(seconds[name]) * 1e3:.1f}",
                f"{measure.ratio(seconds[name], seconds['unchanged']):.1f} ×",
            )
            for name, text in names.items()
        ]
        measure.print_table(("decision", "ms", "ratio"), rows)
        print(f"\nunchanged: {measure.verdict(measure.median(seconds['unchanged']) * 1e3, at_most=50)} ms")


if __name__ == "__main__":
    main()
