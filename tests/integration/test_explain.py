"""What bin/cache explain tells of a build before it happens."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cache.recipe import Recipe
from pipeline import bars_plan
from pipeline.bars_plan import make_plan
from pipeline.build import build
from pipeline.explain import Explanation, explain, in_short, look_up
from pipeline.explain_command import explain_command
from pipeline.simulate import simulate_bars
from pipeline.sources import find_sources
from tests.unit.pipeline.making import make_recipe, quiet

ROOT = Path(__file__).parents[2]
OVERRIDES = ("source.files={m1: 'm1/{symbol}.parquet'}", "split.train_end='2024-01-12'")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explain")
    (folder / "m1").mkdir()
    for seed, name in enumerate(("AAA", "BBB")):
        simulate_bars(folder / "m1" / f"{name}.parquet", 9_000, seed, lambda written: None)
    build(make_recipe(*OVERRIDES), folder, folder / "store", 2, quiet())
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """Two symbols' bars and a store with their dataset, to be changed."""
    return shutil.copytree(original, tmp_path / "explain", copy_function=shutil.copy2)


def told(folder: Path, *overrides: str, recipe: Recipe | None = None) -> Explanation:
    recipe = recipe or make_recipe(*OVERRIDES, *overrides)
    sources = find_sources(recipe, folder, folder / "store")
    return explain(make_plan(recipe, sources), sources, folder, folder / "store")


def states(explanation: Explanation) -> dict[str, str]:
    """What is not a hit."""
    return {one.node.label: one.state for one in explanation.verdicts if one.state != "hit"}


def reasons(explanation: Explanation) -> dict[str, tuple[str, ...]]:
    return {one.node.label: one.reasons for one in explanation.verdicts if one.state != "hit"}


def files(explanation: Explanation) -> dict[str, str]:
    return {file.path: file.state for file in explanation.files}


def of_symbol(name: str) -> set[str]:
    streams = {f"streams {name} {timeframe}" for timeframe in ("m1", "m5", "m15")}
    return {f"bars {name} m1 {name}.parquet", f"bars {name} m5", f"bars {name} m15", f"windows {name}", *streams}


def entries(folder: Path) -> list[Path]:
    """Everything in the store but what is remembered of source files."""
    return sorted(path for path in folder.rglob("*") if path.parent.name != "sources")


def rewritten(folder: Path, name: str, seed: int = 7) -> None:
    (folder / "m1" / f"{name}.parquet").unlink(missing_ok=True)
    simulate_bars(folder / "m1" / f"{name}.parquet", 9_000, seed, lambda written: None)


def test_symbols_left_out_before_are_left_out_again(folder: Path):
    overrides = (*OVERRIDES, "universe.failing=leave_out", "features.statistics=pooled")
    broken = folder / "m1/CCC.parquet"
    broken.write_bytes(b"PAR1")
    build(make_recipe(*overrides), folder, folder / "store", 2, quiet())

    def asked(*more: str) -> dict[str, Any]:
        words = [f"data.{one}" for one in (*overrides, *more)]
        words += ["--config", "configs/test.yaml", "--data-dir", str(folder), "--store", str(folder / "store")]
        told = CliRunner().invoke(explain_command, words), CliRunner().invoke(explain_command, [*words, "--json"])
        found: dict[str, Any] = json.loads(told[1].stdout)
        assert ("\nLeft out, as far as is known before the build:\n  symbol  why\n  CCC" in told[0].stdout) == (
            "CCC" in found["left_out"]
        )
        return found

    assert {one["state"] for one in asked()["entries"]} == {"hit"}
    other = asked("window.seq_len=9")
    assert list(other["left_out"]) == ["CCC"]
    assert {one["stage"] for one in other["entries"] if one["state"] != "hit"} == {"windows", "datasets"}
    assert not asked("source.policy.missing=drop")["left_out"]
    rewritten(folder, "CCC")
    assert not asked()["left_out"]


