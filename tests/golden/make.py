"""Makes the golden store of the present format: `.venv/bin/python -m tests.golden.make`, once a format version.

source.csv was made by it too. Prices are binary fractions and features are plain prices, so that every machine computes
the same bits.
"""

import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np

from cache.console import Console
from cache.layout import FORMAT
from cache.recipe import Recipe
from cache.seal import canonical_json, sealed, unsealed
from configs.loader import load_config
from pipeline.build import build

FOLDER = Path(__file__).parent
GOLDEN = FOLDER / FORMAT.replace("/", "-")
ROWS = 400
MINUTE = np.timedelta64(1, "m")


def recipe() -> Recipe:
    return load_config(FOLDER / "golden.yaml").parse("data", Recipe)


def write_source(path: Path) -> None:
    """A random walk on a grid of 1/64, with a gap of an hour in the middle."""
    rng = np.random.default_rng(0)
    steps = rng.integers(-8, 9, (ROWS, 4)) / 64
    close = 100 + steps[:, 3].cumsum()
    open_ = np.append(100.0, close[:-1]) + steps[:, 0] / 8
    high = np.maximum(open_, close) + np.abs(steps[:, 1])
    low = np.minimum(open_, close) - np.abs(steps[:, 2])
    time = np.datetime64("2024-01-08T00:00") + MINUTE * (np.arange(ROWS) + 60 * (np.arange(ROWS) >= ROWS // 2))
    lines = [f"{t}Z,{o},{h},{low_},{c}" for t, o, h, low_, c in zip(time, open_, high, low, close, strict=True)]
    path.write_text("\n".join(["time,open,high,low,close", *lines]) + "\n")


def main() -> None:
    if GOLDEN.exists():
        sys.exit(f"{GOLDEN} is there already: golden stores are kept as they are; a changed format has another number")
    source = FOLDER / "source.csv"
    if not source.exists():
        write_source(source)
    build(recipe(), FOLDER, GOLDEN, 1, Console(io.StringIO()))
    for part in ("locks", "sources"):
        shutil.rmtree(GOLDEN / part)
    ref = GOLDEN / "refs" / "golden.json"
    ref.write_bytes(canonical_json(sealed({**unsealed(json.loads(ref.read_bytes())), "data_dir": "data"})))


if __name__ == "__main__":
    main()
