"""Settings every test runs under: eight virtual CPU devices, and where the real data sets are."""

import os
import pathlib

ROOT = pathlib.Path(__file__).resolve().parent.parent

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")  # before jax is first imported

# Most of the time goes to compiling, and the same programs come back in many tests. A folder for each worker, as JAX
# does not lock its files; what pytest-xdist's controller set is in its workers' environment, so they set it anew.
if "PYTEST_XDIST_WORKER" in os.environ or "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(
        ROOT / ".cache" / "jax" / os.environ.get("PYTEST_XDIST_WORKER", "main")
    )
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

import cnnjax  # noqa: E402, F401 - sets what the installed jaxlib needs, before a backend exists

DATA = pathlib.Path(os.environ.get("CNNJAX_TEST_DATA", ROOT.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def real_data():
    """`real_data("mnist")` is the folder of that set's original files; the test skips where they are absent."""

    def folder(name: str) -> pathlib.Path:
        if not (DATA / name).is_dir():
            pytest.skip(f"real data set {name} is not in {DATA} (set CNNJAX_TEST_DATA)")
        return DATA / name

    return folder


@pytest.fixture
def x64():
    """float64 is float64 for the length of a test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def draw():
    """`draw(model, x)`: variables of a model for images x, without compiling its initialisation.

    Kernels have variance 1 / fan_in; scales, biases and statistics are away from 0 and 1, so that none can be mixed up.
    """

    def variables(model, x, seed=0):
        rng = np.random.default_rng(seed)
        rngs = {"params": jax.random.key(0), "dropout": jax.random.key(0)}

        def leaf(path, shape):
            kind = path[-1].key
            if kind in ("scale", "var"):
                values = rng.uniform(0.5, 1.5, shape.shape)
            elif kind == "kernel":
                values = rng.normal(size=shape.shape) / np.sqrt(np.prod(shape.shape[:-1]))
            else:
                values = 0.1 * rng.normal(size=shape.shape)
            return jnp.asarray(values, shape.dtype)

        return jax.tree_util.tree_map_with_path(leaf, jax.eval_shape(model.init, rngs, x))

    return variables
