"""Opening and resizing images, with Pillow."""

import concurrent.futures
import dataclasses
import importlib.metadata
import io
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from cnnjax.data.arrays import Arrays, Dataset
from cnnjax.ops.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

Size = tuple[int, int]  # height, width


def check_size(size: object) -> Size | None:
    """`size` as (height, width), or None.

    Raises:
      InputError: if it isn't two positive integers.
    """
    if size is None:
        return None
    try:
        height, width = (int(x) for x in size)  # ty: ignore[not-iterable]
    except (TypeError, ValueError):
        raise InputError(f"size must be (height, width), received {size!r}") from None
    if height < 1 or width < 1:
        raise InputError(f"size must be a positive height and width, received {size!r}")
    return height, width


def decode_image(content: bytes | str | os.PathLike[str], where: str) -> "Image.Image":
    """An encoded image as a Pillow image of mode L (where it is grey) or RGB.

    Args:
      content: the encoded bytes, or the path of a file.
      where: the name to give in errors.

    Raises:
      InputError: if it can't be read as an image, naming it.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as image:
            image.load()
            if image.mode.startswith("I;16"):  # whose upper half `convert` would make white
                return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            if image.mode in ("I", "F"):
                raise ValueError(f"pixels of mode {image.mode}; allowed: 8 or 16 bits a channel")
            return image.convert("L" if image.mode in ("1", "L") else "RGB")
    except Image.DecompressionBombError as error:
        raise InputError(f"image {where} is too large: {error}") from None
    except (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        NotImplementedError,
    ) as error:  # what Pillow's decoders raise on damaged files
        reason = "not an image Pillow knows" if type(error).__name__ == "UnidentifiedImageError" else error
        raise InputError(f"image {where} cannot be read: {reason}") from None


def to_array(image: "Image.Image", channels: int, size: Size | None = None) -> np.ndarray:
    """A Pillow image as uint8 `[height, width, channels]`, resized to `size` (bilinear, antialiased) if it differs."""
    from PIL import Image

    image = image.convert("L" if channels == 1 else "RGB")
    if size is not None and image.size != size[::-1]:
        image = image.resize(size[::-1], Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(image.height, image.width, channels)


def open_image(path: str | os.PathLike[str], height: int, width: int, channels: int) -> np.ndarray:
    """An image file as a network wants it: uint8 `[height, width, channels]`, resized and made grey or RGB as needed.

    Args:
      path: an image file, of any format Pillow reads.
      height: of the result.
      width: of the result.
      channels: 1 for grey, 3 for RGB.

    Raises:
      InputError: if the file is missing or can't be read as an image, naming it, or `channels` is neither 1 nor 3.
    """
    if channels not in (1, 3):
        raise InputError(f"channels must be 1 or 3, received {channels}")
    if not os.path.isfile(path):
        raise InputError(f"image {str(path)!r} is {'a folder' if os.path.isdir(path) else 'not there'}")
    return to_array(decode_image(path, repr(str(path))), channels, (height, width))


def pillow_version() -> str:
    """Pillow's version, on which decoded JPEGs and resized images may depend by a grey level."""
    return f"Pillow {importlib.metadata.version('pillow')}"


def resize_identity(size: Size | None) -> dict[str, object]:
    """What resizing to `size` adds to a set's identity in the cache: nothing if there is none."""
    return {} if size is None else {"size": size, "resized by": pillow_version()}


def decode_all(sources: Sequence[tuple[str, bytes]], size: Size | None) -> np.ndarray:
    """Encoded images of one size, as an array.

    Args:
      sources: (name, encoded bytes) of each image.
      size: (height, width) to resize to; None demands that all are of one size.

    Returns:
      uint8 `[n, height, width, channels]` in the order given, with 1 channel if every image is grey, else 3.

    Raises:
      InputError: naming the first image that can't be read, or two whose sizes differ.
    """

    def decode(source: tuple[str, bytes]) -> np.ndarray:
        image = decode_image(source[1], source[0])
        return to_array(image, 1 if image.mode == "L" else 3, size)

    if sum(len(content) for _, content in sources) < 4096 * len(sources):
        images = [decode(source) for source in sources]  # threads slow tiny images down: 1.5 times at 32x32
    else:
        with concurrent.futures.ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            images = list(pool.map(decode, sources))
    for (name, _), image in zip(sources, images, strict=True):
        if image.shape[:2] != images[0].shape[:2]:
            (h0, w0), (h1, w1) = images[0].shape[:2], image.shape[:2]
            raise InputError(
                f"images differ in size: {sources[0][0]} is {h0}x{w0} and {name} is {h1}x{w1} (height x width);"
                " give a size to resize to, or stream them with a crop (--data.crop)"
            )
    channels = max(image.shape[2] for image in images)
    result = np.empty((len(images), *images[0].shape[:2], channels), np.uint8)
    for i, image in enumerate(images):
        result[i] = image  # a grey image among coloured ones is repeated in all channels
    return result


def resize_dataset(dataset: Dataset, size: Size | None) -> Dataset:
    """`dataset` with every image of `size` (height, width), by Pillow's antialiased bilinear filter; None keeps it."""
    if size is None:
        return dataset
    resized = {name: _resize(arrays, size) for name, arrays in dataset.splits().items()}
    return dataclasses.replace(dataset, **resized)


def _resize(arrays: Arrays, size: Size) -> Arrays:
    from PIL import Image

    n, *old, channels = arrays.image.shape
    if tuple(old) == size:
        return arrays
    image = np.empty((n, *size, channels), np.uint8)
    for i in range(n):
        source = arrays.image[i, ..., 0] if channels == 1 else arrays.image[i]
        image[i] = to_array(Image.fromarray(source), channels, size)
    return Arrays(image, arrays.label)
