"""Anyone's images, from a folder and from tars."""

import ast
import os
import pathlib
import re
import tarfile

import numpy as np
import pytest

from cnnjax import cli, data
from cnnjax.data.folder import open_files
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


@pytest.fixture
def huge(tmp_path, files, pictures):
    """A folder of images, one of which has a byte too many; it takes no room on disk."""
    folder = files.tree(tmp_path / "f", pictures | {"train/cat/big.png": pictures["train/cat/0.png"]})
    os.truncate(folder / "train/cat/big.png", 2**30 + 1)
    return folder


def test_a_file_larger_than_any_image_is_not_read(huge, capsys):
    message = r"image .*train/cat/big\.png'? has 1,073,741,825 bytes, allowed: up to 1,073,741,824$"
    with pytest.raises(InputError, match=message):
        data.load("folder", raw_dir=huge)
    with pytest.raises(InputError, match=message):
        data.open_image(huge / "train/cat/big.png", 5, 5, 3)
    with pytest.raises(InputError, match=message):
        data.open_photo(huge / "train/cat/big.png", crop=4, resize=4)
    source = data.open_photo_set("folder", raw_dir=huge).train.source
    with pytest.raises(InputError, match=message):
        [source[i] for i in range(len(source))]
    with pytest.raises(SystemExit) as left:
        cli.main(["data", "show", "folder", "--raw-dir", str(huge)])
    assert left.value.code == 2
    assert re.search(message, capsys.readouterr().err.splitlines()[-1])


@pytest.mark.parametrize("opening", [data.load, data.open_photo_set])
def test_a_large_file_of_another_name_is_passed_over(opening, huge, capsys):
    (huge / "train/cat/big.png").rename(huge / "train/cat/all.zip")
    assert len(opening("folder", raw_dir=huge).train) == 5
    assert "1 files that are no images of a class (train/cat/all.zip)" in capsys.readouterr().err


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


STRAY = (
    "notes.txt",
    "train/notes.txt",
    "train/Thumbs.db",
    "train/cat/Thumbs.db",
    "train/cat/desktop.ini",
    "test/cat/x",
)
HIDDEN = ("train/.DS_Store", "train/cat/._0.png", ".git/config")


@pytest.mark.parametrize("form", ["folder", "tar", "stream"])
def test_stray_files_are_passed_over_with_a_line(form, tmp_path, files, pictures, capsys):
    whole = pictures | dict.fromkeys((*STRAY, *HIDDEN), b"x") | {"train/dog/photo": pictures["train/dog/0.png"]}
    if form == "tar":
        files.tar(tmp_path / "x.tar", whole)
        dataset = data.load("folder", raw_dir=tmp_path / "x.tar")
    elif form == "folder":
        dataset = data.load("folder", raw_dir=files.tree(tmp_path / "f", whole))
    else:
        dataset = data.open_photo_set("folder", raw_dir=files.tree(tmp_path / "f", whole))
    said = capsys.readouterr().err
    assert "holds images of 2 classes: 6 in train, 3 in test" in said
    assert "6 files that are no images of a class (notes.txt, test/cat/x, train/Thumbs.db, …)" in said
    assert ("2 hidden files" in said) == (form != "tar")
    assert (len(dataset.train), len(dataset.test)) == (6, 3)  # a name without an ending is looked into


def test_stray_files_do_not_change_what_a_stream_is(tmp_path, files, pictures):
    before = data.open_photo_set("folder", raw_dir=files.tree(tmp_path / "f", pictures)).sha256
    files.tree(tmp_path / "f", {"train/cat/Thumbs.db": b"x", "train/.DS_Store": b"x"})
    assert data.open_photo_set("folder", raw_dir=tmp_path / "f").sha256 == before
    files.tree(tmp_path / "f", {"train/cat/9.png": b"x"})
    assert data.open_photo_set("folder", raw_dir=tmp_path / "f").sha256 != before


def test_a_class_in_a_format_that_is_not_read_is_not_lost(tmp_path, files, pictures):
    with pytest.raises(InputError, match=r"class 'fox' of train has no images, only files such as train/fox/0.heic"):
        data.load("folder", raw_dir=files.tree(tmp_path / "f", pictures | {"train/fox/0.heic": b"x"}))


