"""What the lectures teach, worked number by worked number. The sections are those of the lectures' own summary:

1. filtering; 2. sizes and counts; 3. pooling and the properties of convolutional networks.
"""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lecture_images import A_SHARPENED, B_PLUS, A, B

from cnnjax.ops import (
    CONV_IMPLEMENTATIONS,
    InputError,
    avg_pool,
    conv_general_dilated,
    conv_implementation,
    max_pool,
    output_size,
    reference,
)

# Those that multiply and add the numbers as they are: on small integers they are exact.
EXACT = [name for name in CONV_IMPLEMENTATIONS if name not in ("winograd", "fft")]
EVERY_CONVOLUTION = {name: conv_implementation(name) for name in EXACT} | {"numpy": reference.conv_general_dilated}

C = np.array([[1, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 1, 1, 1], [0, 0, 1, 1, 0], [0, 1, 1, 0, 0]])

SHARPEN = np.array([[0, -1, 0], [-1, 5, -1], [0, -1, 0]])
EDGES = np.array([[-1, -1, -1], [-1, 8, -1], [-1, -1, -1]])
BOX = np.full((3, 3), 1 / 9)
GRADIENT_X = np.array([[1, 0, -1]] * 3)
GRADIENT_Y = np.array([[1, 1, 1], [0, 0, 0], [-1, -1, -1]])
SOBEL_X = np.array([[1, 0, -1], [2, 0, -2], [1, 0, -1]])
DELTA = np.array([[0, 0, 0], [0, 1, 0], [0, 0, 0]])


def correlate(image, kernel, padding=0, convolve=conv_general_dilated):
    """The sum of u(i + k, j + l) h(k, l) for one image and one kernel, with zeros around the image."""
    lhs, rhs = (np.asarray(a, np.float32)[None, None] for a in (image, kernel))
    return np.asarray(convolve(lhs, rhs, (1, 1), [(padding, padding)] * 2)[0, 0])


@pytest.fixture(params=EVERY_CONVOLUTION)
def filtered(request):
    """`correlate` by each implementation in turn."""
    return functools.partial(correlate, convolve=EVERY_CONVOLUTION[request.param])


def median(image):
    """The median of each 3x3 window."""
    return np.median(np.lib.stride_tricks.sliding_window_view(image, (3, 3)), axis=(2, 3))


def parameters(layer, *shape):
    """Sizes of a Flax layer's parameters on an input of `shape`, without computing any of them."""
    tree = jax.eval_shape(layer.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))["params"]
    return {name: leaf.size for name, leaf in tree.items()}


def output_shape(layer, *shape):
    """Shape of a Flax layer's output on an input of `shape`, without computing it."""
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.eval_shape(lambda x: layer.init_with_output(jax.random.key(0), x)[0], x).shape


# --- Section 1: filtering -------------------------------------------------------------------------------------------


def test_sharpening_a(filtered):
    """Section 1: image A sharpened with zero padding 1; the deck works out 89, 111, 210 and 320."""
    np.testing.assert_array_equal(filtered(A, SHARPEN, 1), A_SHARPENED)
    bordered = np.pad(A, 1)
    for (i, j), worked_out in {(1, 1): 89, (1, 2): 111, (1, 0): 210, (0, 0): 320}.items():
        assert (bordered[i : i + 3, j : j + 3] * SHARPEN).sum() == worked_out == A_SHARPENED[i][j]


def test_strong_edges(filtered):
    """Section 1: the strong edge kernel is 9 times the pixel less its 3x3 window; flat images give zero."""
    box_sum = sum(np.pad(A, 1)[i : i + 5, j : j + 5] for i in range(3) for j in range(3))
    np.testing.assert_array_equal(filtered(A, EDGES, 1), 9 * A - box_sum)
    assert not filtered(np.full((5, 5), 77), EDGES).any()
    step = np.repeat([[0, 0, 0, 1, 1, 1]], 4, axis=0)
    np.testing.assert_array_equal(filtered(step, EDGES), [[0, -3, 3, 0]] * 2)


