"""Data: sources by name, the order of examples, and augmentation.

>>> dataset = cnnjax.data.load("digits")
>>> train, validation = cnnjax.data.split(dataset.train, 0.1, seed=0)

`order` says which examples a step sees; `augment` changes images inside the compiled step. Sets too large for memory
are opened by `open_photo_set` or `open_photos` and streamed by `photos.train_batches` and `photos.eval_batches`.
"""

from cnnjax.data import photos
from cnnjax.data.arrays import Arrays, Dataset, brightness, channel_mean_std, check, held_out, sha256, split
from cnnjax.data.images import open_image
from cnnjax.data.order import batch_indices, eval_batches
from cnnjax.data.photos import Photos, PhotoSet, open_photo, open_photo_set, open_photos
from cnnjax.data.sources import DATASETS, load, names, summaries
from cnnjax.data.tfds import prepare

__all__ = [
    "DATASETS",
    "Arrays",
    "Dataset",
    "PhotoSet",
    "Photos",
    "batch_indices",
    "brightness",
    "channel_mean_std",
    "check",
    "eval_batches",
    "held_out",
    "load",
    "names",
    "open_image",
    "open_photo",
    "open_photo_set",
    "open_photos",
    "photos",
    "prepare",
    "sha256",
    "split",
    "summaries",
]
