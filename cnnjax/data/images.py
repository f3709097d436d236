"""Opening and resizing images, with Pillow."""

import concurrent.futures
import dataclasses
import functools
import importlib.metadata
import io
import os
import typing
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from cnnjax.data.arrays import Arrays, Dataset
from cnnjax.ops.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

Size = tuple[int, int]  # height, width
Fit = Literal["stretch", "letterbox", "crop"]
"""How an image gets a size of other proportions: all of it stretched or squashed, or all of it between black bars, or
its centre, with what is too long cut off."""

FITS: tuple[Fit, ...] = typing.get_args(Fit)
_ALIKE = 1.05  # proportions that differ by less are called the same


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


FORMATS = (
    "AVIF",
    "BMP",
    "DIB",
    "GIF",
    "ICO",
    "JPEG",
    "JPEG2000",
    "PCX",
    "PNG",
    "PPM",
    "QOI",
    "SGI",
    "TGA",
    "TIFF",
    "WEBP",
)
"""The formats that are read, by Pillow's names. EPS must not be among them: Pillow has Ghostscript execute it."""

LARGEST_FILE = 2**30
"""Bytes that a file may have that is read whole: an image, alone or in an archive, or an original of a data set."""

DECODING = "orientation obeyed, transparency on white"
"""What decoding an image means, beyond Pillow's version: part of what identifies decoded images in the cache."""

_ORIENTATION = 0x0112  # EXIF's tag


def is_image_name(name: str) -> bool:
    """Whether a file's name ends as those of images do."""
    return os.path.splitext(name)[1].lower() in _suffixes()


@functools.cache
def _suffixes() -> frozenset[str]:
    from PIL import Image

    # MPO is a JPEG with others behind it, and opened as one.
    return frozenset(end for end, kind in Image.registered_extensions().items() if kind in (*_formats(), "MPO"))


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow was built with."""
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def check_length(length: int, where: str) -> None:
    """Refuses a file of so many bytes before it is read whole, which could take all memory.

    Raises:
      InputError: they are more than `LARGEST_FILE`.
    """
    if length > LARGEST_FILE:
        raise InputError(f"{where} has {length:,} bytes, allowed: up to {LARGEST_FILE:,}")


def read_whole(path: str | os.PathLike[str], where: str) -> bytes:
    """The content of a file, named `where` in the error if it is too large; an `OSError` if it can't be read."""
    check_length(os.path.getsize(path), where)
    with open(path, "rb") as file:
        return file.read()


def open_picture(content: bytes | str | os.PathLike[str]) -> "Image.Image":
    """Opens an encoded image with Pillow, if it is in one of `FORMATS`: nothing else in cnnjax calls `Image.open`.

    Args:
      content: the encoded bytes, or the path of a file.

    Returns:
      a Pillow image, to be closed; its pixels are not decoded yet.

    Raises:
      UnidentifiedImageError: it is in none of these formats. Damaged files raise several kinds; see `decode_image`.
    """
    from PIL import Image

    return Image.open(io.BytesIO(content) if isinstance(content, bytes) else content, formats=_formats())


def is_image(content: bytes | str | os.PathLike[str]) -> bool:
    """Whether an encoded image, or the file at a path, opens in one of `FORMATS`, whatever its name."""
    try:
        with warnings.catch_warnings(action="ignore"):  # Pillow's, about what else it may be
            open_picture(content).close()
    except Exception:  # on what is no image Pillow's plugins raise several kinds
        return False
    return True


def orientation(content: bytes) -> int:
    """How an encoded image is to be turned, as EXIF numbers it: 1 to 8, where 1 is not at all."""
    if b"Exif\0\0" not in content and b"Orientation" not in content:
        return 1  # nearly always; looking for it takes microseconds
    try:
        with open_picture(content) as image:
            return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # whatever is wrong with the image is found when it is decoded
        return 1


