"""Anyone's images, from a folder and from tars."""

import os
import tarfile

import numpy as np
import pytest

from cnnjax import data
from cnnjax.ops.errors import InputError


def test_folder_tar_and_tars_are_equal(tmp_path, files, pictures):
    whole = pictures | {"val/cat/0.png": pictures["test/cat/0.png"], "README.md": b"hello", "train/.hidden": b"x"}
    files.tree(tmp_path / "folder", whole)
    files.tar(tmp_path / "one.tar.gz", dict(reversed(whole.items())))
    files.tar(tmp_path / "below.tgz", {f"./pets/{name}": content for name, content in whole.items()})
    (tmp_path / "tars").mkdir()
    for split in ("train", "test", "val"):
        files.tar(tmp_path / "tars" / f"{split}.tar.gz", {n: c for n, c in whole.items() if n.startswith(split)})
    loaded = [data.load("folder", raw_dir=tmp_path / name) for name in ("folder", "one.tar.gz", "below.tgz", "tars")]
    first = loaded[0]
    assert first.classes == ("cat", "dog")
    assert first.train.image.shape == (5, 6, 5, 3)
    assert first.train.label.tolist() == [0, 0, 0, 1, 1]
    assert first.test.label.tolist() == [0, 0, 1]
    assert len(first.validation) == 1
    for other in loaded[1:]:
        assert other.classes == first.classes
        for split, arrays in first.splits().items():
            assert np.array_equal(other.splits()[split].image, arrays.image)
            assert np.array_equal(other.splits()[split].label, arrays.label)


def test_grey_only_if_all_are(tmp_path, files, pictures):
    grey = {f"train/{c}/0.png": files.png(np.full((6, 5), 9, np.uint8)) for c in ("cat", "dog")}
    assert data.load("folder", raw_dir=files.tree(tmp_path / "grey", grey)).train.image.shape == (2, 6, 5, 1)
    mixed = grey | {"train/cat/1.png": pictures["train/cat/1.png"]}
    image = data.load("folder", raw_dir=files.tree(tmp_path / "mixed", mixed)).train.image
    assert image.shape == (3, 6, 5, 3)
    assert (image[0] == 9).all()


def test_size(tmp_path, files, pictures):
    pictures["train/cat/7.png"] = files.png(np.full((9, 9, 3), 100, np.uint8))
    files.tree(tmp_path / "f", pictures)
    with pytest.raises(InputError, match=r"train/cat/0.png is 6x5 and train/cat/7.png is 9x9"):
        data.load("folder", raw_dir=tmp_path / "f")
    dataset = data.load("folder", raw_dir=tmp_path / "f", size=(4, 3))
    assert dataset.train.image.shape == (6, 4, 3, 3)
    assert (dataset.train.image[3] == 100).all()


def test_a_change_is_seen(tmp_path, files, pictures):
    folder = files.tree(tmp_path / "f", pictures)
    before = data.load("folder", raw_dir=folder).train.image
    path = folder / "train/cat/0.png"
    path.write_bytes(pictures["train/cat/1.png"])
    os.utime(path, ns=(0, 0))
    after = data.load("folder", raw_dir=folder).train.image
    assert not np.array_equal(before[0], after[0])
    assert np.array_equal(after[0], before[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.clear() or p.update({"LICENSE": b"x"}), "no images"),
        (lambda p: [p.pop(n) for n in list(p) if "dog" in n], "one class only, 'cat'"),
        (lambda p: p.update({"train/cat/bad.png": b"not an image"}), "train/cat/bad.png cannot be read"),
        (lambda p: p.update({"train/cat/cut.png": p["train/cat/0.png"][:60]}), "train/cat/cut.png cannot be read"),
        (lambda p: p.update({"test/bird/0.png": p["train/cat/0.png"]}), "class 'bird' of test is not in train"),
        (lambda p: [p.pop(n) for n in list(p) if "train" in n], "no split 'train', only test"),
        (lambda p: p.update({"extra/cat/0.png": p["train/cat/0.png"]}), "unknown split 'extra'"),
        (lambda p: p.update({"train/0.png": p["train/cat/0.png"]}), "train/0.png is not <split>/<class>/<image>"),
        (
            lambda p: p.update({f"{v}/cat/0.png": p["train/cat/0.png"] for v in ("val", "valid")}),
            "two validation splits",
        ),
    ],
)
@pytest.mark.parametrize("form", ["folder", "tar"])
def test_errors(change, message, form, tmp_path, files, pictures):
    change(pictures)
    if form == "tar":
        path = tmp_path / "x.tar.gz"
        files.tar(path, pictures)
    else:
        path = files.tree(tmp_path / "f", pictures)
    with pytest.raises(InputError, match=message) as error:
        data.load("folder", raw_dir=path)
    assert "\n" not in str(error.value)


def test_more_errors(tmp_path, files, pictures):
    with pytest.raises(InputError, match=r"--data\.raw-dir"):
        data.load("folder")
    with pytest.raises(InputError, match="does not exist"):
        data.load("folder", raw_dir=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="is empty"):
        data.load("folder", raw_dir=tmp_path / "empty")
    (tmp_path / "x.png").write_bytes(b"x")
    with pytest.raises(InputError, match="neither a folder nor a tar"):
        data.load("folder", raw_dir=tmp_path / "x.png")
    files.tar(tmp_path / "x.tar.gz", pictures)
    content = (tmp_path / "x.tar.gz").read_bytes()
    for length in (0, 20, len(content) // 2):
        (tmp_path / "cut.tar.gz").write_bytes(content[:length])
        with pytest.raises(InputError, match=r"cut.tar.gz.*damaged or cut short"):
            data.load("folder", raw_dir=tmp_path / "cut.tar.gz")
    both = files.tree(tmp_path / "both", pictures)
    files.tar(both / "train.tar.gz", pictures)
    with pytest.raises(InputError, match="which is meant"):
        data.load("folder", raw_dir=both)


def test_links_in_a_tar_are_ignored(tmp_path, files, pictures):
    files.tar(tmp_path / "x.tar", pictures)
    with tarfile.open(tmp_path / "y.tar", "w") as target, tarfile.open(tmp_path / "x.tar") as source:
        for member in source:
            target.addfile(member, source.extractfile(member))
        link = tarfile.TarInfo("train/cat/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        target.addfile(link)
    assert len(data.load("folder", raw_dir=tmp_path / "y.tar").train) == 5
    files.tar(tmp_path / "z.tar", {"train/../../x": b"x"})
    with pytest.raises(InputError, match="leads out of the archive"):
        data.load("folder", raw_dir=tmp_path / "z.tar")


def test_open_image(tmp_path, files):
    rgb = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    (tmp_path / "a.png").write_bytes(files.png(rgb))
    assert np.array_equal(data.open_image(tmp_path / "a.png", 6, 5, 3), rgb)
    assert data.open_image(tmp_path / "a.png", 28, 28, 1).shape == (28, 28, 1)
    (tmp_path / "b.png").write_bytes(b"x")
    with pytest.raises(InputError, match=r"b\.png.*cannot be read"):
        data.open_image(tmp_path / "b.png", 6, 5, 3)
    with pytest.raises(InputError, match=r"c\.png.*not there"):
        data.open_image(tmp_path / "c.png", 6, 5, 3)
    with pytest.raises(InputError, match="channels must be 1 or 3"):
        data.open_image(tmp_path / "a.png", 6, 5, 4)
