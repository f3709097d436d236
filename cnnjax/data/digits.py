"""The 1,797 real handwritten digits that come with scikit-learn: no download.

E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits, 1998, UCI Machine Learning Repository (test part).
"""

import dataclasses
import importlib.metadata

import numpy as np

from cnnjax.data.arrays import Arrays, Dataset, sha256, stratified
from cnnjax.data.cache import cached
from cnnjax.data.images import Size, resize_dataset, resize_identity
from cnnjax.data.originals import Path
from cnnjax.ops.errors import InputError

TEST_EXAMPLES = 360
SPLIT_SEED = 0


def load_digits(
    *,
    raw_dir: Path | None = None,
    data_dir: Path | None = None,
    cache_dir: Path | None = None,
    size: Size | None = None,
) -> Dataset:
    """Digits: 1,437 training and 360 test images of 8x8, grey, ten classes.

    scikit-learn's values 0 to 16 become `round(value * 255 / 16)`. The source has no split; ours is fixed:
    stratified by class, drawn with seed `SPLIT_SEED`.

    Args:
      raw_dir: refused: this set has no raw files.
      data_dir: not used by this set.
      cache_dir: see `cnnjax.data.cache.cache_directory`.
      size: (height, width) to resize to.
    """
    if raw_dir is not None:
        raise InputError(f"raw_dir={str(raw_dir)!r}: 'digits' comes with scikit-learn and takes no raw_dir")
    # Cached though small: importing scikit-learn takes a second.
    identity = {"scikit-learn": importlib.metadata.version("scikit-learn"), **resize_identity(size)}
    return cached("digits", identity, lambda: resize_dataset(_decode(), size), cache_dir)


def _decode() -> Dataset:
    import sklearn.datasets

    source = sklearn.datasets.load_digits()
    image = np.round(source.images * 255 / 16).astype(np.uint8)[..., None]
    label = source.target.astype(np.int32)
    everything = Arrays(image, label)
    test = stratified(label, TEST_EXAMPLES, np.random.default_rng(SPLIT_SEED))
    provenance = {
        "source": f"scikit-learn {importlib.metadata.version('scikit-learn')} load_digits",
        "split": f"{TEST_EXAMPLES} test examples, stratified, seed {SPLIT_SEED}",
    }
    classes = tuple("0123456789")
    dataset = Dataset("digits", everything.take(~test), everything.take(test), None, classes, provenance)
    return dataclasses.replace(dataset, provenance=provenance | {"sha256 of the arrays": sha256(dataset)})
