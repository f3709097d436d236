"""Transposed convolution: by hand, against lax, PyTorch and the oracle, and as the adjoint of convolution."""

import inspect

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from cnnjax.ops import CONV_IMPLEMENTATIONS, InputError, conv_general_dilated, reference
from cnnjax.ops.transposed import as_dilated_convolution, conv_transpose

NHWC = ("NHWC", "HWIO", "NHWC")


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def normal(*shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed + sum(shape)).normal(size=shape).astype(dtype)


def close(actual, expected):
    assert actual.dtype == expected.dtype
    np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-10)


# --- By hand --------------------------------------------------------------------------------------------------------


def test_a_copy_of_the_kernel_for_each_input():
    """(a, b) = (1, 10) and the kernel (1, 2, 3), stride 2: the copies overlap in one element."""
    x, w = np.array([1.0, 10]).reshape(1, 2, 1), np.array([1.0, 2, 3]).reshape(3, 1, 1)
    forward = lambda *args, **kwargs: conv_transpose(x, w, *args, **kwargs)[0, :, 0]
    np.testing.assert_array_equal(forward((2,), "VALID", transpose_kernel=True), [1, 2, 3 + 10, 20, 30])
    np.testing.assert_array_equal(forward((2,), "VALID"), [3, 2, 1 + 30, 20, 10])  # the kernel as it is
    np.testing.assert_array_equal(forward((2,), "SAME", transpose_kernel=True), [1, 2, 13, 20])
    # Copies that do not touch; the last is followed by what no window of the convolution would read.
    np.testing.assert_array_equal(forward((4,), "VALID", transpose_kernel=True), [1, 2, 3, 0, 10, 20, 30, 0])
    np.testing.assert_array_equal(forward((4,), "SAME", transpose_kernel=True), [1, 2, 3, 0, 10, 20, 30, 0])
    # Dilation spreads the copies.
    np.testing.assert_array_equal(forward((1,), "VALID", (2,), transpose_kernel=True), [1, 10, 2, 20, 3, 30])
    # Pairs pad the dilated input; the same padding as that of the convolution, which crops.
    np.testing.assert_array_equal(forward((2,), [(1, 2)], transpose_kernel=True), [2, 13, 20, 30])
    consistent = forward((2,), [(1, 0)], transpose_kernel=True, use_consistent_padding=True)
    np.testing.assert_array_equal(consistent, [2, 13, 20, 30])


def test_groups_by_hand():
    """Two groups of one channel, each with two features of one tap."""
    x = np.array([[1.0, 10]]).reshape(1, 1, 2)
    w = np.arange(1.0, 5).reshape(1, 1, 4)  # features of the first group, then of the second
    np.testing.assert_array_equal(
        conv_transpose(x, w, (1,), "VALID", feature_group_count=2), np.array([[[1, 2, 30, 40]]])
    )
    # The kernel of a convolution of four channels in two groups, with one feature each: [tap, channel, feature].
    w = np.array([[1.0, 3], [2, 4]]).reshape(1, 2, 2)
    np.testing.assert_array_equal(
        conv_transpose(x, w, (1,), "VALID", transpose_kernel=True, feature_group_count=2), np.array([[[1, 2, 30, 40]]])
    )


# --- Against lax ----------------------------------------------------------------------------------------------------


def test_signature_is_that_of_lax():
    lax_parameters = list(inspect.signature(lax.conv_transpose).parameters.values())
    parameters = list(inspect.signature(conv_transpose).parameters.values())
    assert [(p.name, p.default) for p in parameters[: len(lax_parameters)]] == [
        (p.name, p.default) for p in lax_parameters
    ]
    assert {p.kind for p in parameters[len(lax_parameters) :]} == {inspect.Parameter.KEYWORD_ONLY}


def test_sizes_and_alignment_of_every_small_case():
    """Padding by name for every size of kernel, stride and dilation; what is padded is all that depends on them."""
    x = np.zeros((1, 3, 1))
    for k in range(1, 7):
        w = np.zeros((k, 1, 1))
        for s in range(1, 6):
            for d in range(1, 4):
                for padding in ("SAME", "VALID"):
                    _, arguments = as_dilated_convolution(x, w, (s,), padding, (d,))
                    jaxpr = jax.make_jaxpr(lambda x, w, *a: lax.conv_transpose(x, w, *a), static_argnums=(2, 3, 4))(
                        x, w, (s,), padding, (d,)
                    )
                    (conv,) = [e for e in jaxpr.eqns if e.primitive is lax.conv_general_dilated_p]
                    for name in ("padding", "lhs_dilation", "rhs_dilation", "window_strides", "dimension_numbers"):
                        assert arguments[name] == conv.params[name], (k, s, d, padding, name)