@pytest.mark.parametrize("form", ["folder", "tar", "stream"])
def test_a_flat_folder_is_a_training_set(form, tmp_path, files, pictures, capsys):
    flat = {name.partition("/")[2]: content for name, content in pictures.items() if name.startswith("train")}
    flat |= {"README": b"x", ".DS_Store": b"x"}
    if form == "tar":
        files.tar(tmp_path / "x.tar", {f"pets/{name}": content for name, content in flat.items()})
        dataset = data.load("folder", raw_dir=tmp_path / "x.tar")
    else:
        root = files.tree(tmp_path / "f", flat)
        opening = data.open_photo_set if form == "stream" else data.load
        dataset = opening("folder", raw_dir=root)
    assert (len(dataset.train), dataset.test, dataset.validation, dataset.classes) == (5, None, None, ("cat", "dog"))
    assert "without splits: all are training images, of which --data.validation and" in capsys.readouterr().err


def test_only_what_is_needed(tmp_path, files, pictures):
    """A folder with test/ alone, for an evaluation; from the cache too."""
    only = {name: content for name, content in pictures.items() if name.startswith("test")}
    root = files.tree(tmp_path / "f", only)
    files.tar(tmp_path / "x.tar", only)
    for path in (root, tmp_path / "x.tar", tmp_path / "x.tar"):
        dataset = data.load("folder", raw_dir=path, needed="test")
        assert (dataset.classes, len(dataset.test)) == (("cat", "dog"), 3)
        with pytest.raises(InputError, match=r"no split 'train', only test"):
            data.load("folder", raw_dir=path)
        with pytest.raises(InputError, match=r"no split 'validation', only test"):
            data.load("folder", raw_dir=path, needed="validation")
    assert len(data.open_photo_set("folder", raw_dir=root, needed="test").test) == 3
    assert len(data.open_photos("folder", "test", raw_dir=root)) == 3
    with pytest.raises(InputError, match=r"no split 'train', only test"):
        data.open_photo_set("folder", raw_dir=root)


def test_links_to_folders_above(tmp_path, files, pictures):
    root = files.tree(tmp_path / "f", pictures)
    for name in "abc":
        (root / "train" / name).symlink_to(root)
    for opening in (data.load, data.open_photo_set):
        with pytest.raises(InputError, match=r"train/[abc] is a link to a folder that it lies in"):
            opening("folder", raw_dir=root)
    deep = {name.replace("dog", "a/b/c/d"): content for name, content in pictures.items()}
    other = files.tree(tmp_path / "g", deep)
    with pytest.raises(InputError, match=r"folders deep"):
        data.load("folder", raw_dir=other)
    os.mkfifo(tmp_path / "pipe")
    linked = files.tree(tmp_path / "h", pictures)
    (linked / "train" / "cat" / "9.png").symlink_to(tmp_path / "pipe")
    with pytest.raises(InputError, match=r"9.png is no file, but a pipe"):
        data.load("folder", raw_dir=linked)


NFC, NFD = "K\u00e4se", "Ka\u0308se"


def test_classes_that_look_alike(tmp_path, files, pictures, capsys):
    def named(train, test):
        return {
            name.replace("train/cat", f"train/{train}").replace("test/cat", f"test/{test}"): content
            for name, content in pictures.items()
        }

    root = files.tree(tmp_path / "f", named(NFC, NFD))
    for opening in (data.load, data.open_photo_set):
        dataset = opening("folder", raw_dir=root)
        assert (dataset.classes, len(dataset.test)) == ((NFC, "dog"), 3)
        assert "class 'Ka\\u0308se' of test is taken for 'K\\xe4se', which looks alike" in capsys.readouterr().err
    files.tree(root, {f"train/{NFD}/0.png": pictures["train/cat/0.png"]})
    for opening in (data.load, data.open_photo_set):
        with pytest.raises(InputError, match=r"the classes .*Ka.*u0308se' and .* look alike"):
            opening("folder", raw_dir=root)


