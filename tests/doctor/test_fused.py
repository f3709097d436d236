import os
import subprocess
import sys

import numpy as np
import pytest

from cnnjax import releases
from cnnjax.doctor import fused
from cnnjax.doctor.fused import Case, Layer
from cnnjax.ops import conv_implementation, reference

SMALL = [
    Layer(1, 6, taps=5, side=8),
    Layer(3, 4, side=8),
    Layer(4, 6, stride=2, side=8),
    Layer(4, 4, groups=4, side=4),
    Layer(4, 8, groups=2, side=4),
    Layer(3, 2, taps=1, side=4),
    Layer(6, 3, taps=1, side=1),
]


@pytest.mark.parametrize("layer", SMALL, ids=lambda layer: layer.name)
def test_the_oracle_is_that_of_ops(layer):
    """Shifted slices in NumPy against loops over output positions."""
    x, w, _, y, scale = fused.operands(layer, 4, False)
    options = layer.options() | {"lhs_dilation": (1, 1), "rhs_dilation": (1, 1)}
    np.testing.assert_array_equal(y, reference.conv_general_dilated(x, w, **options))
    np.testing.assert_array_equal(scale, reference.conv_general_dilated(abs(x), abs(w), **options))
    dy = np.random.default_rng(0).integers(-3, 4, y.shape).astype(float)
    of_oracle = reference.conv_gradients(x, w, dy, **options | {"batch_group_count": 1})
    for got, expected in zip(fused.gradients(layer, x, w, dy), of_oracle, strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("name", fused.TAILS)
def test_gradients_of_tails_by_differences(name):
    """(f(y + h) - f(y - h)) / 2h at every element, where there is no kink between."""
    tail, rng = fused.TAILS[name], np.random.default_rng(0)
    y = rng.permutation(2 * 4 * 4 * 3).reshape(2, 4, 4, 3).astype(float)
    bias = rng.integers(-90, 0, 3) + 0.5
    c = fused.weights(tail.exact(y, bias))
    objective = lambda y: sum((weight * output).sum() for weight, output in zip(c, tail.exact(y, bias), strict=True))
    expected, h = np.zeros_like(y), 2.0**-10
    for at in np.ndindex(y.shape):
        step = np.zeros_like(y)
        step[at] = h
        expected[at] = (objective(y + step) - objective(y - step)) / (2 * h)
    np.testing.assert_allclose(tail.pull(y, bias, *c), expected, rtol=1e-5, atol=1e-6)


def test_right_values_have_no_rounding():
    """At the largest size too: n times each is an integer, and the terms of a sum add up to less than 2^24."""
    layer, tail = fused.LAYERS[0], "mean and mean of squares over rows"
    case = Case(layer, max(fused.SIZES) // layer.side**2 + 1, tail, "gradients")
    for it in fused.expected(case):
        terms = it.value if it.name == "output 1" else it.scale  # squares are taken of sums
        np.testing.assert_array_equal(2**19 * it.value, np.rint(2**19 * it.value))
        assert it.integers
        assert 2**19 * terms.max() < 2**24


def test_every_part_meets_every_layer_tail_and_size():
    cases = fused.cases()
    parts, layers = len(fused.PARTS), len(fused.LAYERS)
    assert len({(case.layer._replace(side=0), case.part) for case in cases}) == parts * layers
    assert len({(case.tail, case.part) for case in cases}) == parts * len(fused.TAILS)
    assert len({(case.layer._replace(side=0), case.tail) for case in cases}) == len(cases)
    for side in fused.SIDES:
        of = [case for case in cases if case.layer.side == side]
        assert len({(case.examples, case.part) for case in of}) == parts * len(fused.SIZES)
    rows = [case.examples * case.layer.side**2 for case in cases]
    assert min(rows) > 2**15
    assert 2**18 < max(rows) < 2**18 + 56**2


@pytest.mark.parametrize("part", fused.PARTS)
@pytest.mark.parametrize("tail", ["mean and mean of squares over rows", "bias and ReLU", "max pooling"])
def test_a_wrong_convolution_is_found(monkeypatch, tail, part):
    """Off by one in one row of 1,024: by every part, in a line that says what and where."""

    def off_by_one(name):
        def convolution(x, w, **options):
            y = conv_implementation(name)(x, w, **options)
            return y.at[0, 5, 5].add(x[0, 5, 5].sum() * w.sum() + 1 if part != "value" else 1)

        return convolution

    case = Case(Layer(3, 4, side=16), 4, tail, part)
    assert fused.check(case, "xla") is None
    monkeypatch.setattr(fused, "conv_implementation", off_by_one)
    found = fused.check(case, "xla")
    assert found is not None
    assert found.wrong > 0
    assert found.text.startswith(f"xla, 3x3x3x4 of 4 images of 16x16, float32: {tail}, {part}: {found.wrong} of ")


@pytest.mark.parametrize("got", [np.nan, np.inf])
def test_numbers_that_are_none_are_found(got):
    exact = fused.Expected("output 0", np.ones(3), np.ones(3), False)
    case = Case(Layer(3, 4, side=16), 4, "loss", "value")
    found = fused.difference(case, "auto", exact, np.array([1, got, 1]), np.float32, True)
    assert (found.wrong, found.elements) == (1, 3)
    assert f"such as {got} for 1" in found.text


CHOSEN = [
    *(Case(fused.LAYERS[i], 15, "mean and mean of squares over rows", part) for i in (0, 1) for part in fused.PARTS),
    Case(fused.LAYERS[0], 57, "sum over rows", "value"),
    Case(fused.LAYERS[2], 57, "bias, ReLU and sum over rows", "value"),
    Case(fused.LAYERS[9], 2**17 + 1, "sum of squares over features", "value"),
    Case(fused.LAYERS[0], 15, "max pooling", "kernel gradient"),
    Case(fused.LAYERS[1], 15, "loss", "gradients"),
]
"""The part of `make equivalence`'s programs that `make test` and CI compare on every release."""


@pytest.mark.parametrize("case", CHOSEN, ids=lambda case: case.name)
def test_fused_programs_are_right(case):
    assert fused.check(case, "auto") is None


@pytest.mark.parametrize("name", [name for name in fused.PROBES if name not in fused.ENDING])
def test_known_miscompilations(name):
    assert fused.probe(name) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", fused.ENDING)
def test_known_crashes(name):
    assert fused.probe(name) is None


FUSED = f"{releases.YNN_FUSION}=individual_convolution,individual_dot,reduce"
THREADS = f"{releases.MULTI_THREAD_EIGEN}=true"
WRONG_WITHOUT_FLAGS = {
    "0.10.0": (FUSED, "convolution 5x5x1x6 and mean", "elements of output 0 are wrong, such as"),
    "0.10.1": (FUSED, "convolution 5x5x1x6 and mean", "elements of output 0 are wrong, such as"),
    "0.10.2": (FUSED, "jax#39103", "is 1065369600 for 1073741824"),
    "0.11.0": (FUSED, "jax#39257", "the process ended with signal 11"),
    "0.11.1": (THREADS, "openxla/xla#46347", "the process did not end within 30 s"),
    "0.11.2": (THREADS, "openxla/xla#46347", "the process did not end within 30 s"),
}
"""By release: flags that contradict what it needs, and which probe finds what then."""


def test_without_the_flags_a_release_that_needs_them_is_wrong():
    """Planted: the user's own flags contradict those that `import cnnjax` sets, which says so, and values are wrong."""
    version = str(releases.installed())
    release = releases.RELEASES.get(version, releases.Release())
    if not release.flags:
        pytest.skip(f"jaxlib {version} needs no flags")
    flags, name, expected = WRONG_WITHOUT_FLAGS[version]
    # Several times, since threads meet by chance.
    code = (
        "from cnnjax.doctor import fused\n"
        f"print(next(filter(None, (fused.probe({name!r}, timeout=30) for _ in range(5))), None))"
    )
    environ = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    ran = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    warning = f"jaxlib {version} {release.without} unless XLA_FLAGS has {' '.join(release.flags)}: yours has {flags}"
    assert ran.stderr.strip() == f"cnnjax: warning: {warning}"
    assert expected in ran.stdout


def test_a_probe_whose_process_fails_is_told(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert fused.probe("jax#39257") == "no message"
