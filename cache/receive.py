"""What a dataset from elsewhere goes through besides its unpacking: its ref, room on the disk, and whether all fits."""

import shutil
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cache.archive import ref_fault
from cache.contents import Id
from cache.entries import StoreError, entry_exists, open_entry
from cache.reader import open_symbols
from cache.refs import UNKNOWN_DIR, read_ref


def new_ref(taken: Mapping[str, Any], rename: str | None) -> dict[str, Any]:
    """The ref to write. Raises StoreError when `rename` is not a name."""
    ref = dict(taken)
    if rename is not None:
        ref |= {"name": rename, "recipe": {**ref["recipe"], "name": rename}}
        if wrong := ref_fault(ref):
            raise StoreError(f"--as {rename}: not a name for a dataset: {wrong}")
    return {**ref, "data_dir": UNKNOWN_DIR, "updated": datetime.now(UTC).isoformat(timespec="seconds")}


def same_ref(store: Path, ref: Mapping[str, Any], renew: bool = False) -> bool:
    """Whether the store has this ref. Raises StoreError when it has another of that name.

    `renew`: another that came from elsewhere, and was not built here since, is no obstacle.
    """
    if not (store / "refs" / f"{ref['name']}.json").exists():
        return False
    found = read_ref(store, ref["name"])
    if found["dataset"] == ref["dataset"]:
        return True
    if renew and found["data_dir"] == UNKNOWN_DIR:
        return False
    raise StoreError(
        f"{store}: has a dataset named {ref['name']} already, {found['dataset']}, and the one that comes is "
        f"{ref['dataset']}. Give it another name: --as NEWNAME"
    )


def check_space(store: Path, size: int) -> None:
    """Raise StoreError where the disk has less than `size` bytes free."""
    free = shutil.disk_usage(store).free
    if free < size:
        raise StoreError(f"{store}: {size / 1e6:,.1f} MB are to come, and its disk has {free / 1e6:,.1f} MB free")


def check_fit(source: object, store: Path, dataset: str) -> None:
    """Raise StoreError naming the source when the entries of a dataset do not fit each other."""
    try:
        open_symbols(store, open_entry(store, "datasets", dataset))
    except StoreError as error:
        raise StoreError(f"{source}: the dataset is not given a name, its entries do not fit: {error}") from None


def with_kept(error: StoreError, store: Path, ids: Iterable[Id]) -> StoreError:
    """The error, and what was unpacked before it."""
    kept = sum(entry_exists(store, *one) for one in ids)
    if not kept:
        return error
    what = f"{kept} intact entries stay" if kept > 1 else "1 intact entry stays"
    return StoreError(
        f"{error}\n{what} in {store}: the next try goes on from there, and bin/cache prune --unreferenced removes what "
        "no dataset needs"
    )