@pytest.mark.parametrize("name", ["\x1b[31mcat", "cat\n", "a\u202eb", "a\u2028b", "\x07"])
def test_class_names_that_can_not_be_printed(name, tmp_path, files, pictures):
    changed = {path.replace("cat", name): content for path, content in pictures.items()}
    root = files.tree(tmp_path / "f", changed)
    for opening in (data.load, data.open_photo_set):
        with pytest.raises(InputError, match="has a character that can't be printed in its name") as error:
            opening("folder", raw_dir=root)
        assert str(error.value).isprintable()


@pytest.mark.parametrize("fit", ["stretch", "letterbox", "crop"])
def test_proportions(fit, tmp_path, files, capsys):
    """4x8, white in its middle half, as 4x4: squashed, between bars, or without its ends; said each time."""
    wide = np.zeros((4, 8, 3), np.uint8)
    wide[:, 2:6] = 255
    members = {f"train/{kind}/0.png": files.png(wide) for kind in ("cat", "dog")}
    members["train/cat/1.png"] = files.png(wide[:, :4])
    root = files.tree(tmp_path / "f", members)
    for _ in range(2):
        found = data.load("folder", raw_dir=root, size=(4, 4), fit=fit).train.image[0, ..., 0] > 127
        said = capsys.readouterr().err
        assert ("2 of 3 images were stretched to 4x4 and lost their proportions; --data.fit" in said) == (
            fit == "stretch"
        )
    expected = {"stretch": [0, 1, 1, 0], "letterbox": [0, 1, 1, 0], "crop": [1, 1, 1, 1]}[fit]
    assert found[1].tolist() == list(map(bool, expected))
    assert found[0].tolist() == [bool(x) and fit != "letterbox" for x in expected]
    opened = data.open_image(root / "train/cat/0.png", 4, 4, 3, fit)
    np.testing.assert_array_equal(opened[..., 0] > 127, found)
    with pytest.raises(InputError, match="unknown fit 'squash'"):
        data.load("folder", raw_dir=root, size=(4, 4), fit="squash")


def test_a_stream_is_held_to_names_and_sizes(tmp_path, files, pictures):
    """What docs/imagenet.md promises: contents restored go on, a length that was another at the start does not."""
    root = files.tree(tmp_path / "f", pictures)
    path, before = root / "train/cat/0.png", data.open_photo_set("folder", raw_dir=root).sha256
    good = path.read_bytes()
    path.write_bytes(bytes(len(good)))
    assert data.open_photo_set("folder", raw_dir=root).sha256 == before
    path.write_bytes(good[:-10])
    assert data.open_photo_set("folder", raw_dir=root).sha256 != before
    path.write_bytes(good)
    assert data.open_photo_set("folder", raw_dir=root).sha256 == before


@pytest.mark.parametrize("opening", [lambda folder: data.load("folder", raw_dir=folder), open_files])
def test_names_of_files_reach_the_terminal_as_text(opening, tmp_path, files, pictures, capsys):
    """What a terminal would obey, such as a change of its title, is shown; a line break begins no line."""
    opening(files.tree(tmp_path / "f", pictures | {"train/cat/a\x1b]0;owned\x07\nb.txt": b"x"}))
    counts, passed = capsys.readouterr().err.splitlines()
    assert counts == f"cnnjax: {tmp_path / 'f'} holds images of 2 classes: 5 in train, 3 in test"
    assert passed.endswith(r": passed over: 1 files that are no images of a class (train/cat/a\x1b]0;owned\x07\nb.txt)")


def test_lines_about_data_are_said_by_the_terminal_s_rules():
    """`terminal.say` escapes and wraps them; a download's progress alone, of our own names, is rewritten in place."""
    printing = [
        (path.name, node.lineno)
        for path in pathlib.Path(data.__file__).parent.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert {name for name, _ in printing} <= {"originals.py"}


def test_what_was_passed_over_is_shown_once(tmp_path, files, pictures, capsys):
    folder = files.tree(tmp_path / "f", pictures | {"README.md": b"x", "train/cat/.hidden": b"x"})
    with pytest.raises(SystemExit) as left:
        cli.main(["data", "show", "folder", "--raw-dir", str(folder)])
    assert left.value.code == 0
    out, err = capsys.readouterr()
    line = "passed over: 1 files that are no images of a class (README.md) and 1 hidden files"
    assert f"  {line}\n" in out
    assert f"cnnjax: {folder}: {line}\n" in err
