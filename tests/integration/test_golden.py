"""Stores of every format version, kept as they were written: an accidental change of bytes fails here."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache.entries import StoreError
from cache.layout import FORMAT
from cache.reader import open_dataset
from cache.verify import check_content, check_metadata
from pipeline.build import build
from tests.golden.make import FOLDER, GOLDEN, recipe
from tests.unit.pipeline.making import quiet

VERSIONS = sorted(FOLDER.glob("headstart-*"))


def files(store: Path) -> dict[str, bytes]:
    """Every file of every entry but the manifests."""
    found = (path for path in store.glob("*/[!.]*/**/*") if path.is_file() and path.parent.parent.parent != store)
    return {str(path.relative_to(store)): path.read_bytes() for path in found}


def manifests(store: Path) -> dict[str, dict[str, Any]]:
    """Manifests by entry, without when and by whom the entry was made."""
    found = {}
    for path in store.glob("*/[!.]*/zarr.json"):
        manifest = json.loads(path.read_bytes())["attributes"]
        found[str(path.parent.relative_to(store))] = {k: v for k, v in manifest.items() if k not in ("built", "md5")}
    return found


def test_there_is_a_golden_store_of_this_format():
    assert GOLDEN in VERSIONS
    assert GOLDEN.name == FORMAT.replace("/", "-")


def test_the_same_source_makes_the_same_bytes(tmp_path: Path):
    build(recipe(), FOLDER, tmp_path / "store", 2, quiet())
    built, golden = files(tmp_path / "store"), files(GOLDEN)
    # bodies and metadata of bars, streams (one with children), windows and the dataset
    assert len(golden) == 2 * (2 * 3 + 2 * 3 + 1 + 2 + 7)
    assert set(built) == set(golden)
    assert [name for name in built if built[name] != golden[name]] == []
    made, kept = manifests(tmp_path / "store"), manifests(GOLDEN)
    assert made == kept
    for path in kept:  # the order and the form of what is written too
        one, other = ((store / path / "zarr.json").read_text() for store in (tmp_path / "store", GOLDEN))
        assert one.split('"built"')[0] == other.split('"built"')[0]


def test_the_golden_store_is_whole_and_opens(tmp_path: Path):
    store = Path(shutil.copytree(GOLDEN, tmp_path / "store"))
    assert check_content(check_metadata(store)) == ()
    dataset = open_dataset(store, "golden")
    entries = dataset.symbols["GOLDEN"]
    assert dataset.seq_lens == {"m1": 8, "m5": 8}
    assert len(entries.windows.array("time")) == 400 - 39  # the first has eight whole bars of five minutes behind it
    m5 = entries.streams["m5"]
    statistics, names = m5.manifest["statistics"], m5.manifest["features"]
    end = int(entries.windows.array("ends")[0, 1])
    closes = m5.array("values")[end - 8 : end, names.index("close")]
    close = closes * statistics["std"]["close"] + statistics["mean"]["close"]
    np.testing.assert_allclose(close, m5.array("close")[end - 8 : end], rtol=1e-6)


@pytest.mark.parametrize("store", [path for path in VERSIONS if path != GOLDEN], ids=lambda path: path.name)
def test_older_formats_are_refused_with_the_remedy(store: Path):
    with pytest.raises(StoreError, match=r"this version reads .*; run bin/build-cache again"):
        open_dataset(store, "golden")
    findings = check_metadata(store).findings
    assert len(findings) == len(list(store.glob("*/*/zarr.json")))
    assert all(f"this version reads {FORMAT}" in str(finding) for finding in findings)