def test_nothing_changed(folder: Path):
    explanation = told(folder)
    assert states(explanation) == {}
    assert files(explanation) == {"m1/AAA.parquet": "unchanged", "m1/BBB.parquet": "unchanged"}
    assert explanation.changes == ()
    assert list(in_short(explanation)) == []


@pytest.mark.parametrize(
    ("override", "change", "stage"),
    [
        ("window.seq_len=48", "data.window.seq_len 32 → 48", "windows"),
        ("window.stride=3", "data.window.stride 1 → 3", "windows"),
        ("window.max_staleness={m5: 1h}", "data.window.max_staleness.m5 none → 1h", "windows"),
        ("features.set=price", "data.features.set returns → price", "streams"),
        ("split.embargo=1d", "data.split.embargo 0s → 1d", "streams"),
    ],
)
def test_one_field_of_the_recipe(folder: Path, override: str, change: str, stage: str):
    explanation = told(folder, override)
    assert set(states(explanation).values()) == {"build"}
    assert {label.split()[0] for label in states(explanation)} == {stage, "datasets"}
    for label, why in reasons(explanation).items():
        if label.startswith(stage):
            assert why == (change,)
    short = "\n".join(in_short(explanation))
    assert f"changed since the last build: {change}" in short
    assert f"{15 - len(states(explanation))} of 15 entries are in the store; to build:" in short


def test_the_content_of_a_source(folder: Path):
    rewritten(folder, "BBB")
    explanation = told(folder)
    assert files(explanation) == {"m1/AAA.parquet": "unchanged", "m1/BBB.parquet": "content changed"}
    assert states(explanation) == dict.fromkeys([*of_symbol("BBB"), "datasets test"], "stale source")
    why = reasons(explanation)
    assert why["bars BBB m1 BBB.parquet"] == ("the content of BBB.parquet changed",)
    assert why["windows BBB"] == ("other bars of m1, m5, m15",)
    assert why["datasets test"] == ("BBB has other entries: windows, stream m1, stream m5, stream m15",)
    assert "m1/BBB.parquet: content changed" in "\n".join(in_short(explanation))
    changed = told(folder, "window.seq_len=48")
    assert reasons(changed)["windows BBB"] == ("data.window.seq_len 32 → 48", "other bars of m1, m5, m15")
    assert states(changed)["windows AAA"] == "build"
    assert states(changed)["windows BBB"] == "stale source"


def test_a_source_only_touched(folder: Path):
    told(folder)
    os.utime(folder / "m1" / "AAA.parquet", (1, 1))
    told_once = told(folder)
    assert states(told_once) == {}
    assert files(told_once)["m1/AAA.parquet"] == "touched only, a hit"
    assert files(told(folder))["m1/AAA.parquet"] == "unchanged"


def test_a_source_renamed(folder: Path):
    one = make_recipe("source.files={m1: 'm1/A*.parquet'}")
    build(one, folder, folder / "store", 2, quiet())
    (folder / "m1" / "AAA.parquet").rename(folder / "m1" / "Anew.parquet")
    explanation = told(folder, recipe=one)
    assert states(explanation) == {}
    assert files(explanation) == {"m1/Anew.parquet": "renamed from m1/AAA.parquet, a hit"}


def test_a_new_file_and_one_that_is_gone(folder: Path):
    one = make_recipe("source.files={m1: 'm1/*.parquet'}", "timeframes=[m1]")
    rewritten(folder, "BBB", seed=0)  # what AAA was made of
    (folder / "m1" / "AAA.parquet").unlink()
    build(one, folder, folder / "store", 2, quiet())
    (folder / "m1" / "BBB.parquet").unlink()
    rewritten(folder, "CCC", seed=9)
    explanation = told(folder, recipe=one)
    assert files(explanation) == {"m1/CCC.parquet": "new file", "m1/BBB.parquet": "no longer there"}
    assert states(explanation)["bars TEST m1 CCC.parquet"] == "build"
    assert reasons(explanation)["bars TEST m1 CCC.parquet"] == ("new file",)


