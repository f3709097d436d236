"""Made-up photographs as JPEGs, laid out as ImageNet is: for tests, benchmarks and dry runs, without a network."""

import io
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from cnnjax.data.originals import Path
from cnnjax.data.tfds import prepared_directory
from cnnjax.ops.errors import InputError

CLASSES = ("n01440764", "n01443537", "n01484850", "n01491361", "n01494475")  # ImageNet's first, by their wnid
THOUSAND = (*CLASSES, *(f"n9{i:07}" for i in range(5, 1000)))  # as many as ImageNet has
_VERSION = "5.1.0"  # of TFDS's imagenet2012


def photograph(rng: np.random.Generator, height: int, width: int, roughness: float = 0.75) -> np.ndarray:
    """Smooth shapes with ever finer ones on them, uint8 `[height, width, 3]`.

    Args:
      rng: where the random numbers come from.
      height: in pixels.
      width: in pixels.
      roughness: how strong each octave of detail is, as a share of the coarser one before it. With 0.75 and JPEG
        quality 95, 500x375 pixels take about 110 kB, as ImageNet's do.
    """
    from PIL import Image

    total = np.full((height, width, 3), 118, np.float32)
    contrast, cells, longest = 60.0, 3, max(height, width)
    while cells < 2 * longest:
        shape = max(2, cells * height // longest), max(2, cells * width // longest)
        noise = rng.standard_normal((*shape, 1), np.float32) + 0.35 * rng.standard_normal((*shape, 3), np.float32)
        for c in range(3):  # mostly grey: colours differ less than brightness does
            layer = Image.fromarray(noise[..., c]).resize((width, height), Image.Resampling.BICUBIC)
            total[..., c] += contrast * np.asarray(layer)
        contrast, cells = contrast * roughness, 2 * cells
    return np.clip(total, 0, 255).astype(np.uint8)


def jpeg(pixels: np.ndarray, quality: int = 95) -> bytes:
    """uint8 `[height, width, 3]` as a JPEG file."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return file.getvalue()


def photographs(
    n: int, *, seed: int = 0, longest: int = 500, classes: Sequence[str] = CLASSES
) -> list[tuple[str, bytes, int]]:
    """Made-up photographs: (file name, JPEG, label) of each.

    Args:
      n: how many.
      seed: of their contents, sizes and textures.
      longest: their usual longer side; three quarters of them are `longest` by 3/4 of that, wide or high, the others
        from half to one and a half times as large.
      classes: their names, which are in those of the files, one after the other.
    """
    rng = np.random.default_rng(seed)
    made = []
    for i in range(n):
        factor = 1.0 if rng.random() < 0.75 else rng.uniform(0.5, 1.5)
        sides = round(longest * factor * 0.75), round(longest * factor)
        height, width = sides if rng.random() < 0.7 else sides[::-1]
        label = i % len(classes)
        made.append(
            (f"{classes[label]}_{i}.JPEG", jpeg(photograph(rng, height, width, rng.uniform(0.71, 0.81))), label)
        )
    return made


def write_folder(splits: dict[str, list[tuple[str, bytes, int]]], root: Path) -> pathlib.Path:
    """Write encoded images as `<split>/<class>/<image>`, to be opened as "folder"; `splits` as for `write_imagenet`.

    Returns:
      `root`.
    """
    for split, examples in splits.items():
        for file_name, content, label in examples:
            path = pathlib.Path(root) / split / CLASSES[label] / file_name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return pathlib.Path(root)


def check_absent(data_dir: Path | None) -> None:
    """Raises an `InputError` where an imagenet2012 is prepared already, which may be the real one."""
    root = prepared_directory(data_dir)
    if any((root / "imagenet2012").glob("*/dataset_info.json")):
        raise InputError(f"data_dir: {root} holds an imagenet2012 already, which is left as it is; choose another")


def write_imagenet(
    splits: dict[str, list[tuple[str, bytes, int]]], data_dir: Path | None = None, classes: Sequence[str] = CLASSES
) -> pathlib.Path:
    """Prepare encoded images as TFDS prepares `imagenet2012`, in array_record format, in the order given.

    Args:
      splits: by name ("train", "validation"), (file name, encoded image, label) of each example, as from `photographs`.
      data_dir: where to put it; see `cnnjax.data.tfds.prepared_directory`.
      classes: their names.

    Returns:
      the folder of the prepared set, to be opened as "tfds:imagenet2012" with that data_dir.

    Raises:
      InputError: there is one already, which may be the real one.
    """
    import tensorflow_datasets as tfds

    check_absent(data_dir)
    root = prepared_directory(data_dir)

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # TFDS registers its own under this name
        name = "imagenet2012"
        VERSION = tfds.core.Version(_VERSION)

        def _info(self) -> tfds.core.DatasetInfo:
            features = {
                "image": tfds.features.Image(encoding_format="jpeg"),
                "label": tfds.features.ClassLabel(names=list(classes)),
                "file_name": tfds.features.Text(),
            }
            return tfds.core.DatasetInfo(
                builder=self,
                description="Made-up photographs in the layout of ImageNet.",
                features=tfds.features.FeaturesDict(features),
                supervised_keys=("image", "label"),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {split: self._generate_examples(examples) for split, examples in splits.items()}

        def _generate_examples(self, examples: list[tuple[str, bytes, int]]) -> Any:
            for i, (file_name, content, label) in enumerate(examples):
                yield i, {"image": content, "label": label, "file_name": file_name}

    builder = Builder(data_dir=root, file_format="array_record")
    builder.download_and_prepare(download_dir=root / "downloads" / "made_up", file_format="array_record")
    return pathlib.Path(builder.data_dir)
