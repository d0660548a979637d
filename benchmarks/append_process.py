"""Builds a dataset of configs/universe.yaml in a process that has started; prints seconds by the clock and the CPU's.

For benchmarks/append.py.
"""

import io
import sys
import time
from pathlib import Path

from cache.console import Console
from cache.recipe import Recipe
from configs.loader import load_config
from pipeline import kernels
from pipeline.build import build


def main() -> None:
    data, store, *overrides = sys.argv[1:]
    recipe = load_config("configs/universe.yaml", overrides).parse("data", Recipe)
    kernels.load()
    began, cpu = time.perf_counter(), time.process_time()
    build(recipe, Path(data), Path(store), 2, Console(io.StringIO()))
    print(time.perf_counter() - began, time.process_time() - cpu)


if __name__ == "__main__":
    main()