def test_the_version_of_a_stage(folder: Path, monkeypatch: pytest.MonkeyPatch):
    version = bars_plan.STAGE_VERSIONS["windows"]
    monkeypatch.setitem(bars_plan.STAGE_VERSIONS, "windows", version + 1)
    explanation = told(folder)
    assert set(states(explanation)) == {"windows AAA", "windows BBB", "datasets test"}
    assert reasons(explanation)["windows AAA"] == (f"version of stage windows {version} → {version + 1}",)


def test_another_list_of_symbols(folder: Path):
    rewritten(folder, "CCC")
    more = told(folder)
    assert set(states(more)) == {*of_symbol("CCC"), "datasets test"}
    assert set(states(more).values()) == {"build"}
    assert reasons(more)["datasets test"] == ("symbols added: CCC",)
    fewer = told(folder, "source.symbols=[BBB]")
    assert states(fewer) == {"datasets test": "build"}
    assert reasons(fewer)["datasets test"] == ("symbols removed: AAA",)


def test_an_empty_store_has_nothing_to_compare_with(folder: Path):
    shutil.rmtree(folder / "store")
    explanation = told(folder)
    assert len(states(explanation)) == 15
    assert reasons(explanation)["windows AAA"] == ("the store holds no windows yet",)
    assert list(in_short(explanation)) == []
    assert not (folder / "store").exists()


# --- the command


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    options = ["--config", "configs/test.yaml", "--data-dir", folder, "--store", folder / "store"]
    overrides = [f"data.{override}" for override in OVERRIDES]
    words = [ROOT / "bin/cache", "explain", *options, *overrides, *arguments]
    return subprocess.run(words, capture_output=True, text=True, timeout=60)


def test_the_command_tells_what_and_why_and_builds_nothing(folder: Path):
    before = entries(folder)
    done = command(folder, "data.window.seq_len=48")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "test: 12 of 15 entries are in the store, 3 to build"
    assert "  m1   m1/AAA.parquet: unchanged" in lines
    at = next(number for number, line in enumerate(lines) if line.startswith("  build         windows AAA  "))
    assert lines[at + 1] == "                  data.window.seq_len 32 → 48"
    assert lines[at + 2].endswith(", the nearest there is)")
    assert sum(line.startswith("  hit           ") for line in lines) == 12
    assert entries(folder) == before


def test_the_command_for_scripts(folder: Path):
    done = command(folder, "--json", "data.window.stride=2")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert set(found) == {"files", "changes", "left_out", "entries"}
    assert found["changes"] == ["data.window.stride 1 → 2"]
    (windows,) = (e for e in found["entries"] if (e["stage"], e["symbol"]) == ("windows", "BBB"))
    assert (windows["state"], windows["reasons"]) == ("build", ["data.window.stride 1 → 2"])
    assert (folder / "store" / "windows" / windows["nearest"]).is_dir()


def test_the_command_on_bad_input(folder: Path):
    (folder / "m1" / "AAA.parquet").unlink()
    (folder / "m1" / "BBB.parquet").unlink()
    done = command(folder)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")


def test_a_build_looks_up_the_same_states_without_reading_what_is_nearest(folder: Path):
    rewritten(folder, "AAA")
    explained = told(folder, "window.seq_len=9")
    recipe = make_recipe(*OVERRIDES, "window.seq_len=9")
    sources = find_sources(recipe, folder, folder / "store")
    found = look_up(make_plan(recipe, sources), sources, folder, folder / "store")
    assert (found.files, found.changes) == (explained.files, explained.changes)
    assert states(found) == states(explained)
    assert set(states(found).values()) == {"build", "stale source"}
    assert not any(one.nearest for one in found.verdicts)