def _upright(image: "Image.Image") -> "Image.Image":
    """A decoded image, turned as its EXIF orientation says."""
    from PIL import Image

    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    try:
        turn = turns.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF data raise several kinds; they say nothing then
        return image
    return image if turn is None else image.transpose(turn)


def decode_image(content: bytes | str | os.PathLike[str], where: str) -> "Image.Image":
    """An encoded image as a Pillow image of mode L (where it is grey) or RGB.

    It is turned as its EXIF orientation says, and what is transparent shows white. Of 16 bits a channel the upper 8 are
    kept; of animations the first frame.

    Args:
      content: the encoded bytes, or the path of a file.
      where: the name to give in errors.

    Raises:
      InputError: if it can't be read as an image, naming it.
    """
    from PIL import Image

    try:
        with open_picture(content) as opened:
            opened.load()
            image = _upright(opened)
            if image.mode.startswith("I;16"):  # whose upper half `convert` would make white
                return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            if image.mode in ("I", "F"):
                raise ValueError(f"pixels of mode {image.mode}; allowed: 8 or 16 bits a channel")
            mode = "L" if image.mode in ("1", "L") else "RGB"
            if opened.has_transparency_data:
                coloured = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", coloured.size, "white"), coloured)
            return image.convert(mode)
    except Image.DecompressionBombError as error:
        raise InputError(f"image {where} is too large: {error}") from None
    except MemoryError:
        raise
    except Exception as error:  # on damaged files Pillow's plugins raise several kinds, ZeroDivisionError among them
        unknown = type(error).__name__ == "UnidentifiedImageError"
        reason = f"it is in none of the formats {', '.join(_formats())}" if unknown else error
        raise InputError(f"image {where} cannot be read: {reason}") from None


