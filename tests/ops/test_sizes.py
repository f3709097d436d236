"""`output_size` against its formula, against what lax makes, and its errors."""

import itertools

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from cnnjax.ops import InputError, output_size
from cnnjax.ops.sizes import padding_pairs


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((7, 3), 5),
        ((7, 3, 2), 3),
        ((7, 3, 3), 2),  # rounded down
        ((7, 3, 1, 1), 7),
        ((7, 3, 1, (0, 2)), 7),
        ((7, 3, 1, 0, 2), 3),
        ((7, 3, 2, "SAME"), 4),
        ((7, 3, 2, "SAME_LOWER"), 4),
        ((7, 3, 2, "VALID"), 3),
        ((2, 5), 0),
        (((7, 9), 3), (5, 7)),
        (((7, 9), (3, 1), (2, 3), ((1, 1), (0, 0)), (1, 4)), (4, 3)),
        (((7, 9), 3, 1, (1, 2)), (7, 11)),  # one int per axis, for both its sides
        (((7, 9), 3, 1, 1), (7, 9)),
        (((7, 9, 11), (3, 3, 3), 2, "SAME"), (4, 5, 6)),
        (([7, 9], [3, 3]), (5, 7)),
    ],
)
def test_values(arguments, expected):
    size = output_size(*arguments)
    assert size == expected
    assert type(size) is type(expected)


def test_agrees_with_lax_everywhere():
    """Every small combination, against the shape that lax infers."""
    paddings = [0, 1, (0, 2), "VALID", "SAME", "SAME_LOWER"]
    for w, f, s, p, d in itertools.product((1, 4, 7, 8), (1, 2, 3, 5), (1, 2, 3), paddings, (1, 2)):
        explicit = p if isinstance(p, str) else [(p, p) if isinstance(p, int) else p]
        convolve = lambda x, k, s=s, e=explicit, d=d: lax.conv_general_dilated(x, k, (s,), e, rhs_dilation=(d,))
        shape = jax.eval_shape(convolve, jnp.zeros((1, 1, w)), jnp.zeros((1, 1, f))).shape
        assert output_size(w, f, s, p, d) == shape[2], (w, f, s, p, d)


@pytest.mark.parametrize("padding", ["VALID", "SAME", "SAME_LOWER", "same"])
def test_padding_strings_are_those_of_lax(padding):
    for w, f, s in itertools.product(range(1, 9), range(1, 6), range(1, 5)):
        assert list(padding_pairs(padding, (w,), (f,), (s,))) == lax.padtype_to_pads((w,), (f,), (s,), padding)


def test_exact_accepts_what_fits_and_refuses_the_rest():
    assert output_size(7, 3, 2, exact=True) == 3
    assert output_size((7, 6), 3, (2, 3), exact=True) == (3, 2)
    with pytest.raises(InputError, match=r"\(7 - 3 \+ 0\)/3 \+ 1 = 2\.33, not a whole number"):
        output_size(7, 3, 3, exact=True)
    with pytest.raises(InputError, match=r"stride 2 does not fit input 6 with padding \(0, 0\)"):
        output_size((7, 6), 3, 2, exact=True)
    with pytest.raises(InputError, match="the window is larger than the padded input"):
        output_size(1, 3, 2, exact=True)  # (1 - 3)/2 is whole, but no window fits


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 3), "input must be a positive integer.*: got 0"),
        ((7, -3), "window must be a positive integer.*: got -3"),
        ((7, 3, 0), "stride must be a positive integer.*: got 0"),
        ((7, 3, 1, -1), "padding must not be negative: got -1"),
        ((7, 3, 1, (0, -1)), r"padding must not be negative: got \(0, -1\)"),
        ((7, 3, 1, 0, 0), "dilation must be a positive integer.*: got 0"),
        ((7, 3, 1.5), "stride must be a positive integer.*: got 1.5"),
        ((7.0, 3), "input must be positive integers.*: got 7.0"),
        (("7", 3), "input must be positive integers.*: got '7'"),
        ((7, (3, 3)), r"window must be a positive integer.* 1 in all: got \(3, 3\)"),
        (((7, 7), (3, 3, 3)), r"window must be .* 2 in all: got \(3, 3, 3\)"),
        (((7, 7), 3, 1, ((1, 1),)), "a .low, high. pair of integers for each of 2 axes"),
        ((7, 3, 1, None), "padding must be one of VALID, SAME, SAME_LOWER or a .low, high. pair"),
        ((7, 3, 1, "SAMEE"), "unknown padding 'SAMEE'.*allowed: VALID, SAME, SAME_LOWER"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        output_size(*arguments)
    assert "\n" not in str(caught.value)
