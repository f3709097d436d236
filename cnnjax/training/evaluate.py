"""The metrics of a loaded run on a split of its data, or of other data with its classes."""

import dataclasses
import warnings
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from cnnjax import data as datasets
from cnnjax.ops.errors import InputError, unknown
from cnnjax.training import ambient, metrics, setup
from cnnjax.training import code as codes
from cnnjax.training import mesh as meshes
from cnnjax.training.feed import evaluate_split, make_feed

if TYPE_CHECKING:
    from cnnjax.training.load import LoadedRun


def evaluate(
    run: "LoadedRun",
    split: str = "test",
    *,
    name: str | None = None,
    dataset: datasets.Dataset | datasets.PhotoSet | None = None,
    **where: Any,
) -> dict[str, Any]:
    """The accuracy and loss of a run over all images of a split.

    Data that are not those that the run was made with, by their sha256, are a warning, unless a set is named.

    Args:
      run: as loaded.
      split: "train", "validation" or "test".
      name: of another data set than the run's own.
      dataset: the data, in place of reading those that the run names.
      **where: `raw_dir`, `data_dir`, `cache_dir`, `workers` of the configuration's data, where they differ from the
        run's.

    Returns:
      `step`, `data`, `split`, `examples`, `loss`, and where there are classes `accuracy`, `top5`, `class_accuracy`,
      that of the examples of each class by its name, and their mean `balanced_accuracy`; `same_data`, which is None
      for another set, or where that is not known; and `same_code` of the loaded run.

    Raises:
      InputError: there is no such set or split, or its images or classes are not of the run's kind.
    """
    given = {field: value for field, value in where.items() if value is not None}
    if name is not None:
        given = {"raw_dir": None, "data_dir": None, "name": name} | given  # the run's own folders hold its own set
    if split == "test" or (name is not None and split != "validation"):
        given["validation"] = 0.0  # nothing has to be held out, and there may be nothing to hold it out of
    config = dataclasses.replace(
        run.config,
        data=dataclasses.replace(run.config.data, **given),
        train=dataclasses.replace(run.config.train, batch_size=1),  # no matter how few images there are to train on
    )
    named = config.data.name
    ours = named.startswith("tfds:") or codes.is_ours(datasets.DATASETS.get(named))
    if run.not_executed and not ours and name is None and dataset is None:
        raise InputError(f"{run.folder}: its data {config.data.name!r} were defined in {run.not_executed}")
    dataset = setup.load_data(config, split) if dataset is None else dataset
    splits, derived = setup.prepare(config, dataset)
    if split not in splits:
        raise unknown("split", split, splits)
    if derived.image_shape != run.info.image_shape:
        raise InputError(
            f"data.name: images of {config.data.name} are {derived.image_shape}, allowed: {run.info.image_shape}, "
            f"as the run's"
        )
    now, then = derived.sha256, run.info.sha256
    if _stands_for_train(split, dataset):  # what is evaluated may be the run's all the same
        now, then = ((of.split_sha256 or {}).get(split) for of in (derived, run.info))
    same = None if name is not None or now is None or then is None else now == then
    if now and then and same is False:
        warnings.warn(
            f"these are not the data that {run.folder} was made with: their sha256 is {now[:16]}…, it was {then[:16]}…",
            stacklevel=2,
        )
    elif same and run.unsealed and config.data.limit is not None:
        same = None
        warnings.warn(
            f"{run.folder} is of an earlier version of cnnjax, of which some took the first {config.data.limit:,} "
            f"images of a split for data.limit: these, from all over the split, may be other ones",
            stacklevel=2,
        )
    examples = _labelled_as(run.info, splits[split], derived, config.data.name)
    with ambient.pinned(double=config.train.dtype == "float64"):
        here = len(jax.devices())  # the run may have had more
        mesh = meshes.make_mesh(min(config.run.devices or here, here))
        sums, _ = evaluate_split(
            run.variables,
            make_feed(examples, mesh, config.data),
            model=run.model,
            loss=metrics.make_loss(config.train.loss, 0.0),
            preprocess=run.normalize,
            batch_size=config.run.eval_batch_size,
            by_class=bool(run.info.classes),
        )
    return {
        "step": run.step,
        "data": config.data.name,
        "same_data": same,
        "same_code": run.same_code,
        "split": split,
        "examples": int(sums["count"]),
        **metrics.averages(sums, run.info.num_classes),
        **_by_class(sums, run.info.classes),
    }


def _by_class(sums: dict[str, Any], classes: tuple[str, ...]) -> dict[str, Any]:
    """The part of each class's examples that are recognized, and the mean of these parts."""
    if not classes:
        return {}
    rows = zip(classes, sums["class_correct"], sums["class_count"], strict=False)  # a network may have more outputs
    parts = {name: float(correct / count) for name, correct, count in rows if count}
    return {"balanced_accuracy": sum(parts.values()) / len(parts), "class_accuracy": parts}


def _stands_for_train(split: str, dataset: datasets.Dataset | datasets.PhotoSet) -> bool:
    """Whether a set in memory lacks its training images, for which those of the split stand (`cnnjax.data.load`)."""
    if split == "train" or not isinstance(dataset, datasets.Dataset):
        return False
    here = dataset.splits().get(split)
    pairs = ((dataset.train.image, here.image), (dataset.train.label, here.label)) if here else ()
    return bool(pairs) and all(np.array_equal(a, b) for a, b in pairs)


def _labelled_as(run: setup.Derived, examples: setup.Split, derived: setup.Derived, name: str) -> setup.Split:
    """The examples of the set `name` with the labels that its classes have in a run."""
    if not run.classes or not derived.classes:
        if derived.num_classes != run.num_classes or bool(run.classes) != bool(derived.classes):
            raise InputError(f"data.name: labels of {name} are not of the kind that the run was trained on")
        return examples
    label = {class_name: i for i, class_name in enumerate(run.classes)}
    for class_name in derived.classes:
        if class_name not in label:
            allowed = ", ".join(run.classes[:20]) + ", …" * (len(run.classes) > 20)
            raise InputError(f"data.name: {name} has the class {class_name!r}, allowed: {allowed}")
    order = np.array([label[class_name] for class_name in derived.classes], np.int32)
    if isinstance(examples, datasets.Photos):
        return examples.relabelled(order, run.classes)
    return dataclasses.replace(examples, label=order[examples.label])
