"""MNIST and Fashion-MNIST, from their original idx files.

Y. LeCun, L. Bottou, Y. Bengio, P. Haffner: Gradient-based learning applied to document recognition, 1998.
H. Xiao, K. Rasul, R. Vollgraf: Fashion-MNIST, arXiv:1708.07747.
"""

from cnnjax.data.arrays import Arrays, Dataset
from cnnjax.data.cache import cached, originals_directory
from cnnjax.data.idx import parse_images_labels
from cnnjax.data.images import Size, resize_dataset, resize_identity
from cnnjax.data.originals import ORIGINALS, Path, fetch_originals, read_originals

CLASSES = {
    "mnist": tuple("0123456789"),
    "fashion_mnist": (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
}


def load_mnist(
    name: str = "mnist",
    *,
    raw_dir: Path | None = None,
    data_dir: Path | None = None,
    cache_dir: Path | None = None,
    size: Size | None = None,
) -> Dataset:
    """MNIST (`name="mnist"`) or Fashion-MNIST (`name="fashion_mnist"`): 60,000 and 10,000 grey images of 28x28.

    Args:
      name: which of the two.
      raw_dir: a folder with the four original files, verified each time. Without it: the cache, else a download.
      data_dir: not used by these sets.
      cache_dir: see `cnnjax.data.cache.cache_directory`.
      size: (height, width) to resize to.

    Raises:
      InputError: if the files are missing, not the original ones, or cannot be downloaded.
    """
    contents = read_originals(name, raw_dir) if raw_dir is not None else None

    def build() -> Dataset:
        return resize_dataset(
            decode(name, contents or fetch_originals(name, originals_directory(name, cache_dir))), size
        )

    return cached(name, {"files": _provenance(name), **resize_identity(size)}, build, cache_dir)


def decode(name: str, contents: dict[str, bytes]) -> Dataset:
    """The set `name` from the contents of its four original files."""
    train, test = (
        Arrays(
            *parse_images_labels(
                contents[f"{part}-images-idx3-ubyte.gz"],
                contents[f"{part}-labels-idx1-ubyte.gz"],
                f"{name} {part}",
            )
        )
        for part in ("train", "t10k")
    )
    return Dataset(name, train, test, None, CLASSES[name], _provenance(name))


def _provenance(name: str) -> dict[str, str]:
    return {original.name: original.sha256 for original in ORIGINALS[name]}
