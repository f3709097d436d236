"""Classical filters against scipy.ndimage, the lectures' numbers, and their properties."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from jax.test_util import check_grads
from lecture_images import A_SHARPENED, B_PLUS, A, B

from cnnjax.ops import InputError, conv_general_dilated, filters
from cnnjax.ops.filters import KERNELS, MODES

ODD, EVEN = np.arange(15.0).reshape(3, 5) ** 2, np.arange(8.0).reshape(2, 4) ** 2

# Ours and scipy's, which sees one image [height, width] at a time.
PAIRS = {
    "box 3": (lambda x, m: filters.box(x, 3, m), lambda x, m: scipy.ndimage.uniform_filter(x, 3, mode=m)),
    "box (2, 5)": (
        lambda x, m: filters.box(x, (2, 5), m),
        lambda x, m: scipy.ndimage.uniform_filter(x, (2, 5), mode=m),
    ),
    "gaussian 0.7": (
        lambda x, m: filters.gaussian(x, 0.7, mode=m),
        lambda x, m: scipy.ndimage.gaussian_filter(x, 0.7, mode=m),
    ),
    # Wider than the image: what is beyond the border repeats.
    "gaussian (2.5, 0)": (
        lambda x, m: filters.gaussian(x, (2.5, 0), 3.0, m),
        lambda x, m: scipy.ndimage.gaussian_filter(x, (2.5, 0), mode=m, truncate=3.0),
    ),
    "sobel": (
        lambda x, m: jnp.stack(filters.sobel(x, m)),
        lambda x, m: np.stack([scipy.ndimage.sobel(x, axis, mode=m) for axis in (0, 1)]),
    ),
    "prewitt": (
        lambda x, m: jnp.stack(filters.prewitt(x, m)),
        lambda x, m: np.stack([scipy.ndimage.prewitt(x, axis, mode=m) for axis in (0, 1)]),
    ),
    "laplacian": (filters.laplacian, lambda x, m: scipy.ndimage.laplace(x, mode=m)),
    "sharpen": (lambda x, m: filters.sharpen(x, 0.3, m), lambda x, m: x - 0.3 * scipy.ndimage.laplace(x, mode=m)),
    "emboss": (filters.emboss, lambda x, m: scipy.ndimage.correlate(x, KERNELS["emboss"], mode=m)),
    "median 3": (lambda x, m: filters.median(x, 3, m), lambda x, m: scipy.ndimage.median_filter(x, 3, mode=m)),
    "median (2, 4)": (
        lambda x, m: filters.median(x, (2, 4), m),
        lambda x, m: scipy.ndimage.median_filter(x, (2, 4), mode=m),
    ),
    "correlate": (lambda x, m: filters.correlate(x, ODD, m), lambda x, m: scipy.ndimage.correlate(x, ODD, mode=m)),
    "correlate, even": (
        lambda x, m: filters.correlate(x, EVEN, m),
        lambda x, m: scipy.ndimage.correlate(x, EVEN, mode=m),
    ),
    "convolve": (lambda x, m: filters.convolve(x, ODD, m), lambda x, m: scipy.ndimage.convolve(x, ODD, mode=m)),
    "convolve, even": (
        lambda x, m: filters.convolve(x, EVEN, m),
        lambda x, m: scipy.ndimage.convolve(x, EVEN, mode=m),
    ),
}


@pytest.mark.parametrize("mode", MODES)
def test_as_scipy(mode):
    """Every filter, in float64, image by image and channel by channel."""
    x = np.random.default_rng(0).normal(size=(2, 5, 6, 3))
    with jax.enable_x64(True):
        ours = jax.jit(lambda x: {name: ours(x, mode) for name, (ours, _) in PAIRS.items()})(x)
    for name, (_, theirs) in PAIRS.items():
        one = lambda b, c, theirs=theirs: theirs(x[b, :, :, c], mode)
        expected = np.stack([np.stack([one(b, c) for c in range(3)], axis=-1) for b in range(2)], axis=-4)
        assert ours[name].dtype == np.float64
        np.testing.assert_allclose(ours[name], expected, rtol=1e-11, atol=1e-11, err_msg=name)


def test_one_pixel():
    """Beyond the border of an image of one pixel there is that pixel, or zero."""
    x = jnp.full((1, 1, 1), 7.0)
    run = jax.jit(lambda: [[filters.box(x, 5, mode), filters.median(x, 3, mode)] for mode in MODES])
    for mode, results in zip(MODES, run(), strict=True):
        expected = [7 / 25, 0] if mode == "constant" else [7, 7]
        np.testing.assert_allclose(np.ravel(results), expected, rtol=1e-6, err_msg=mode)


# --- The lectures ---------------------------------------------------------------------------------------------------


def test_the_lectures_numbers():
    """Images A and B, with zeros around them: sharpened, edges, plus-shaped mean, gradient, and the median."""
    image = lambda numbers: numbers[..., None].astype(np.float32)

    @jax.jit
    def run():
        return (
            filters.sharpen(image(A), 1.0, "constant"),
            filters.correlate(image(A), KERNELS["sharpen"], "constant"),
            filters.correlate(image(B), KERNELS["plus"], "constant"),
            filters.correlate(image(A), KERNELS["edges"], "constant"),
            filters.box(image(A), 3, "constant"),
            filters.median(image(A), 3),
        )

    sharp, correlated, plus, edges, box, median = (np.asarray(y)[..., 0] for y in run())
    np.testing.assert_array_equal(sharp, A_SHARPENED)
    np.testing.assert_array_equal(correlated, A_SHARPENED)
    np.testing.assert_allclose(plus, B_PLUS, rtol=1e-5)
    np.testing.assert_allclose(edges, 9 * A - 9 * box, rtol=1e-4)  # each pixel against its window
    windows = np.lib.stride_tricks.sliding_window_view(A, (3, 3))
    np.testing.assert_array_equal(median[1:-1, 1:-1], np.median(windows, axis=(2, 3)))
    # Outermost, the border pixels are repeated once.
    assert median[0, 0] == np.median([105, 105, 102, 105, 105, 102, 103, 103, 99])


def test_the_lectures_gradient_kernels_mean_true_convolution():
    """[[1, 0, -1]] * 3 and its transpose, convolved, are the gradient by Prewitt: positive where it gets brighter."""
    x = np.random.default_rng(0).normal(size=(6, 5, 2)).astype(np.float32)
    gradient_x = np.array([[1, 0, -1]] * 3)
    gradient_y = np.array([[1, 1, 1], [0, 0, 0], [-1, -1, -1]])
    run = jax.jit(lambda: (filters.prewitt(x), [filters.convolve(x, g) for g in (gradient_y, gradient_x)]))
    for ours, convolved in zip(*run(), strict=True):
        np.testing.assert_allclose(ours, convolved, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(KERNELS["prewitt_x"], gradient_x[::-1, ::-1])
    np.testing.assert_array_equal(KERNELS["prewitt_y"], gradient_y[::-1, ::-1])


# --- Kernels --------------------------------------------------------------------------------------------------------


def test_kernels_are_what_the_filters_do():
    """Each filter is the correlation with its kernel; a unit impulse shows the kernel flipped, or not if convolved."""
    x = np.random.default_rng(0).normal(size=(2, 7, 6, 2))
    unit = np.zeros((7, 7, 1))
    unit[3, 3] = 1
    with jax.enable_x64(True):

        @jax.jit
        def run():
            results = {
                "box": filters.box(x),
                "sharpen": filters.sharpen(x),
                "laplacian": filters.laplacian(x),
                "emboss": filters.emboss(x),
                **dict(zip(("sobel_y", "sobel_x"), filters.sobel(x), strict=True)),
                **dict(zip(("prewitt_y", "prewitt_x"), filters.prewitt(x), strict=True)),
                "identity": x,
            }
            by_kernel = {name: filters.correlate(x, KERNELS[name]) for name in results}
            impulses = {
                name: (filters.correlate(unit, k, "constant"), filters.convolve(unit, k, "constant"))
                for name, k in KERNELS.items()
            }
            sizes = (filters.correlate(x, filters.box_kernel((2, 5))), filters.box(x, (2, 5)))
            sigmas = (filters.correlate(x, filters.gaussian_kernel((0.6, 1), 2)), filters.gaussian(x, (0.6, 1), 2))
            return results, by_kernel, impulses, sizes, sigmas

        results, by_kernel, impulses, *others = run()
    for name, y in results.items():
        np.testing.assert_allclose(y, by_kernel[name], rtol=1e-12, atol=1e-12, err_msg=name)
    for name, (correlated, convolved) in impulses.items():
        np.testing.assert_array_equal(convolved[2:5, 2:5, 0], KERNELS[name], err_msg=name)
        np.testing.assert_array_equal(correlated[2:5, 2:5, 0], KERNELS[name][::-1, ::-1], err_msg=name)
    for by_the_kernel, separable in others:
        np.testing.assert_allclose(by_the_kernel, separable, rtol=1e-12, atol=1e-12)


def test_kernels_in_a_convolution():
    """As a person would put them into a layer: HWIO, one feature for each."""
    x = np.random.default_rng(0).normal(size=(1, 6, 6, 1)).astype(np.float32)
    layer = np.stack([KERNELS["sobel_y"], KERNELS["sobel_x"]], axis=-1)[:, :, None, :]
    y = conv_general_dilated(x, layer.astype(np.float32), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    expected = filters.sobel(x, "constant")
    np.testing.assert_allclose(y, np.concatenate(expected, axis=-1), rtol=1e-5, atol=1e-5)


def test_sums_of_kernels():
    """Those that keep flat areas sum to 1, those that look for changes to 0."""
    sums = {name: round(float(kernel.sum()), 12) for name, kernel in KERNELS.items()}
    changes = {"edges", "laplacian", "sobel_x", "sobel_y", "prewitt_x", "prewitt_y"}
    assert sums == {name: 0 if name in changes else 1 for name in KERNELS}
    assert {kernel.shape for kernel in KERNELS.values()} == {(3, 3)}
    np.testing.assert_array_equal(KERNELS["emboss"], KERNELS["identity"] + KERNELS["prewitt_x"] + KERNELS["prewitt_y"])
    np.testing.assert_array_equal(KERNELS["sharpen"], KERNELS["identity"] - KERNELS["laplacian"])
    assert filters.gaussian_kernel(1.5, 2).shape == (7, 7)
    assert filters.gaussian_kernel((0, 2)).shape == (1, 17)
    assert filters.gaussian_kernel(1.5).sum() == pytest.approx(1)
    with pytest.raises(ValueError, match="read-only"):
        KERNELS["box"][0, 0] = 1


# --- Properties -----------------------------------------------------------------------------------------------------


def test_gradients_of_a_ramp():
    """8 and 6 times the slope, upward slopes positive; the Laplacian of a ramp is zero."""
    i, j = np.mgrid[:6, :7].astype(np.float32)
    ramp = (3 * i - 4 * j)[..., None]
    sobel, prewitt, laplacian, strength = jax.jit(
        lambda x: (filters.sobel(x), filters.prewitt(x), filters.laplacian(x), filters.magnitude(*filters.sobel(x)))
    )(ramp)
    inner = (slice(1, -1), slice(1, -1))
    for (vertical, horizontal), gain in ((sobel, 8), (prewitt, 6)):
        np.testing.assert_allclose(vertical[inner], 3 * gain, rtol=1e-5)
        np.testing.assert_allclose(horizontal[inner], -4 * gain, rtol=1e-5)
    np.testing.assert_allclose(strength[inner], 5 * 8, rtol=1e-5)
    np.testing.assert_allclose(laplacian[inner], 0, atol=1e-5)


def test_the_median_drops_a_speck_and_keeps_an_edge():
    step = np.repeat([[0.0, 0, 0, 1, 1, 1]], 6, axis=0)[..., None]
    speck = step.copy()
    speck[2, 1] = 100
    median, box = jax.jit(lambda x: (filters.median(x), filters.box(x)))(speck)
    np.testing.assert_array_equal(median, step)
    assert (np.asarray(box) != step).sum() > 12


def test_any_leading_axes():
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 4, 2)).astype(np.float32)
    for f in (filters.sobel, filters.median, functools.partial(filters.gaussian, sigma=1)):
        many, one, mapped = jax.jit(lambda x, f=f: (f(x), f(x[1, 2]), jax.vmap(f, in_axes=1)(x)))(x)
        index = lambda y, *at: jax.tree.map(lambda a: a[at], y)
        jax.tree.map(np.testing.assert_array_equal, index(many, 1, 2), one)
        jax.tree.map(np.testing.assert_array_equal, index(mapped, 2, 1), one)
    assert filters.box(x[:0]).shape == (0, 3, 5, 4, 2)


def test_derivatives():
    """First and second, in both modes, with respect to the image, the kernel and the amount."""
    rng = np.random.default_rng(0)
    x, kernel = rng.permutation(40).reshape(1, 4, 5, 2) / 10.0, rng.normal(size=(2, 3))

    @jax.jit
    def everything(x, kernel, amount):
        strength = filters.magnitude(*filters.sobel(x))
        linear = filters.correlate(filters.gaussian(x, 0.5), kernel, "mirror")
        return strength + linear**2 + filters.median(x) ** 2 + filters.sharpen(x, amount)

    with jax.enable_x64(True):
        check_grads(everything, (x, kernel, 0.7), order=2, modes=("fwd", "rev"), rtol=1e-4, atol=1e-4)
        flat = jax.grad(lambda x: filters.magnitude(*filters.prewitt(x)).sum())(np.ones((4, 4, 1)))
        np.testing.assert_array_equal(flat, np.zeros((4, 4, 1)))  # where a square root has no derivative


def test_dtypes():
    for dtype, expected in ((np.uint8, np.float32), (np.int32, np.float32), (jnp.bfloat16, jnp.bfloat16)):
        x = jnp.asarray(A[..., None]).astype(dtype)
        sharp, median = jax.jit(lambda x: (filters.sharpen(x, mode="constant"), filters.median(x)))(x)
        assert sharp.dtype == median.dtype == expected
        if expected == np.float32:
            np.testing.assert_array_equal(sharp[..., 0], A_SHARPENED)


# --- Bad input ------------------------------------------------------------------------------------------------------

IMAGE = np.ones((5, 5, 1), np.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: filters.box(IMAGE[..., 0]), r"image must be \[..., height, width, channel\].*got shape \(5, 5\)"),
        (lambda: filters.median(IMAGE[:0]), r"image must be .* none of these three 0: got shape \(0, 5, 1\)"),
        (lambda: filters.box(IMAGE, 0), "size must be a positive integer or one for each axis, 2 in all: got 0"),
        (lambda: filters.median(IMAGE, (3, 3, 3)), "size must be a positive integer or one .*: got .3, 3, 3."),
        (lambda: filters.sobel(IMAGE, "reflct"), "unknown mode 'reflct': did you mean 'reflect'.*mirror, nearest"),
        (
            lambda: filters.median(IMAGE, 3, "edge"),
            "unknown mode 'edge'.*allowed: reflect, mirror, nearest, wrap, const",
        ),
        (lambda: filters.gaussian(IMAGE, -1), "sigma must be a finite number, 0 or more, or one for each .*: got -1"),
        (lambda: filters.gaussian(IMAGE, (1, 2, 3)), "sigma must be .*: got .1, 2, 3."),
        (lambda: filters.gaussian(IMAGE, "wide"), "sigma must be .*: got 'wide'"),
        (lambda: filters.gaussian(IMAGE, 1, float("inf")), "truncate must be a finite number, 0 or more: got inf"),
        (
            lambda: filters.correlate(IMAGE, np.ones((3, 3, 1))),
            r"kernel must be \[height, width\].*got shape \(3, 3, 1\)",
        ),
        (lambda: filters.convolve(IMAGE, np.ones((0, 3))), r"kernel must be .*neither of them 0: got shape \(0, 3\)"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_bad_dtypes():
    with pytest.raises(TypeError, match="image must hold real numbers: got bool"):
        filters.median(IMAGE > 0)
    with pytest.raises(TypeError, match="image must hold real numbers: got complex64"):
        filters.box(IMAGE * 1j)
    with pytest.raises(TypeError, match="kernel must hold real numbers: got complex64"):
        filters.correlate(IMAGE, np.ones((3, 3), np.complex64))
    with pytest.raises(TypeError, match="amount must be an array of numbers, not ragged: got 'lots'"):
        filters.sharpen(IMAGE, "lots")
    with pytest.raises(TypeError, match="amount must hold real numbers: got complex64"):
        filters.sharpen(IMAGE, 1j)
