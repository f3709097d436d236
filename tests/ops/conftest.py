"""Operations are tested under the stricter of JAX's settings: what works there works under the others too."""

import jax
import pytest


@pytest.fixture(autouse=True)
def strict():
    """Arrays of different ranks don't broadcast, and those of different dtypes don't promote, unless told to."""
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def promoting(strict):
    """Dtypes promote after all: for tests in which Flax does it, or the test itself."""
    with jax.numpy_dtype_promotion("standard"):
        yield
