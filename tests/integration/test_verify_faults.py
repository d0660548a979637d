"""Hundreds of seeded faults in a real store: `bin/cache verify` has to find every one, and to name just these files."""

import json
import random
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cache.contents import entry_ids
from cache.entries import StoreError, entry_path, open_entry
from cache.layout import array_spec, padded_rows
from cache.reader import open_dataset
from cache.refs import read_ref
from cache.verify import check_content, check_metadata

ROOT = Path(__file__).parents[2]
ROUNDS = 150


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose base arrays are longer than a chunk, so that they have padding. Every test leaves it as it was."""
    folder = tmp_path_factory.mktemp("faults")
    build = ["--config", "configs/test.yaml", "--data-dir", folder, "--store", folder / "store"]
    for command in (
        [ROOT / "bin/simulate", "--out", folder, "--rows", "70000"],
        [ROOT / "bin/build-cache", *build],
        [ROOT / "bin/build-cache", *build, "data.name=again", "data.window.seq_len=16"],
    ):
        subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    return Path(folder / "store")


def found_in(store: Path, name: str | None = None) -> list[Path]:
    return sorted(finding.file for finding in check_content(check_metadata(store, name)))


@dataclass(frozen=True)
class Fault:
    """Damage to a file: its kind, and what the file holds then (None: it is gone)."""

    kind: str
    file: Path
    content: bytes | None
    seen_at_open: bool


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def same_json(left: bytes, right: bytes) -> bool:
    """Whether two texts say the same, as `1e-5` and `1E-5` do."""
    try:
        return bool(json.loads(left) == json.loads(right))
    except ValueError:
        return False


def body_regions(entry: Path, file: Path) -> dict[str, tuple[int, int]]:
    """The parts of an array's file, in bytes [start, stop)."""
    name = file.relative_to(entry).parts[0]
    described = json.loads((entry / "zarr.json").read_bytes())["attributes"]["arrays"][name]
    row, size, rows = array_spec(name, described).row_bytes, described["bytes"], described["shape"][0]
    bounds = {"rows": (0, rows * row), "padding": (rows * row, padded_rows(rows) * row)}
    bounds |= {"index": (padded_rows(rows) * row, size - 4), "crc": (size - 4, size)}
    return {name: bound for name, bound in bounds.items() if bound[1] > bound[0]}


def draw(rng: random.Random, entry: Path | None, file: Path) -> Fault:
    """A fault in a file, of an entry or for itself."""
    content = file.read_bytes()
    is_body, is_manifest = (
        file.name != "zarr.json" and entry is not None,
        file.name == "zarr.json" and file.parent == entry,
    )
    kind = rng.choice(["flip"] * 6 + ["truncated", "extended", "missing", "emptied"])
    if kind == "flip" and is_body:
        assert entry is not None
        part, (start, stop) = rng.choice(sorted(body_regions(entry, file).items()))
        return Fault(f"flip in {part}", file, flipped(content, rng.randrange(8 * start, 8 * stop)), False)
    if kind == "flip":
        changed = flipped(content, rng.randrange(8 * len(content)))
        what = "manifest" if is_manifest else "array's zarr.json" if entry else file.parent.name
        return Fault(
            f"flip in {what}", file, changed, entry is None or (is_manifest and not same_json(content, changed))
        )
    seen = is_body or is_manifest or entry is None
    if kind == "truncated":
        return Fault(kind, file, content[: rng.randrange(1, len(content))], seen)
    if kind == "extended":
        more = rng.choice([b"\0", b" ", b"\n", rng.randbytes(100), content])
        return Fault(kind, file, content + more, is_body or (seen and not same_json(content, content + more)))
    return Fault(kind, file, None if kind == "missing" else b"", seen)


@contextmanager
def planted(faults: list[Fault]) -> Iterator[None]:
    """The faults, until the end."""
    before = {fault.file: fault.file.read_bytes() for fault in faults}
    try:
        for fault in faults:
            if fault.content is None:
                fault.file.unlink()
            else:
                fault.file.write_bytes(fault.content)
        yield
    finally:
        for file, content in before.items():
            file.write_bytes(content)


def refused(opening: Callable[..., Any], *arguments: Any) -> bool:
    try:
        opening(*arguments)
    except StoreError:
        return True
    return False


def test_an_intact_store(store: Path):
    assert found_in(store) == found_in(store, "test") == found_in(store, "again") == []


def test_every_fault_is_found_and_nothing_else(store: Path):
    rng, kinds = random.Random(20_240_601), Counter[str]()
    refs, memos = ["again", "test"], sorted((store / "sources").iterdir())
    assert memos
    for _ in range(ROUNDS):
        faults: list[tuple[tuple[str, str] | None, Fault]] = []
        for one in entry_ids(store):  # at most one an entry: a damaged manifest hides what else is wrong there
            if rng.random() < 0.5:
                entry = entry_path(store, *one)
                files = sorted(path for path in entry.rglob("*") if path.is_file())
                bodies = [path for path in files if path.name != "zarr.json"] or files
                file = rng.choice([entry / "zarr.json", rng.choice(files), *rng.choices(bodies, k=2)])
                faults.append((one, draw(rng, entry, file)))
        for path in (store / "refs" / f"{rng.choice(refs)}.json", rng.choice(memos)):
            if rng.random() < 0.5:
                fault = draw(rng, None, path)
                if fault.content is not None:  # a missing ref is no ref, a missing memo is made again
                    faults.append((None, fault))
        with planted([fault for _, fault in faults]):
            assert found_in(store) == sorted(fault.file for _, fault in faults), faults
            for one, fault in faults:
                kinds[fault.kind] += 1
                if one:
                    assert refused(open_entry, store, *one) == fault.seen_at_open, fault
                elif fault.file.parent.name == "refs":
                    assert refused(read_ref, store, fault.file.stem) == fault.seen_at_open, fault
            for name in refs:
                check_dataset(store, name, faults)
    assert found_in(store) == []
    print(f"\n{kinds.total()} faults planted and found: {dict(kinds.most_common())}")
    assert kinds.total() >= 500
    assert len(kinds) == 12


