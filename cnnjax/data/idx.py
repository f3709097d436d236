"""The idx format of MNIST and its successors: a header of magic number and dimensions, then the values."""

import gzip
import math
import struct
import zlib

import numpy as np

from cnnjax.ops.errors import InputError

# The third byte of the magic number names the type of the values, which are big-endian.
# Source: the description of the format by Y. LeCun, C. Cortes and C. Burges on the MNIST page.
_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def parse_idx(content: bytes, where: str) -> np.ndarray:
    """The array in an idx file.

    Args:
      content: the file's bytes, gzipped or not.
      where: the file's name, for errors.

    Returns:
      an array of the shape and type that the header states; read-only.

    Raises:
      InputError: if the gzip stream is damaged or cut, the magic number is not idx's, or header and length disagree.
    """
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise InputError(f"{where}: the gzip stream is damaged or cut short ({error})") from None
    if len(content) < 4 or content[0] or content[1] or content[2] not in _TYPES or not content[3]:
        raise InputError(f"{where} is not an idx file: it begins with {content[:4].hex(' ') or 'nothing'}")
    dtype, rank = np.dtype(_TYPES[content[2]]), content[3]
    offset = 4 + 4 * rank
    if len(content) < offset:
        raise InputError(f"{where}: the idx header is cut short: {len(content)} bytes of {offset}")
    shape = struct.unpack(f">{rank}I", content[4:offset])
    expected = offset + math.prod(shape) * dtype.itemsize
    if len(content) != expected:
        raise InputError(f"{where}: the header states shape {shape}, {expected} bytes; the file has {len(content)}")
    return np.frombuffer(content, dtype, offset=offset).reshape(shape)


def parse_images_labels(images: bytes, labels: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    """A pair of idx files, images and labels, as `(uint8 [n, height, width, 1], int32 [n])`.

    Raises:
      InputError: if either is not such a file, or they differ in length.
    """
    image, label = parse_idx(images, f"{where} images"), parse_idx(labels, f"{where} labels")
    if image.ndim != 3 or image.dtype != np.uint8:
        raise InputError(
            f"{where} images: received {image.dtype} of shape {image.shape}, allowed uint8 [n, height, width]"
        )
    if label.ndim != 1 or label.dtype != np.uint8:
        raise InputError(f"{where} labels: received {label.dtype} of shape {label.shape}, allowed uint8 [n]")
    if len(image) != len(label):
        raise InputError(f"{where}: {len(image)} images but {len(label)} labels")
    return image[..., None], label.astype(np.int32)
