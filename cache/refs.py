"""What lies in a store's folder: refs, the names of its datasets, and what tells that it is a store at all."""

import json
import re
from pathlib import Path
from typing import Any

from cache.entries import StoreError, damaged
from cache.files import listing
from cache.json_types import fault
from cache.layout import STAGES
from cache.schema import REF
from cache.seal import unsealed

UNKNOWN_DIR = "DIR-OF-SOURCES"  # data_dir of an imported ref; it stands in commands that people are told to type
_OF_STORE = {  # what tells a store from any other folder, by subfolder
    "refs": re.compile(r"[^.].*\.json"),
    "locks": re.compile("store"),
    **dict.fromkeys(STAGES, re.compile(r"\.?[0-9a-f]{32}(\..*)?")),
}


def read_ref(store: Path, name: str) -> dict[str, Any]:
    """A ref: {"name", "dataset": key, "recipe", "data_dir", "sources", "updated"}.

    Raises StoreError: for a missing one it names those there are.
    """
    path = store / "refs" / f"{name}.json"
    try:
        ref = unsealed(json.loads(path.read_bytes()))
    except (FileNotFoundError, NotADirectoryError):
        known = ", ".join(ref_names(store)) or "none yet"
        raise StoreError(f"{store}: no dataset named {name} (there are: {known})") from None
    except (ValueError, RecursionError):
        raise damaged(path, "it is not as it was written") from None
    if wrong := fault(ref, REF):
        raise damaged(path, wrong)
    if ref["name"] != name:
        raise damaged(path, f"it is the ref of {ref['name']}")
    return ref


def ref_names(store: Path) -> list[str]:
    """Names of all datasets, sorted. Raises StoreError where there is no store, and OSError where it cannot be read."""
    check_store(store)
    return [path.stem for path in listing(store / "refs") if _OF_STORE["refs"].fullmatch(path.name)]


def check_store(store: Path) -> None:
    """Raise StoreError where there is no store, whatever else may lie there."""
    check_folder(store)
    if not any(_holds(store / part, name) for part, name in _OF_STORE.items()):
        raise StoreError(f"{store}: no store here; --store says where it is, and bin/build-cache makes one")


def check_folder(store: Path) -> None:
    """Raise StoreError where a store is something else than a folder, or nothing yet."""
    if store.is_symlink() and not store.exists():
        raise StoreError(f"{store}: a link to {store.readlink()}, which is not there; --store says where the store is")
    if store.exists() and not store.is_dir():
        raise StoreError(f"{store}: a file, not a folder; --store says where the store is")


def _holds(folder: Path, name: re.Pattern[str]) -> bool:
    """Whether a folder holds something of such a name; one that cannot be read may."""
    try:
        return any(name.fullmatch(path.name) for path in listing(folder))
    except OSError as error:
        return not isinstance(error, NotADirectoryError)