def to_array(image: "Image.Image", channels: int, size: Size | None = None, fit: Fit = "stretch") -> np.ndarray:
    """A Pillow image as uint8 `[height, width, channels]`, resized to `size` (bilinear, antialiased) if it differs."""
    from PIL import Image, ImageOps

    image = image.convert("L" if channels == 1 else "RGB")
    if size is not None and image.size != size[::-1]:
        resize = {"stretch": Image.Image.resize, "letterbox": ImageOps.pad, "crop": ImageOps.fit}[fit]
        image = resize(image, size[::-1], Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(image.height, image.width, channels)


def _stretches(old: Size, new: Size | None) -> bool:
    """Whether an image of size `old` changes its proportions, by more than is seen, when it is resized to `new`."""
    if new is None:
        return False
    change = old[0] * new[1] / (old[1] * new[0])
    return not 1 / _ALIKE < change < _ALIKE


def open_image(
    path: str | os.PathLike[str], height: int, width: int, channels: int, fit: Fit = "stretch"
) -> np.ndarray:
    """An image file as a network wants it: uint8 `[height, width, channels]`, resized and made grey or RGB as needed.

    Args:
      path: an image file, in one of `cnnjax.data.images.FORMATS`.
      height: of the result.
      width: of the result.
      channels: 1 for grey, 3 for RGB.
      fit: what happens to an image of other proportions, as `load` has it.

    Raises:
      InputError: if the file is missing, larger than `LARGEST_FILE` or can't be read as an image, naming it, or
        `channels` is neither 1 nor 3.
    """
    if channels not in (1, 3):
        raise InputError(f"channels must be 1 or 3, received {channels}")
    if not os.path.isfile(path):
        raise InputError(f"image {str(path)!r} is {'a folder' if os.path.isdir(path) else 'not there, or no file'}")
    check_length(os.path.getsize(path), f"image {str(path)!r}")
    return to_array(decode_image(path, repr(str(path))), channels, (height, width), fit)


def pillow_version() -> str:
    """Pillow's version, on which decoded JPEGs and resized images may depend by a grey level."""
    return f"Pillow {importlib.metadata.version('pillow')}"


def decoder() -> str:
    """What decoded images depend on: Pillow's version, and what is made of orientation and transparency."""
    return f"{pillow_version()}, {DECODING}"


def resize_identity(size: Size | None, fit: Fit = "stretch") -> dict[str, object]:
    """What resizing to `size` adds to a set's identity in the cache: nothing if there is none."""
    if size is None:
        return {}
    return {"size": size, "resized by": pillow_version()} | ({} if fit == "stretch" else {"fit": fit})


class Decoded(NamedTuple):
    """Images decoded: uint8 `[n, height, width, channels]`, and how many of them lost their proportions."""

    image: np.ndarray
    stretched: int


STRETCHED = "proportions"
"""The key of a set's provenance under which lost proportions are recorded."""


def stretched_provenance(stretched: int, images: int, size: Size | None, fit: Fit) -> dict[str, str]:
    """What a set's provenance says where so many of its images lost their proportions; nothing if none did."""
    if not stretched or size is None or fit != "stretch":
        return {}
    return {STRETCHED: f"{stretched:,} of {images:,} images were stretched to {size[0]}x{size[1]}"}


def decode_all(
    sources: Sequence[tuple[str, bytes]], size: Size | None, fit: Fit = "stretch", channels: int | None = None
) -> Decoded:
    """Encoded images of one size, as an array.

    Args:
      sources: (name, encoded bytes) of each image.
      size: (height, width) to resize to; None demands that all are of one size.
      fit: what happens to images of other proportions.
      channels: 1 or 3; None for 1 if every image is grey, else 3.

    Returns:
      the images in the order given, and how many had other proportions than `size`.

    Raises:
      InputError: naming the first image that can't be read, or two whose sizes differ.
    """

    def decode(source: tuple[str, bytes]) -> tuple[np.ndarray, bool]:
        image = decode_image(source[1], source[0])
        pixels = to_array(image, channels or (1 if image.mode == "L" else 3), size, fit)
        return pixels, _stretches((image.height, image.width), size)

    if sum(len(content) for _, content in sources) < 4096 * len(sources):
        found = [decode(source) for source in sources]  # threads slow tiny images down: 1.5 times at 32x32
    else:
        with concurrent.futures.ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            found = list(pool.map(decode, sources))
    images = [image for image, _ in found]
    for (name, _), image in zip(sources, images, strict=True):
        if image.shape[:2] != images[0].shape[:2]:
            (h0, w0), (h1, w1) = images[0].shape[:2], image.shape[:2]
            raise InputError(
                f"images differ in size: {sources[0][0]} is {h0}x{w0} and {name} is {h1}x{w1} (height x width);"
                " give a size to resize to, or stream them with a crop (--data.crop)"
            )
    result = np.empty((len(images), *images[0].shape[:2], max(image.shape[2] for image in images)), np.uint8)
    for i, image in enumerate(images):
        result[i] = image  # a grey image among coloured ones is repeated in all channels
    return Decoded(result, sum(stretched for _, stretched in found))


def resize_dataset(dataset: Dataset, size: Size | None, fit: Fit = "stretch") -> Dataset:
    """`dataset` with every image of `size` (height, width), by Pillow's antialiased bilinear filter; None keeps it."""
    if size is None:
        return dataset
    resized: dict[str, Any] = {name: _resize(arrays, size, fit) for name, arrays in dataset.splits().items()}
    old = dataset.train.image.shape[1:3]
    if _stretches((old[0], old[1]), size):
        images = sum(len(arrays) for arrays in dataset.splits().values())
        resized["provenance"] = dataset.provenance | stretched_provenance(images, images, size, fit)
    return dataclasses.replace(dataset, **resized)


def _resize(arrays: Arrays, size: Size, fit: Fit) -> Arrays:
    from PIL import Image

    n, *old, channels = arrays.image.shape
    if tuple(old) == size:
        return arrays
    image = np.empty((n, *size, channels), np.uint8)
    for i in range(n):
        source = arrays.image[i, ..., 0] if channels == 1 else arrays.image[i]
        image[i] = to_array(Image.fromarray(source), channels, size, fit)
    return Arrays(image, arrays.label)