def check_dataset(store: Path, name: str, faults: list[tuple[tuple[str, str] | None, Fault]]) -> None:
    """A dataset opens just when nothing is wrong with its ref, windows and streams that can be seen at open."""
    seen = [one for one, fault in faults if fault.seen_at_open and one]
    ref = store / f"refs/{name}.json"
    if any(fault.file == ref and fault.seen_at_open for _, fault in faults):
        assert refused(open_dataset, store, name)
        return
    key = read_ref(store, name)["dataset"]
    symbols: dict[str, Any] = {}
    if ("datasets", key) not in seen:
        manifest = json.loads((entry_path(store, "datasets", key) / "zarr.json").read_bytes())["attributes"]
        symbols = manifest["components"]["inputs"]
    needed = {("datasets", key)}
    for keys in symbols.values():
        needed |= {("windows", keys["windows"]), *(("streams", one) for one in keys["streams"].values())}
    touched = {one for one, fault in faults if one and fault.kind.startswith("flip in")}
    if needed & set(seen):
        assert refused(open_dataset, store, name)
    elif not needed & touched:  # a bit of `ends` may be seen as well
        assert not refused(open_dataset, store, name)


def test_missing_entries(store: Path, tmp_path: Path):
    entries = list(entry_ids(store))
    for one in entries:
        path = entry_path(store, *one)
        path.rename(tmp_path / "away")
        try:
            assert found_in(store) == [path]
            if one[0] != "bars":
                assert refused(open_entry, store, *one)
                assert refused(open_dataset, store, "test") or refused(open_dataset, store, "again")
        finally:
            (tmp_path / "away").rename(path)
    print(f"\n{len(entries)} entries removed and missed")


def swap(left: Path, right: Path, aside: Path) -> None:
    left.rename(aside)
    right.rename(left)
    aside.rename(right)


def test_swapped_files_and_entries(store: Path, tmp_path: Path):
    rng, entries, swapped = random.Random(7), [entry_path(store, *one) for one in entry_ids(store)], Counter[str]()
    while swapped.total() < 120:
        left, right = rng.sample(entries, 2)
        kind = rng.choice(["manifest", "body", "array's zarr.json", "entry"])
        if kind == "entry" and left.parent == right.parent:
            files = (left, right)
            wrong = [left / "zarr.json", right / "zarr.json"]
        elif kind == "manifest":
            wrong = [left / "zarr.json", right / "zarr.json"]
            files = (wrong[0], wrong[1])
        else:
            pattern = "*/zarr.json" if kind == "array's zarr.json" else "*/c.*"
            both = [sorted(entry.glob(pattern)) for entry in (left, right)]
            if kind == "entry" or not all(both):
                continue
            files = (rng.choice(both[0]), rng.choice(both[1]))
            wrong = list(files)
            if files[0].read_bytes() == files[1].read_bytes():
                continue
        swapped[kind] += 1
        swap(*files, tmp_path / "aside")
        try:
            assert found_in(store) == sorted(wrong)
            if kind in ("manifest", "entry"):
                assert refused(open_entry, store, left.parent.name, left.name)
        finally:
            swap(*files, tmp_path / "aside")
    print(f"\n{swapped.total()} swaps found: {dict(swapped)}")
    assert found_in(store) == []


def test_swapped_refs(store: Path, tmp_path: Path):
    refs = [store / "refs/again.json", store / "refs/test.json"]
    swap(refs[0], refs[1], tmp_path / "aside")
    try:
        assert found_in(store) == refs
        assert refused(open_dataset, store, "test")
    finally:
        swap(refs[0], refs[1], tmp_path / "aside")


def test_the_command_finds_and_mends(store: Path, tmp_path: Path):
    """A bit in every kind of file of one dataset: found, named, dropped, and only that is built again."""
    copy = Path(shutil.copytree(store, tmp_path / "store"))
    (entries,) = open_dataset(copy, "test").symbols.values()
    damaged = [entries.windows.path / "ends/c.0.0", entries.streams["m5"].path / "values/zarr.json"]
    for path in damaged:
        path.write_bytes(flipped(path.read_bytes(), 1003))

    def cache(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [ROOT / "bin/cache", *arguments, "--store", copy], capture_output=True, text=True, cwd=ROOT, timeout=60
        )

    done = cache("verify")
    assert done.returncode == 1
    for path in damaged:
        assert re.search(rf"^{path} \(TEST( m5)?\): it", done.stderr, re.MULTILINE)
    repaired = cache("verify", "--repair")
    assert repaired.returncode == 1
    dropped = {str(entries.windows.path), str(entries.streams["m5"].path)}
    assert dropped == {line.strip() for line in repaired.stdout.splitlines() if line.startswith(f"  {copy}")}
    rebuild = [ROOT / "bin/build-cache", "--config", "configs/test.yaml", "--data-dir", store.parent, "--store", copy]
    built = subprocess.run([*rebuild, "--json"], check=True, capture_output=True, text=True, cwd=ROOT)
    assert json.loads(built.stdout)["built"] == ["windows TEST", "streams TEST m5"]
    again = cache("verify")
    assert (again.returncode, again.stderr.count("error")) == (0, 0)
    assert found_in(copy) == []
