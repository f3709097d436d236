"""Settings every test runs under: eight virtual CPU devices, and where the real data sets are."""

import os
import pathlib

ROOT = pathlib.Path(__file__).resolve().parent.parent

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")  # before jax is first imported

# Most of the time goes to compiling, and the same programs come back in many tests. A folder for each worker: JAX does
# not lock its files.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax" / os.environ.get("PYTEST_XDIST_WORKER", "main"))
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

import pytest  # noqa: E402

DATA = pathlib.Path(os.environ.get("CNNJAX_TEST_DATA", ROOT.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def real_data():
    """`real_data("mnist")` is the folder of that set's original files; the test skips where they are absent."""

    def folder(name: str) -> pathlib.Path:
        if not (DATA / name).is_dir():
            pytest.skip(f"real data set {name} is not in {DATA} (set CNNJAX_TEST_DATA)")
        return DATA / name

    return folder
