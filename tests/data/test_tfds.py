"""TensorFlow Datasets: prepared and read where TensorFlow cannot be imported."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from cnnjax import data
from cnnjax.data import tfds as source
from cnnjax.ops.errors import InputError

# Makes TensorFlow look not installed, to find_spec too; and holds everything to not importing it all the same.
WITHOUT_TENSORFLOW = """
import sys

class Hiding:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, *args):
        return None if name.split(".")[0] == "tensorflow" else self.finder.find_spec(name, *args)

sys.meta_path = [Hiding(finder) for finder in sys.meta_path]
import numpy as np
from cnnjax import data
from cnnjax.data import originals, tfds as source
from cnnjax.ops.errors import InputError

def error(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except InputError as e:
        assert "\\n" not in str(e)
        return str(e)
    raise AssertionError("no InputError")

def equal(a, b):
    for split, arrays in a.splits().items():
        assert np.array_equal(arrays.image, b.splits()[split].image), split
        assert np.array_equal(arrays.label, b.splits()[split].label), split
    assert a.classes == b.classes
"""


def run(code, *arguments):
    code = WITHOUT_TENSORFLOW + textwrap.dedent(code) + "\nassert 'tensorflow' not in sys.modules\n"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done


def test_small_set_there_and_back(small_idx, tmp_path):
    folders = {name: small_idx(name, seed) for seed, name in enumerate(("mnist", "fashion_mnist"))}
    known = {n: [vars(f) for f in originals] for n, originals in source_originals().items() if n in folders}
    run(
        """
        import json, pathlib
        root, mnist, fashion, known = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
        for name, files in known.items():
            originals.ORIGINALS[name] = tuple(originals.Original(**file) for file in files)

        assert "not prepared" in error(data.load, "tfds:mnist", data_dir=root / "d")
        assert "cnnjax data prepare mnist" in error(data.load, "tfds:mnist", data_dir=root / "d")
        for name, folder in (("mnist", mnist), ("fashion_mnist", fashion)):
            where = source.prepare(name, folder, root / "d")
            assert where == root / "d" / name / "3.0.1", where
            raw = data.load(name, raw_dir=folder)
            equal(raw, data.load(f"tfds:{name}", data_dir=root / "d"))
            equal(raw, data.load(f"tfds:{name}:3.0.1", data_dir=root / "d"))  # and once more, from the cache
            assert source.prepare(name, folder, root / "d") == where  # prepared already: compared
        assert data.load("tfds:mnist", data_dir=root / "d", size=(14, 10)).train.image.shape == (50, 14, 10, 1)

        assert "takes no raw_dir" in error(data.load, "tfds:mnist", raw_dir=mnist, data_dir=root / "d")
        assert "only 3.0.1" in error(data.load, "tfds:mnist:1.0.0", data_dir=root / "d")
        assert "NAME[/CONFIG][:VERSION]" in error(data.load, "tfds:../x", data_dir=root / "d")
        assert "needs TensorFlow" in error(source.prepare, "cifar10", None, root / "d")
        assert "did you mean 'cifar10'" in error(source.prepare, "cifar1O", None, root / "d")

        # MNIST's examples under Fashion-MNIST's name, as TFDS has been seen to prepare them
        (root / "e" / "fashion_mnist").mkdir(parents=True)
        (root / "d" / "mnist" / "3.0.1").rename(root / "e" / "fashion_mnist" / "3.0.1")
        assert "are not those of fashion_mnist" in error(source.prepare, "fashion_mnist", fashion, root / "e")

        info = root / "d" / "fashion_mnist" / "3.0.1" / "dataset_info.json"
        info.write_text(info.read_text().replace('"array_record"', '"parquet"'))
        assert "parquet format; only array_record" in error(data.load, "tfds:fashion_mnist", data_dir=root / "d")
        """,
        tmp_path,
        folders["mnist"],
        folders["fashion_mnist"],
        json.dumps(known),
    )


def source_originals():
    from cnnjax.data import originals

    return originals.ORIGINALS


def test_other_features(tmp_path):
    run(
        """
        import tensorflow_datasets as tfds
        from PIL import Image

        def write(set_name, features, example, splits=("train", "test")):
            class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
                name = set_name
                VERSION = tfds.core.Version("1.2.3")
                def _info(self):
                    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))
                def _split_generators(self, manager):
                    return {split: self._generate_examples() for split in splits}
                def _generate_examples(self):
                    for i in range(6):
                        yield i, example(i)
            Builder(data_dir=root, file_format="array_record").download_and_prepare(
                download_dir=root + "/x", file_format="array_record")

        root = sys.argv[1]
        image, label = tfds.features.Image(shape=(None, None, 3)), tfds.features.ClassLabel(names=["a", "b"])
        picture = lambda i: Image.fromarray(np.full((4 + i % 2, 4, 3), i, np.uint8))
        write("sizes", {"image": image, "label": label}, lambda i: {"image": picture(i), "label": i % 2})
        assert "images differ in size" in error(data.load, "tfds:sizes", data_dir=root)
        dataset = data.load("tfds:sizes", data_dir=root, size=(5, 5))
        assert dataset.train.image.shape == (6, 5, 5, 3) and dataset.classes == ("a", "b")
        assert sorted(dataset.train.image[:, 0, 0, 0]) == list(range(6))

        write("text", {"image": image, "caption": tfds.features.Text()},
              lambda i: {"image": picture(0), "caption": "x"})
        message = error(data.load, "tfds:text", data_dir=root)
        assert "one ClassLabel" in message and "caption: Text" in message, message

        write("unlabelled", {"image": image, "label": label}, lambda i: {"image": picture(0), "label": i % 2},
              splits=("test",))
        assert "no split 'train', only test" in error(data.load, "tfds:unlabelled", data_dir=root)

        write("many", {"image": image, "fine": label, "coarse": label},
              lambda i: {"image": picture(0), "fine": 0, "coarse": 1})
        assert "coarse: ClassLabel" in error(data.load, "tfds:many", data_dir=root)
        """,
        tmp_path,
    )


@pytest.mark.slow
def test_real_mnist_has_the_raw_values(real_data, tmp_path):
    run(
        """
        source.prepare("mnist", sys.argv[1], sys.argv[2])
        equal(data.load("mnist", raw_dir=sys.argv[1]), data.load("tfds:mnist", data_dir=sys.argv[2]))
        """,
        real_data("mnist"),
        tmp_path / "d",
    )


def test_configurations_and_versions(tmp_path):
    for path in ("a/x/1.0.0", "a/y/1.0.0", "b/2.0.0", "b/10.0.0", "c/only/1.0.0"):
        (tmp_path / path).mkdir(parents=True)
        (tmp_path / path / "dataset_info.json").write_text("{}")
    assert source._find("b", tmp_path) == tmp_path / "b/10.0.0"
    assert source._find("b:2.0.0", tmp_path) == tmp_path / "b/2.0.0"
    assert source._find("a/x", tmp_path) == tmp_path / "a/x/1.0.0"
    assert source._find("c", tmp_path) == tmp_path / "c/only/1.0.0"
    with pytest.raises(InputError, match="several configurations are prepared, name one: x, y"):
        source._find("a", tmp_path)


def test_importing_is_light():
    run("assert not {'tensorflow_datasets', 'sklearn', 'PIL'} & set(sys.modules)")


def test_names_mention_tfds():
    assert "tfds:NAME" in data.names()
