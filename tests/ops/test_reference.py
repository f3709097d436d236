"""The NumPy oracle against numbers worked out by hand and against its definition, term by term."""

import inspect
import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from cnnjax.ops import reference


def row(*numbers):
    return np.array(numbers, np.float64).reshape(1, 1, -1)


X = row(1, 2, 3, 4)
W = row(1, 10)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"padding": "VALID"}, [21, 32, 43]),  # 1*1 + 10*2, ...
        ({"padding": "SAME"}, [21, 32, 43, 4]),  # the odd zero at the end
        ({"padding": "SAME_LOWER"}, [10, 21, 32, 43]),  # and at the start
        ({"padding": "same_lower"}, [10, 21, 32, 43]),
        ({"padding": [(2, 0)]}, [0, 10, 21, 32, 43]),
        ({"padding": [(-1, 0)]}, [32, 43]),
        ({"padding": [(-1, 2)]}, [32, 43, 4, 0]),
        ({"padding": [(-6, 4)]}, [0]),  # cropped past the end, then padded: two zeros are left
        ({"padding": "VALID", "strides": 2}, [21, 43]),
        ({"padding": "SAME", "strides": 3}, [21, 4]),
        ({"padding": "VALID", "rhs_dilation": [2]}, [31, 42]),
        ({"padding": [(0, 0)], "lhs_dilation": [2]}, [1, 20, 2, 30, 3, 40]),  # 1 0 2 0 3 0 4
        ({"padding": [(-1, -1)], "lhs_dilation": [2], "strides": 2}, [20, 30]),  # 0 2 0 3 0
        ({"padding": "VALID", "rhs_dilation": [4]}, []),
    ],
)
def test_worked_by_hand(options, expected):
    options = dict(options)
    y = reference.conv_general_dilated(X, W, (options.pop("strides", 1),), **options)
    np.testing.assert_array_equal(y, row(*expected).reshape(1, 1, -1))


def test_channels_and_features_by_hand():
    x = np.array([[[1.0, 2.0], [3.0, 4.0]]])  # one image of two channels
    w = np.array([[[1.0], [10.0]], [[0.0], [1.0]], [[5.0], [0.0]]])  # three features
    y = reference.conv_general_dilated(x, w, (1,), "VALID")
    np.testing.assert_array_equal(y, [[[31, 42], [3, 4], [5, 10]]])


def test_groups_by_hand():
    x = np.array([[[1.0], [2.0], [3.0], [4.0]]])
    w = np.array([[[1.0], [1.0]], [[1.0], [-1.0]]])
    y = reference.conv_general_dilated(x, w, (1,), "VALID", feature_group_count=2)
    np.testing.assert_array_equal(y, [[[1 + 2], [3 - 4]]])
    # The batch in two runs, (1, 2) and (3, 4): the first meets feature 0, the second feature 1.
    y = reference.conv_general_dilated(
        x.reshape(4, 1, 1), w[:, :1] * [[[1]], [[10]]], (1,), "VALID", batch_group_count=2
    )
    np.testing.assert_array_equal(y, [[[1], [30]], [[2], [40]]])


@pytest.mark.parametrize("layouts", [("NHWC", "HWIO", "NHWC"), ("HNCW", "IWOH", "WCNH"), ["NCWH", "OIHW", "NCHW"]])
def test_layouts_are_transpositions(layouts):
    """The same numbers in other axes; strides and padding go by the order of letters in the kernel's layout."""
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(2, 3, 5, 6)), rng.normal(size=(4, 3, 2, 3))  # NCHW, OIHW
    at = {"N": 0, "C": 1, "O": 0, "I": 1, "H": 2, "W": 3}
    place = lambda a, layout: a.transpose([at[letter] for letter in layout])
    space = [letter for letter in layouts[1] if letter in "HW"]
    options = {"H": (2, (0, 1)), "W": (1, (2, 0))}
    expected = reference.conv_general_dilated(x, w, *zip(*(options[s] for s in "HW"), strict=True))
    strides, padding = zip(*(options[s] for s in space), strict=True)
    given = place(x, layouts[0]), place(w, layouts[1])
    y = reference.conv_general_dilated(*given, strides, padding, dimension_numbers=layouts)
    np.testing.assert_allclose(y, place(expected, layouts[2]), rtol=1e-12)
    numbers = lax.conv_dimension_numbers(*(a.shape for a in given), layouts)
    y = reference.conv_general_dilated(*given, strides, padding, dimension_numbers=numbers)
    np.testing.assert_allclose(y, place(expected, layouts[2]), rtol=1e-12)