# (input, kernel, strides, padding, options)
CASES = {
    "1-D": ((2, 5, 3), (4, 3, 2), (2,), "SAME", {}),
    "1-D valid": ((2, 5, 3), (2, 3, 2), (3,), "VALID", {}),
    "2-D": ((2, 4, 3, 3), (3, 3, 3, 4), (2, 2), "SAME", {}),
    "2-D valid": ((2, 4, 3, 3), (3, 2, 3, 4), (2, 3), "VALID", {}),
    "pairs": ((1, 4, 3, 2), (3, 4, 2, 3), (2, 1), ((2, 1), (0, 3)), {}),
    "lists": ((1, 4, 3, 2), (3, 4, 2, 3), [2, 1], [(2, 1), (0, 3)], {"rhs_dilation": [1, 2]}),
    "dilation": ((1, 4, 3, 2), (3, 2, 2, 3), (2, 3), "SAME", {"rhs_dilation": (2, 3)}),
    "transposed": ((2, 4, 3, 3), (4, 3, 5, 3), (2, 2), "SAME", {"transpose_kernel": True}),
    "consistent": (
        (2, 4, 3, 3),
        (4, 3, 5, 3),
        (2, 2),
        ((1, 0), (2, 1)),
        {"transpose_kernel": True, "use_consistent_padding": True},
    ),
    "channels first": (
        (2, 3, 4, 3),
        (3, 5, 4, 3),
        (2, 1),
        "VALID",
        {"dimension_numbers": ("NCHW", "OIHW", "NCHW"), "transpose_kernel": True},
    ),
    "layouts": (
        (4, 2, 3, 3),
        (3, 2, 3, 4),
        (2, 1),
        "SAME",
        {"dimension_numbers": ("HCNW", "WOHI", "CWHN"), "transpose_kernel": True, "rhs_dilation": (1, 2)},
    ),
    "numbers": (
        (2, 3, 4, 5),
        (5, 3, 2, 3),
        (2, 1),
        "SAME",
        {"dimension_numbers": lax.ConvDimensionNumbers((0, 1, 3, 2), (0, 1, 2, 3), (1, 0, 2, 3))},
    ),
    "3-D": ((1, 2, 3, 2, 2), (3, 2, 3, 2, 3), (2, 1, 2), "SAME", {}),
    "no axes": ((2, 3), (3, 4), (), "VALID", {}),
    "no batch": ((0, 4, 2), (3, 2, 3), (2,), "SAME", {}),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_against_lax(name):
    lhs, rhs, strides, padding, options = CASES[name]
    x, w = normal(*lhs), normal(*rhs, seed=1)

    def both(function):
        def value_and_gradients(x, w):
            f = lambda x, w: function(x, w, strides, padding, **options)
            y, pull = jax.vjp(f, x, w)
            return y, *pull(jnp.cos(y))

        return jax.jit(value_and_gradients)(x, w)

    for ours, theirs in zip(both(conv_transpose), both(lax.conv_transpose), strict=True):
        close(ours, theirs)


def can(implementation, *args, **kwargs) -> bool:
    """Whether there is such a convolution by `implementation`."""
    try:
        jax.eval_shape(lambda: conv_general_dilated(*args, **kwargs, implementation=implementation))
    except InputError:
        return False
    return True


@pytest.mark.parametrize("implementation", CONV_IMPLEMENTATIONS)
def test_every_implementation(implementation):
    """It is the convolution of that name, which does it or says that it cannot; groups against the oracle."""
    x, w = normal(2, 4, 3, 4), normal(3, 3, 2, 6, seed=1)
    for strides in ((1, 1), (2, 2)):
        kernel, arguments = as_dilated_convolution(x, w, strides, "SAME", feature_group_count=2)
        run = jax.jit(
            lambda s=strides: conv_transpose(x, w, s, "SAME", feature_group_count=2, implementation=implementation)
        )
        if can(implementation, x, kernel, **arguments):
            expected = reference.conv_general_dilated(x, kernel, **arguments)
            np.testing.assert_allclose(run(), expected, rtol=1e-9, atol=1e-9)
        else:
            assert implementation not in ("auto", "xla", "reference")
            with pytest.raises(InputError, match=implementation):
                run()


def test_the_implementation_is_the_one_that_was_asked_for():
    x, w = normal(1, 4, 3, 2), normal(3, 3, 2, 2)
    text = lambda name: str(jax.make_jaxpr(lambda x: conv_transpose(x, w, (2, 2), "SAME", implementation=name))(x))
    assert "conv_general_dilated" in text("xla")
    assert "conv_general_dilated" not in text("reference")


@pytest.mark.usefixtures("promoting")
def test_dtypes():
    x, w = normal(1, 3, 2), normal(3, 2, 2)
    half = lambda a: jnp.asarray(a, jnp.bfloat16)
    y = conv_transpose(half(x), half(w), (2,), "SAME")
    wide = conv_transpose(half(x), half(w), (2,), "SAME", preferred_element_type=jnp.float32)
    assert (y.dtype, wide.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_array_equal(y, wide.astype(jnp.bfloat16))
    z = conv_transpose(x * 1j, w + 0j, (2,), "SAME", transpose_kernel=True)
    close(z, 1j * conv_transpose(x, w, (2,), "SAME", transpose_kernel=True))  # transposed, not conjugated


# --- Against PyTorch ------------------------------------------------------------------------------------------------

TORCH = {
    "1-D": (1, 4, 3, {"stride": 2, "padding": 1, "output_padding": 1}),
    "2-D": (2, 3, 3, {"stride": 2, "padding": 1, "output_padding": 1, "groups": 2}),
    "dilated": (2, 3, 2, {"stride": 3, "padding": 2, "output_padding": 2, "dilation": 2}),
    "plain": (2, 3, 4, {}),
    "3-D": (3, 2, 2, {"stride": 2, "padding": 1, "groups": 2}),
}


@pytest.mark.parametrize("name", TORCH)
def test_against_pytorch(name):
    """Both ways to say it that the docstring gives, for the same arrays."""
    torch = pytest.importorskip("torch")
    axes, size, k, options = TORCH[name]
    s, p, o, g, d = (
        options.get(n, i)
        for n, i in [("stride", 1), ("padding", 0), ("output_padding", 0), ("groups", 1), ("dilation", 1)]
    )
    x, w = normal(2, 4, *[size + i for i in range(axes)]), normal(4, 3, *[k] * axes)  # w: [in, out / groups, *tap]
    function = getattr(torch.nn.functional, f"conv_transpose{axes}d")
    expected = function(torch.from_numpy(x), torch.from_numpy(w), **options).numpy()
    layout = ("NC" + "DHW"[:axes], "OI" + "DHW"[:axes], "NC" + "DHW"[:axes])
    shared = {"dimension_numbers": layout, "transpose_kernel": True, "feature_group_count": g}
    span = (k - 1) * d + 1
    run = jax.jit(conv_transpose, static_argnums=(2, 3, 4), static_argnames=(*shared, "use_consistent_padding"))
    cropped, padded = ((p, p - o),) * axes, ((span - 1 - p, span - 1 - p + o),) * axes
    close(run(x, w, (s,) * axes, cropped, (d,) * axes, use_consistent_padding=True, **shared), expected)
    close(run(x, w, (s,) * axes, padded, (d,) * axes, **shared), expected)


# --- The adjoint ----------------------------------------------------------------------------------------------------


@hypothesis.settings(max_examples=25, derandomize=True, deadline=None, database=None)
@hypothesis.given(st.data())
def test_is_the_adjoint_of_convolution(data):
    """<conv(x), y> = <x, conv_transpose(y)>: for any stride, padding, dilation and groups, by the oracle."""
    draw = lambda low, high: data.draw(st.integers(low, high))
    k, s, d, groups, windows = draw(1, 4), draw(1, 4), draw(1, 2), draw(1, 2), draw(1, 4)
    # As many elements as the windows cover without remainder, less the padding.
    covered = (windows - 1) * s + (k - 1) * d + 1
    low = draw(0, min(3, covered - 1))
    high = draw(0, min(3, covered - 1 - low))
    x, w = normal(2, covered - low - high, 2 * groups), normal(k, 2, 3 * groups, seed=1)
    nhc = ("NHC", "HIO", "NHC")
    y = reference.conv_general_dilated(
        x, w, (s,), [(low, high)], rhs_dilation=(d,), dimension_numbers=nhc, feature_group_count=groups
    )
    assert y.shape[1] == windows
    u = normal(*y.shape, seed=2)
    kernel, arguments = as_dilated_convolution(
        u,
        w,
        (s,),
        [(low, high)],
        (d,),
        transpose_kernel=True,
        use_consistent_padding=True,
        feature_group_count=groups,
    )
    back = reference.conv_general_dilated(u, kernel, **arguments)
    assert back.shape == x.shape
    np.testing.assert_allclose(np.vdot(y, u), np.vdot(x, back), rtol=1e-10)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(("k", "s"), [(3, 2), (4, 2), (2, 3), (3, 1)])
def test_names_are_the_padding_of_the_convolution(padding, k, s):
    """The gradient of a convolution with "SAME" or "VALID" on an input of the transposed one's output size."""
    w, u = normal(k, k, 2, 3), normal(1, 3, 3, 3)
    back = jax.jit(lambda u: conv_transpose(u, w, (s, s), padding, transpose_kernel=True))(u)
    size = 3 * s if padding == "SAME" else 2 * s + max(k, s)
    assert back.shape == (1, size, size, 2)
    conv = lambda x: lax.conv_general_dilated(x, w, (s, s), padding, dimension_numbers=NHWC)
    (expected,) = jax.jit(jax.linear_transpose(conv, jax.ShapeDtypeStruct(back.shape, back.dtype)))(u)
    close(back, expected)


# --- Bad input ------------------------------------------------------------------------------------------------------

X, W = np.zeros((1, 4, 4, 3)), np.zeros((3, 3, 3, 2))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((X, W[0], (1, 1), "SAME"), {}, "lhs and rhs must have the same rank.*got shapes .1, 4, 4, 3. and .3, 3, 2."),
        ((X, W, (2,), "SAME"), {}, "strides must be a positive integer for each axis, 2 in all: got .2,."),
        ((X, W, (2, 0), "SAME"), {}, "strides must be .*: got .2, 0."),
        ((X, W, (2, 2), "SAME"), {"rhs_dilation": 2}, "rhs_dilation must be .*: got 2"),
        ((X, W, (2, 2), "same"), {}, "unknown padding 'same': did you mean 'SAME'. allowed: SAME, VALID"),
        ((X, W, (2, 2), "SAMEE"), {}, "unknown padding 'SAMEE': .*SAME, VALID"),
        ((X, W, (2, 2), [(1, 1)]), {}, "padding must be 'SAME', 'VALID' or a .low, high. pair.*2 axes: got ..1, 1.."),
        ((X, W, (2, 2), 1), {}, "padding must be .*: got 1"),
        ((X, W, (2, 2), [(-9, 0), (0, 0)]), {}, "padding must not crop more than there is"),
        ((X, W, (2, 2), "SAME"), {"dimension_numbers": ("NHWC", "HWIO")}, "dimension_numbers must be None"),
        ((X, W, (2, 2), "SAME"), {"feature_group_count": 2}, "feature_group_count must divide the 3 channels of lhs"),
        ((X, W[:, :, :2], (2, 2), "SAME"), {}, "rhs must have as many input channels as lhs has per group: got 2"),
        (
            (X, W, (2, 2), "SAME"),
            {"transpose_kernel": True},
            "as many output features as lhs has channels.*2, allowed: 3",
        ),
        (
            (X, np.zeros((3, 3, 2, 3)), (2, 2), "SAME"),
            {"transpose_kernel": True, "feature_group_count": 2},
            "feature_group_count must be a positive integer that divides the 3 output features of rhs: got 2",
        ),
        ((X, W[:0], (2, 2), "SAME"), {}, "rhs must have at least one tap along each spatial axis"),
        ((X, W, (2, 2), "SAME"), {"implementation": "xlaa"}, "unknown convolution implementation 'xlaa'.*'xla'"),
    ],
)
def test_bad_input(arguments, options, message):
    with pytest.raises(InputError, match=message) as caught:
        conv_transpose(*arguments, **options)
    assert "\n" not in str(caught.value)


def test_bad_dtypes():
    with pytest.raises(TypeError, match="lhs must hold real or complex floating-point numbers: got int"):
        conv_transpose(X.astype(int), W, (1, 1), "SAME")
    with pytest.raises(TypeError, match="lhs and rhs must have one dtype"):
        conv_transpose(X, W.astype(np.float32), (1, 1), "SAME")
