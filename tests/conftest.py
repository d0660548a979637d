import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).parents[1]

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a test a core, and PyTorch's threads would wait for each other
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported, by whichever test does so first
settings.register_profile("headstart", deadline=None)  # the machine may be busy with something else
settings.load_profile("headstart")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=4, help="rounds of tests/integration/test_kill.py")


@pytest.fixture(scope="session")
def simulated_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with simfx_m1.parquet: 30,000 simulated one-minute bars. Read only."""
    folder = tmp_path_factory.mktemp("simulated")
    subprocess.run([ROOT / "bin/simulate", "--out", folder, "--rows", "30000"], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def test_store(simulated_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the dataset `test` of configs/test.yaml. Read only: tests that change it work on a copy."""
    store = tmp_path_factory.mktemp("built") / "store"
    build = [ROOT / "bin/build-cache", "--config", "configs/test.yaml", "--data-dir", simulated_dir, "--store", store]
    subprocess.run(build, check=True, capture_output=True)
    return store