def test_term_by_term():
    """Every term of the sum, one at a time, in scalars: nothing of NumPy's array machinery."""
    rng = np.random.default_rng(1)
    x, w = rng.normal(size=(2, 4, 5, 6)), rng.normal(size=(6, 2, 3, 2))
    strides, padding, lhs_dilation, rhs_dilation = (2, 3), ((1, -1), (2, 3)), (2, 1), (1, 2)
    y = reference.conv_general_dilated(x, w, strides, padding, lhs_dilation, rhs_dilation, feature_group_count=2)

    def at(n, c, h, v):  # the dilated and padded input, without ever making it
        h, v = h - padding[0][0], v - padding[1][0]
        if h % lhs_dilation[0] or v % lhs_dilation[1]:
            return 0.0
        h, v = h // lhs_dilation[0], v // lhs_dilation[1]
        return x[n, c, h, v] if 0 <= h < 5 and 0 <= v < 6 else 0.0

    assert y.shape == (2, 6, 4, 3)  # (9 + 0 - 3)/2 + 1, (6 + 5 - 3)/3 + 1
    for n, f, p, q in itertools.product(*map(range, y.shape)):
        group = f // 3
        expected = sum(
            at(n, 2 * group + c, p * 2 + i, q * 3 + 2 * j) * w[f, c, i, j]
            for c, i, j in itertools.product(range(2), range(3), range(2))
        )
        assert y[n, f, p, q] == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_any_rank():
    rng = np.random.default_rng(2)
    x, w = rng.normal(size=(2, 3)), rng.normal(size=(4, 3))
    np.testing.assert_allclose(reference.conv_general_dilated(x, w, (), ()), x @ w.T, rtol=1e-12)
    x, w = rng.normal(size=(1, 1, 2, 3, 2, 3)), rng.normal(size=(1, 1, 2, 3, 2, 3))
    y = reference.conv_general_dilated(x, w, (1,) * 4, "VALID")
    np.testing.assert_allclose(y, (x * w).sum().reshape(1, 1, 1, 1, 1, 1), rtol=1e-12)


def test_dtypes():
    for dtype in (np.float64, np.float32, np.float16, jnp.bfloat16, np.complex64, np.complex128):
        y = reference.conv_general_dilated(X.astype(dtype), W.astype(dtype), (1,), "VALID")
        assert y.dtype == dtype
        np.testing.assert_array_equal(y.astype(np.complex128), row(21, 32, 43))
    y = reference.conv_general_dilated(
        X.astype(jnp.bfloat16), W.astype(jnp.bfloat16), (1,), "VALID", preferred_element_type=np.float32
    )
    assert y.dtype == np.float32


def test_half_precision_is_summed_wide():
    """4,096 ones: summed in bfloat16 they would stop at 256, in float16 at 2,048."""
    for dtype in (jnp.bfloat16, np.float16):
        ones = np.ones((1, 1, 4096), dtype)
        assert float(reference.conv_general_dilated(ones, ones, (1,), "VALID").item()) == 4096


def test_signature_is_that_of_lax():
    ours, theirs = (inspect.signature(f).parameters for f in (reference.conv_general_dilated, lax.conv_general_dilated))
    assert [(p.name, p.kind, p.default) for p in ours.values()] == [
        (p.name, p.kind, p.default) for p in theirs.values()
    ]


IMAGE = np.array([[1, 5, 2], [7, 3, 0], [4, 4, 8]], np.float64)[None, :, :, None]


@pytest.mark.parametrize(
    ("arguments", "maxima", "means"),
    [
        (((2, 2),), [[7, 5], [7, 8]], [[4, 2.5], [4.5, 3.75]]),
        (((2, 2), (2, 2)), [[7]], [[4]]),
        (((1, 3),), [[5], [7], [8]], [[8 / 3], [10 / 3], [16 / 3]]),
        (((2, 2), (2, 2), "SAME"), [[7, 2], [4, 8]], [[4, 0.5], [2, 2]]),
        (((2, 2), (2, 2), "SAME_LOWER"), [[1, 5], [7, 8]], [[0.25, 1.75], [2.75, 3.75]]),
        (((2, 2), (1, 1), ((-1, 0), (0, -1))), [[7]], [[4.5]]),
    ],
)
def test_pooling_by_hand(arguments, maxima, means):
    np.testing.assert_array_equal(reference.max_pool(IMAGE, *arguments)[0, :, :, 0], maxima)
    np.testing.assert_allclose(reference.avg_pool(IMAGE, *arguments)[0, :, :, 0], means, rtol=1e-15)


def test_average_without_padding_by_hand():
    means = reference.avg_pool(IMAGE, (2, 2), (2, 2), "SAME", count_include_pad=False)
    np.testing.assert_array_equal(means[0, :, :, 0], [[4, 1], [4, 8]])
    only_padding = reference.avg_pool(IMAGE, (1, 1), (3, 3), ((1, 0), (1, 0)), count_include_pad=False)
    assert np.isnan(only_padding[0, 0, 0, 0])


def test_pooling_keeps_other_axes_and_dtypes():
    x = np.arange(2 * 3 * 4 * 4 * 2).reshape(2, 3, 4, 4, 2)
    y = reference.max_pool(x, (2, 2), (2, 2))
    assert y.shape == (2, 3, 2, 2, 2)
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(y, x[:, :, 1::2, 1::2])  # it grows along every axis
    np.testing.assert_array_equal(reference.max_pool(x[0, 0], (2, 2), (2, 2)), y[0, 0])
    assert (reference.max_pool(-x - 1, (2, 2), padding=((1, 1), (1, 1))) < 0).all()  # padding never wins
    assert reference.avg_pool(x.astype(np.float32), (2, 2)).dtype == np.float32
