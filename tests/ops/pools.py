"""Poolings to test with, and inputs that are full of ties."""

import numpy as np

# (shape, window, strides, padding)
POOLS = {
    "2x2/2": ((2, 4, 6, 2), (2, 2), (2, 2), "VALID"),
    "2x2/2, odd": ((2, 7, 5, 3), (2, 2), (2, 2), "VALID"),
    "2x2/2 same": ((2, 7, 5, 3), (2, 2), (2, 2), "SAME"),
    "3x3/2": ((2, 9, 8, 3), (3, 3), (2, 2), "VALID"),
    "3x3/2 same": ((2, 8, 7, 3), (3, 3), (2, 2), "SAME"),
    "3x3/2 same lower": ((2, 8, 7, 3), (3, 3), (2, 2), "SAME_LOWER"),
    "3x3/2 pad 1": ((2, 8, 7, 3), (3, 3), (2, 2), ((1, 1), (1, 1))),
    "3x3/1": ((2, 6, 5, 3), (3, 3), (1, 1), "VALID"),
    "3x3/1 same": ((2, 6, 5, 3), (3, 3), (1, 1), "SAME"),
    "default stride": ((2, 6, 5, 3), (2, 3), None, "SAME"),
    "2x3/(3, 1)": ((2, 7, 6, 2), (2, 3), (3, 1), ((0, 2), (2, 1))),
    "3x3/3": ((2, 10, 8, 2), (3, 3), (3, 3), ((0, 0), (1, 1))),  # whole blocks
    "8x6/4": ((1, 21, 15, 2), (8, 6), (4, 4), ((2, 1), (0, 3))),  # blocks, two and three halves of a window
    "7x5/1 same": ((1, 9, 8, 2), (7, 5), (1, 1), "SAME"),
    "long": ((2, 60, 3), (23,), (2,), ((11, 11),)),
    "one window": ((2, 7, 5, 3), (7, 5), (2, 2), "VALID"),
    "wide padding": ((1, 3, 4, 2), (2, 3), (1, 2), ((3, 2), (1, 4))),  # some windows hold nothing but padding
    "cropping": ((2, 7, 6, 2), (2, 2), (2, 1), ((-1, 0), (1, -2))),
    "one dimension": ((3, 9, 2), (3,), (2,), ((1, 1),)),
    "three dimensions": ((2, 5, 4, 6, 2), (2, 2, 3), (2, 1, 2), "SAME"),
    "no batch": ((7, 6, 3), (3, 2), (2, 2), "SAME"),
    "two batches": ((2, 3, 6, 5, 2), (2, 2), (2, 2), "VALID"),
    "1x1": ((2, 4, 4, 2), (1, 1), (1, 1), "VALID"),
    "too large": ((2, 3, 8, 2), (5, 5), (1, 1), "VALID"),
    "empty batch": ((0, 6, 6, 2), (2, 2), (2, 2), "VALID"),
}


def tied(shape, dtype=np.float64):
    """Numbers from -2 to 2: nearly every window holds its maximum more than once."""
    return np.random.default_rng(0).integers(-2, 3, shape).astype(dtype)