def test_plus_shaped_mean_of_b(filtered):
    """Section 1: image B under the plus-shaped mean, zero padding 1: all 49 numbers."""
    plus = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]]) / 5
    np.testing.assert_allclose(filtered(B, plus, 1), B_PLUS, rtol=1e-5)


def test_image_c(filtered):
    """Section 1: the 5x5 image C with its 3x3 kernel, no padding."""
    kernel = [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
    np.testing.assert_array_equal(filtered(C, kernel), [[4, 3, 4], [2, 4, 3], [2, 3, 4]])


def test_convolution_is_correlation_with_the_flipped_kernel(filtered):
    """Section 1: u(i - k, j - l) h(k, l) against u(i + k, j + l) h(k, l)."""
    kernel = np.arange(9).reshape(3, 3)
    convolved = np.zeros((7, 7))
    for i, j in np.ndindex(7, 7):
        terms = [(i - k, j - m, kernel[k, m]) for k, m in np.ndindex(3, 3)]
        convolved[i, j] = sum(A[a, b] * h for a, b, h in terms if 0 <= a < 5 and 0 <= b < 5)
    np.testing.assert_array_equal(filtered(A, kernel[::-1, ::-1], 2), convolved)
    assert (filtered(A, kernel, 2) != convolved).any()
    np.testing.assert_array_equal(filtered(A, SHARPEN, 2), filtered(A, SHARPEN[::-1, ::-1], 2))  # symmetric: the same


def test_box_mean_is_a_low_pass_filter(filtered):
    """Section 1: the box mean keeps what is constant and damps what alternates."""
    np.testing.assert_allclose(filtered(np.full((5, 5), 90), BOX), np.full((3, 3), 90), rtol=1e-6)
    checkers = np.indices((6, 6)).sum(0) % 2 * 2 - 1
    np.testing.assert_allclose(np.abs(filtered(checkers, BOX)), np.full((4, 4), 1 / 9), rtol=1e-6)
    assert filtered(A, BOX).var() < A[1:-1, 1:-1].var()


@pytest.mark.parametrize(("kernel", "gain"), [(GRADIENT_X, 6), (SOBEL_X, 8)])
def test_gradient_vector(filtered, kernel, gain):
    """Section 1: (Gx, Gy) of a tilted plane is its slope times the kernel's gain, and so is the magnitude."""
    i, j = np.indices((6, 7))
    plane = 3 * j + 4 * i
    np.testing.assert_array_equal(kernel.T[::-1].T, -kernel)  # odd along x
    gx, gy = filtered(plane, kernel), filtered(plane, kernel.T)
    # As correlations these kernels take left less right and top less bottom: minus the slope.
    np.testing.assert_array_equal(gx, np.full((4, 5), -3 * gain))
    np.testing.assert_array_equal(gy, np.full((4, 5), -4 * gain))
    np.testing.assert_array_equal(np.hypot(gx, gy), np.full((4, 5), 5 * gain))


def test_gradient_y_is_gradient_x_of_the_transposed_image(filtered):
    """Section 1: gradient y [[1,1,1],[0,0,0],[-1,-1,-1]] sees horizontal edges as gradient x sees vertical ones."""
    np.testing.assert_array_equal(filtered(A, GRADIENT_Y), filtered(A.T, GRADIENT_X).T)
    vertical_edge = np.repeat([[0, 0, 0, 1, 1, 1]], 6, axis=0)
    np.testing.assert_array_equal(filtered(vertical_edge, GRADIENT_X), [[0, -3, -3, 0]] * 4)
    assert not filtered(vertical_edge, GRADIENT_Y).any()


def test_median_is_not_linear(filtered):
    """Section 1: no kernel gives the median; the one that deck 003 prints as its filter is the identity."""
    first, second = np.zeros((3, 3)), np.zeros((3, 3))
    first[0], second[1] = 1, 1
    assert median(first + second) == 1
    assert median(first) + median(second) == 0
    summed = filtered(first + second, BOX)
    np.testing.assert_allclose(summed, filtered(first, BOX) + filtered(second, BOX), rtol=1e-6)
    np.testing.assert_array_equal(filtered(A, DELTA), A[1:-1, 1:-1])
    assert (median(A) != A[1:-1, 1:-1]).any()
    noisy = A.copy()
    noisy[2, 2] = 255  # a grain of salt: the median removes it, the mean smears it
    assert np.abs(median(noisy) - median(A)).max() <= 2
    assert np.abs(filtered(noisy, BOX) - filtered(A, BOX)).max() > 16


def picture(*rows):
    """-1 where a row has a dot, +1 where it has an x."""
    return np.array([[1 if mark == "x" else -1 for mark in row] for row in rows])


X = picture(
    ".........",
    ".x.....x.",
    "..x...x..",
    "...x.x...",
    "....x....",
    "...x.x...",
    "..x...x..",
    ".x.....x.",
    ".........",
)
DEFORMED_X = picture(
    ".........",
    ".......x.",
    ".x....x..",
    "..xx.x...",
    "....x....",
    "...x.x...",
    "..x...x..",
    ".x.....x.",
    ".........",
)
SMALL_X = picture(
    ".........",
    ".........",
    "..x...x..",
    "...x.x...",
    "....x....",
    "...x.x...",
    "..x...x..",
    ".........",
    ".........",
)
FALLING = picture("x..", ".x.", "..x")
CROSSING = picture("x.x", ".x.", "x.x")
RISING = picture("..x", ".x.", "x..")


def places(response):
    """Where a detector matches perfectly: the (row, column) of the middle of each patch."""
    return {(int(i) + 1, int(j) + 1) for i, j in np.argwhere(response == 9)}


def test_detectors_are_those_of_the_deck():
    """Section 1: the three 3x3 detectors, as numbers."""
    np.testing.assert_array_equal(FALLING, [[1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    np.testing.assert_array_equal(CROSSING, [[1, -1, 1], [-1, 1, -1], [1, -1, 1]])
    np.testing.assert_array_equal(RISING, [[-1, -1, 1], [-1, 1, -1], [1, -1, -1]])


def test_a_perfect_match_sums_to_nine(filtered):
    """Section 1: ones times ones, or any +1/-1 patch times itself, is 9; nothing is more."""
    for patch in (np.ones((3, 3)), FALLING, CROSSING, RISING):
        assert filtered(patch, patch).item() == 9
        assert filtered(-patch, patch).item() == -9
    every = np.array(list(itertools.product((-1, 1), repeat=9)))
    assert (every @ CROSSING.ravel() == 9).sum() == 1  # one patch of 512 alone


def test_detectors_find_the_parts_of_the_x(filtered):
    """Section 1: the arms and the middle of the X, each found where it is and nowhere else."""
    assert places(filtered(X, FALLING)) == {(2, 2), (3, 3), (5, 5), (6, 6)}
    assert places(filtered(X, RISING)) == {(2, 6), (3, 5), (5, 3), (6, 2)}
    assert places(filtered(X, CROSSING)) == {(4, 4)}
    assert filtered(X, FALLING)[3, 3] == 5  # in the middle two of nine disagree: 7 - 2


def test_an_x_that_is_shifted_shrunk_rotated_or_deformed(filtered):
    """Section 1, the question posed: compared whole these are other images; by their parts they are an X still."""
    for other in (np.roll(X, (1, 1), (0, 1)), SMALL_X, DEFORMED_X):
        assert (other * X).sum() < 81  # compared pixel by pixel they are not the image
    response = lambda image: [filtered(image, detector) for detector in (FALLING, CROSSING, RISING)]
    # Shifted (by one, the margin being one pixel): every response shifts along.
    for moved, still in zip(response(np.roll(X, (1, 1), (0, 1))), response(X), strict=True):
        assert places(moved) == {(i + 1, j + 1) for i, j in places(still)}
    # Shrunk: every part still matches, with fewer matches of the arms.
    assert [len(places(r)) for r in response(SMALL_X)] == [2, 1, 2]
    # Rotated by a quarter turn: rising and falling change places.
    falling, crossing, rising = response(np.rot90(X))
    np.testing.assert_array_equal(falling, np.rot90(response(X)[2]))
    np.testing.assert_array_equal(rising, np.rot90(response(X)[0]))
    np.testing.assert_array_equal(crossing, np.rot90(response(X)[1]))
    # Deformed: all three detectors still find their part.
    assert all(places(r) for r in response(DEFORMED_X))
    # A plus sign has none of the parts.
    plus = picture(*["....x...."] * 4, "xxxxxxxxx", *["....x...."] * 4)
    assert not any(places(r) for r in response(plus))


# --- Section 2: sizes and counts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "window", "stride", "padding", "expected"),
    [
        (7, 3, 1, 0, 5),
        (7, 3, 2, 0, 3),
        (7, 3, 1, 1, 7),
        (6, 3, 1, 0, 4),
        (6, 3, 3, 0, 2),
        (4, 3, 1, 1, 4),
        (4, 3, 1, 0, 2),
        (32, 5, 1, 0, 28),
        (28, 5, 1, 0, 24),
        (32, 5, 1, 2, 32),
        (10, 2, 1, 0, 9),
        (224, 2, 2, 0, 112),
    ],
)
def test_output_sizes(size, window, stride, padding, expected):
    """Section 2: (W - F + 2P)/S + 1, by the function and by a convolution of that shape."""
    assert output_size(size, window, stride, padding, exact=True) == expected
    layer = nn.Conv(1, (window, window), stride, ((padding, padding),) * 2)
    assert output_shape(layer, 1, size, size, 3) == (1, expected, expected, 1)


def test_stride_3_does_not_fit():
    """Section 2: 3x3 over 7x7 with stride 3 gives 2.33: an error where the user asked for an exact fit."""
    with pytest.raises(InputError, match=r"= 2\.33, not a whole number"):
        output_size(7, 3, 3, exact=True)
    assert output_size(7, 3, 3) == 2


@pytest.mark.parametrize(("window", "padding"), [(3, 1), (5, 2), (7, 3)])
def test_same_padding(window, padding):
    """Section 2: (F - 1)/2 keeps the size: 3 -> 1, 5 -> 2, 7 -> 3; it is what SAME adds."""
    for size in (7, 32, 33):
        assert output_size(size, window, padding=padding) == size
    image = np.random.default_rng(0).normal(size=(1, 1, 9, 9)).astype(np.float32)
    kernel = np.ones((1, 1, window, window), np.float32)
    same = conv_general_dilated(image, kernel, (1, 1), "SAME")
    np.testing.assert_array_equal(same, conv_general_dilated(image, kernel, (1, 1), [(padding, padding)] * 2))


def test_axes_go_by_themselves_and_depth_is_the_number_of_filters():
    """Section 2: each axis by itself; a filter need not be square."""
    layer = nn.Conv(7, (2, 5), (1, 3), ((1, 1), (0, 2)), use_bias=False)
    assert output_size((10, 20), (2, 5), (1, 3), ((1, 1), (0, 2))) == (11, 6)
    assert output_shape(layer, 1, 10, 20, 3) == (1, 11, 6, 7)
    assert parameters(layer, 1, 10, 20, 3) == {"kernel": 2 * 5 * 3 * 7}


def test_ten_5x5_filters():
    """Section 2: 32x32x3, ten 5x5 filters, stride 1, pad 2: 32x32x10; 76 parameters a filter, 760 in all."""
    layer = nn.Conv(10, (5, 5), padding=2)
    assert output_shape(layer, 1, 32, 32, 3) == (1, 32, 32, 10)
    assert sum(parameters(layer, 1, 32, 32, 3).values()) == 760
    assert sum(parameters(nn.Conv(1, (5, 5), padding=2), 1, 32, 32, 3).values()) == 76


def test_a_filter_is_a_dot_product():
    """Section 2: a 5x5x3 filter at one place is a dot product of length 75 plus a bias."""
    rng = np.random.default_rng(0)
    image, layer = rng.normal(size=(1, 32, 32, 3)).astype(np.float32), nn.Conv(1, (5, 5), padding="VALID")
    kernel, bias = rng.normal(size=(5, 5, 3, 1)).astype(np.float32), np.array([0.25], np.float32)
    y = layer.apply({"params": {"kernel": kernel, "bias": bias}}, image)
    patch = image[0, 10:15, 20:25].ravel()
    assert patch.shape == kernel.ravel().shape == (75,)
    np.testing.assert_allclose(y[0, 10, 20, 0], patch @ kernel.ravel() + bias[0], rtol=1e-5)


@pytest.mark.parametrize(("filters", "weights"), [(1, 12), (5, 60)])
def test_2x2_filters_on_10x10x3(filters, weights):
    """Section 2: one filter gives 9x9x1 with 12 weights and 1 bias; five give 9x9x5 with 60 and 5."""
    layer = nn.Conv(filters, (2, 2), padding="VALID")
    assert output_shape(layer, 1, 10, 10, 3) == (1, 9, 9, filters)
    assert parameters(layer, 1, 10, 10, 3) == {"kernel": weights, "bias": filters}


def test_locally_connected_4x4_filters_moved_by_2():
    """Section 2 (004): patches of 4x4, 2 apart: 16 weights a place; with one filter for all places, a convolution."""
    local, shared = nn.ConvLocal(1, (4, 4), 2, "VALID", use_bias=False), nn.Conv(1, (4, 4), 2, "VALID", use_bias=False)
    places = output_size(10, 4, 2, exact=True) ** 2
    assert places == 16
    assert parameters(local, 1, 10, 10, 1) == {"kernel": 16 * places}
    assert parameters(shared, 1, 10, 10, 1) == {"kernel": 16}
    rng = np.random.default_rng(0)
    image, kernel = (rng.normal(size=s).astype(np.float32) for s in ((1, 10, 10, 1), (4, 4, 1, 1)))
    everywhere = np.broadcast_to(kernel.reshape(1, 1, 16, 1), (4, 4, 16, 1))
    y = local.apply({"params": {"kernel": everywhere}}, image)
    np.testing.assert_allclose(y, shared.apply({"params": {"kernel": kernel}}, image), rtol=1e-5, atol=1e-5)


def test_economy():
    """Section 2: on 1000x1000, fully connected to 1M units 10^12 weights; local 10x10 10^8; 100 shared filters 10^4."""
    image = (1, 1000, 1000, 1)
    dense = jax.eval_shape(lambda x: nn.Dense(10**6, use_bias=False).init(jax.random.key(0), x), jnp.zeros((1, 10**6)))
    assert dense["params"]["kernel"].size == 10**12
    local, shared = nn.ConvLocal(1, (10, 10), use_bias=False), nn.Conv(100, (10, 10), use_bias=False)
    assert output_shape(local, *image) == image  # a million units
    assert parameters(local, *image) == {"kernel": 10**8}
    assert parameters(shared, *image) == {"kernel": 10**4}


def test_fully_connected_plane():
    """Section 2: RGB with D = 32 to one plane, 3 D^2 D^2 + D^2 = 3,146,752; the slide's D counts pixels."""
    count = sum(parameters(nn.Dense(32 * 32), 1, 32 * 32 * 3).values())
    assert count == 3_146_752
    pixels = 32**2
    assert count == 3 * pixels**2 + pixels
    assert count == pytest.approx(3e6, rel=0.05)


def test_pooling_224():
    """Section 2: 224x224x64 through 2x2/2 pooling is 112x112x64: each channel by itself."""
    for pool in (max_pool, avg_pool):
        shape = jax.eval_shape(lambda x, pool=pool: pool(x, (2, 2), (2, 2)), jnp.zeros((1, 224, 224, 64))).shape
        assert shape == (1, 112, 112, 64)


def test_flatten():
    """Section 2: 3x4x5 becomes 60 features, and a fully connected layer takes them."""
    flatten = lambda x: x.reshape(len(x), -1)
    assert jax.eval_shape(flatten, jnp.zeros((2, 3, 4, 5))).shape == (2, 60)
    network = nn.Sequential([lambda x: max_pool(x, (2, 2), (2, 2)), flatten, nn.Dense(7, use_bias=False)])
    assert output_shape(network, 2, 6, 8, 5) == (2, 7)
    (kernel,) = jax.tree.leaves(jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((2, 6, 8, 5))))
    assert kernel.shape == (60, 7)


# --- Section 3: pooling and properties ------------------------------------------------------------------------------

POOL_EXAMPLE = np.array([[1, 1, 2, 4], [5, 6, 7, 8], [3, 2, 1, 0], [1, 2, 3, 4]], np.float32)
POOL_003 = np.array(
    [
        [1, 0, 0, 0, 0, 1],
        [0, 1, 6, 0, 1, 6],
        [3, 0, 1, 1, 0, 0],
        [1, 0, 3, 0, 1, 0],
        [0, 1, 0, 0, 1, 0],
        [0, 0, 1, 0, 1, 0],
    ],
    np.float32,
)


@pytest.mark.parametrize("pools", [(max_pool, avg_pool), (reference.max_pool, reference.avg_pool)])
def test_pooling_example(pools):
    """Section 3: 2x2/2 pooling of the 4x4 example: maxima [[6,8],[3,4]], and the averages."""
    maximum, average = (np.asarray(pool(POOL_EXAMPLE[..., None], (2, 2), (2, 2)))[..., 0] for pool in pools)
    np.testing.assert_array_equal(maximum, [[6, 8], [3, 4]])
    np.testing.assert_array_equal(average, [[13 / 4, 21 / 4], [2, 2]])


def test_the_example_of_003_is_inconsistent():
    """Section 3: "max pooling with 2x2" with result [[6,9],[3,1]]: 2x2 windows give 3x3 numbers, and there is no 9."""
    slide = np.array([[6, 9], [3, 1]])
    assert output_size((6, 6), 2, 2) == (3, 3) != slide.shape
    assert output_size((6, 6), 3, 3) == slide.shape
    blocks = max_pool(POOL_003[..., None], (3, 3), (3, 3))[..., 0]
    np.testing.assert_array_equal(blocks, [[6, 6], [3, 1]])
    assert (blocks != slide).sum() == 1
    assert POOL_003.max() < 9


def test_convolution_is_a_fully_connected_layer(filtered):
    """Section 3: most weights zero and the rest shared. Build that matrix from unit images, and multiply."""
    kernel = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    units = np.eye(25).reshape(25, 5, 5)
    matrix = np.stack([filtered(unit, kernel).ravel() for unit in units], axis=1)
    assert matrix.shape == (9, 25)
    assert (matrix != 0).sum() == 9 * 9  # of 225: each output sees its 3x3 patch
    for row in matrix:
        np.testing.assert_array_equal(row[row != 0], kernel.ravel())  # and all share the nine weights
    np.testing.assert_array_equal(matrix @ A.ravel(), filtered(A, kernel).ravel())


def test_the_matrix_is_the_jacobian():
    """Section 3: the same matrix by differentiation, with padding, stride and two channels; it multiplies any image."""
    rng = np.random.default_rng(0)
    image, kernel = rng.normal(size=(1, 4, 5, 2)), rng.normal(size=(3, 3, 2, 3))
    for name in EXACT:
        with jax.enable_x64(True):
            f = lambda x, name=name: conv_general_dilated(
                x, kernel, (2, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), implementation=name
            )
            matrix = jax.jit(jax.jacobian(f))(jnp.zeros(image.shape)).reshape(-1, image.size)
            np.testing.assert_allclose(matrix @ image.ravel(), f(image).ravel(), rtol=1e-12, atol=1e-12)
            assert np.isin(matrix, [0, *kernel.ravel()]).all()
            assert 0.4 < (np.asarray(matrix) == 0).mean() < 1


def test_equivariance(filtered):
    """Section 3: shift the input and the output shifts."""
    image = np.zeros((9, 9))
    image[2:7, 2:7] = A
    for shift in [(0, 1), (1, 0), (-1, 1)]:
        moved = np.roll(image, shift, (0, 1))
        np.testing.assert_array_equal(filtered(moved, SHARPEN, 1), np.roll(filtered(image, SHARPEN, 1), shift, (0, 1)))


def test_max_pooling_is_nearly_invariant():
    """Section 3: shift the input by a pixel; every convolution output changes, half of those pooled (width 3) do.

    The detector outputs are those of the usual figure (Goodfellow, Bengio and Courville, Deep Learning, figure 9.8).
    """
    detected = np.array([0.2, 0.3, 0.1, 1.0, 0.2, 0.1, 0.0])
    line = np.concatenate([[0.0], np.cumsum(detected)])  # the image whose differences these are

    def views(line):
        differences = conv_general_dilated(
            jnp.asarray(line, jnp.float32)[None, None], jnp.array([[[-1.0, 1.0]]]), (1,), "VALID"
        )
        pooled = max_pool(differences[0, 0, :, None], (3,))
        return np.asarray(differences[0, 0, 2:6]), np.asarray(pooled[1:5, 0])  # four units, as in the figure

    before, pooled_before = views(line)
    after, pooled_after = views(np.concatenate([[line[0]], line[:-1]]))  # one pixel to the right
    np.testing.assert_allclose(before, [0.1, 1.0, 0.2, 0.1], atol=1e-6)
    np.testing.assert_allclose(pooled_before, [1.0, 1.0, 1.0, 0.2], atol=1e-6)
    np.testing.assert_allclose(after, [0.3, 0.1, 1.0, 0.2], atol=1e-6)
    np.testing.assert_allclose(pooled_after, [0.3, 1.0, 1.0, 1.0], atol=1e-6)
    changed = lambda a, b: int((np.abs(a - b) > 1e-3).sum())
    assert changed(before, after) == 4
    assert changed(pooled_before, pooled_after) == 2


def test_any_size():
    """Section 3: a network of convolutions takes inputs of any size with the same parameters."""
    network = nn.Sequential([nn.Conv(4, (3, 3)), nn.relu, nn.Conv(2, (3, 3), 2), lambda x: max_pool(x, (2, 2), (2, 2))])
    variables = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    for height, width in [(8, 8), (17, 30), (4, 100)]:
        y = jax.eval_shape(network.apply, variables, jnp.zeros((1, height, width, 1)))
        assert y.shape == (1, output_size(-(-height // 2), 2, 2), output_size(-(-width // 2), 2, 2), 2)
    # What it computes does not depend on the size either: away from the border a crop gives the crop.
    image = jax.random.normal(jax.random.key(1), (1, 24, 24, 1))
    whole, part = (jax.jit(network.apply)(variables, x) for x in (image, image[:, :16, :16]))
    np.testing.assert_allclose(part[:, :3, :3], whole[:, :3, :3], rtol=1e-5, atol=1e-6)


def receptive_field(network, size=33):
    """Side of the square of input pixels that one output in the middle depends on, found by its gradient."""
    x = jax.random.uniform(jax.random.key(0), (1, size, size, 1)) + 0.5

    def middle(x):
        y = network(x)
        return y[0, y.shape[1] // 2, y.shape[2] // 2].sum()

    rows, columns = np.nonzero(np.asarray(jax.jit(jax.grad(middle))(x))[0, :, :, 0])
    side = rows.max() - rows.min() + 1
    assert side == columns.max() - columns.min() + 1
    return int(side)


def stack(*layers):
    """Layers of (window, stride), all with positive weights so that nothing cancels, without padding."""

    def network(x):
        for window, stride in layers:
            kernel = jnp.ones((window, window, 1, 1))
            x = conv_general_dilated(x, kernel, (stride,) * 2, "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return x

    return network


@pytest.mark.parametrize(
    ("layers", "side"),
    [
        ([(3, 1)], 3),
        ([(5, 1)], 5),  # a larger kernel
        ([(3, 1)] * 2, 5),  # more layers
        ([(3, 1)] * 3, 7),
        ([(7, 1)], 7),
        ([(3, 2), (3, 1)], 7),  # stride
        ([(3, 2)] * 3, 15),
    ],
)
def test_receptive_field(layers, side):
    """Section 3: it grows with kernel size, depth and stride: 1 + the sum of (F - 1) times the strides before."""
    assert receptive_field(stack(*layers)) == side
    strides = np.cumprod([1, *(stride for _, stride in layers)])
    assert side == 1 + sum((window - 1) * step for (window, _), step in zip(layers, strides[:-1], strict=True))


def test_pooling_grows_the_receptive_field():
    """Section 3: a 3x3 convolution after 2x2/2 pooling sees 6x6 instead of 3x3."""
    pooled = lambda x: stack((3, 1))(avg_pool(x, (2, 2), (2, 2)))
    assert receptive_field(pooled) == 6
    assert receptive_field(stack((3, 1))) == 3


@pytest.mark.parametrize(("depth", "window"), [(2, 5), (3, 7)])
def test_stacked_small_kernels_cost_less(depth, window):
    """Section 3: two 3x3 see what one 5x5 sees, three what one 7x7 sees, for 18 C^2 to 25 C^2 and 27 C^2 to 49 C^2."""
    channels = 16
    count = lambda side: parameters(nn.Conv(channels, (side, side), use_bias=False), 1, 9, 9, channels)["kernel"]
    assert receptive_field(stack(*[(3, 1)] * depth)) == receptive_field(stack((window, 1))) == window
    assert depth * count(3) == depth * 9 * channels**2
    assert count(window) == window**2 * channels**2
    assert depth * count(3) < count(window)


def test_the_prior_can_underfit():
    """Section 3: where exact position matters, convolution and pooling over all places cannot fit; a dense layer can.

    The target is the column of a single bright pixel.
    """
    columns = np.arange(2, 10)
    images = np.zeros((len(columns), 12, 12, 1), np.float32)
    images[np.arange(len(columns)), 6, columns] = 1
    kernels = np.random.default_rng(0).normal(size=(3, 3, 1, 8)).astype(np.float32)
    features = nn.relu(
        conv_general_dilated(images, kernels, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    )
    pooled = np.asarray(max_pool(features, (12, 12))).reshape(len(images), -1)

    def best_error(inputs):
        """Mean squared error of the best linear layer with a bias."""
        design = np.concatenate([inputs, np.ones((len(inputs), 1))], axis=1)
        return float(np.mean((design @ np.linalg.lstsq(design, columns, rcond=None)[0] - columns) ** 2))

    np.testing.assert_allclose(pooled, np.broadcast_to(pooled[0], pooled.shape), rtol=1e-6)  # all images look the same
    assert best_error(pooled) == pytest.approx(columns.var(), rel=1e-3)  # so that guessing the mean is the best
    assert best_error(images.reshape(len(images), -1)) < 1e-6
