"""What the tests of the models share."""

import jax
import pytest


@pytest.fixture
def x64():
    """float64 is float64 for the length of a test."""
    with jax.enable_x64(True):
        yield
