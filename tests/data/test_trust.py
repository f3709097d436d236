"""Data bring no code to run, and damage to archives and prepared sets is found."""

import io
import json
import lzma
import struct
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image, ImageFile

from cnnjax import data
from cnnjax.data import archive, features, images, photos, synthetic
from cnnjax.ops.errors import InputError


@pytest.fixture(scope="module")
def made():
    return {
        split: synthetic.photographs(n, seed=n, longest=40, classes=synthetic.CLASSES[:2])
        for split, n in (("train", 6), ("validation", 4))
    }


@pytest.fixture
def prepared(made, tmp_path):
    """(data_dir, the folder of a prepared set in it)."""
    synthetic.write_imagenet(made, tmp_path / "prepared")
    return tmp_path / "prepared", tmp_path / "prepared" / "imagenet2012" / "5.1.0"


def load(data_dir):
    return data.load("tfds:imagenet2012", data_dir=data_dir, size=(8, 8))


def stream(data_dir):
    return photos.open_photo_set("tfds:imagenet2012", data_dir=data_dir)


# ---- code -----------------------------------------------------------------------------------------------------------

EVIL = "evil_features.Feature"
NAMED = {
    "as a feature": lambda old: old | {"pythonClassName": EVIL},
    "by its other name": lambda old: {"python_class_name": EVIL, "featuresDict": old["featuresDict"]},
    "within": lambda old: {**old, "featuresDict": {"features": {"image": {"pythonClassName": EVIL}}}},
    "of old": lambda old: {"type": EVIL, "content": {}},
    "of old, within": lambda old: {
        "type": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
        "content": {"image": {"type": EVIL, "content": {}}},
    },
    "in text": lambda old: {
        "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
        "jsonFeature": {"json": json.dumps({"image": {"type": EVIL, "content": {}}})},
    },
    "a module of TFDS that is no feature": lambda old: old | {"pythonClassName": "tensorflow_datasets.testing.Dummy"},
}


@pytest.mark.parametrize("how", NAMED)
@pytest.mark.parametrize("opening", [load, stream])
def test_no_code_runs_from_a_prepared_set(opening, how, prepared, tmp_path, monkeypatch):
    root, directory = prepared
    (tmp_path / "evil_features.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    path = directory / "features.json"
    path.write_text(json.dumps(NAMED[how](json.loads(path.read_text()))))
    with pytest.raises(
        InputError, match=r"features.json names the class .*allowed: the feature classes of TFDS"
    ) as error:
        opening(root)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()
    assert "evil_features" not in sys.modules


def test_tfds_own_features_are_allowed():
    core = "tensorflow_datasets.core.features."
    assert {core + "image_feature.Image", core + "class_label_feature.ClassLabel"} <= features.own_features()
    assert all(name.startswith(core) for name in features.own_features())


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n"


def test_postscript_is_no_image(tmp_path, files, pictures, monkeypatch):
    """Pillow would have Ghostscript execute it."""
    from PIL import EpsImagePlugin

    def started(*_, **__):
        raise AssertionError("Ghostscript was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", started)
    (tmp_path / "photo.jpg").write_bytes(POSTSCRIPT)
    with Image.open(tmp_path / "photo.jpg") as image:
        assert image.format == "EPS"  # which is what it would be taken for
    with pytest.raises(InputError, match=r"photo.jpg' cannot be read: it is in none of the formats .*JPEG"):
        data.open_image(tmp_path / "photo.jpg", 4, 4, 3)
    with pytest.raises(InputError, match=r"photo.jpg' cannot be read"):
        data.open_photo(tmp_path / "photo.jpg", crop=4, resize=4)
    folder = files.tree(tmp_path / "f", pictures | {"train/cat/photo.jpg": POSTSCRIPT})
    with pytest.raises(InputError, match=r"train/cat/photo.jpg cannot be read"):
        data.load("folder", raw_dir=folder)


def test_postscript_in_a_prepared_set(made, tmp_path, monkeypatch):
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: 1 / 0)
    changed = {split: [(name, POSTSCRIPT, label) for name, _, label in some] for split, some in made.items()}
    synthetic.write_imagenet(changed, tmp_path)
    with pytest.raises(InputError, match=r"'train', example 0 cannot be read: it is in none of the formats"):
        load(tmp_path)


# ---- prepared sets --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opening", [load, stream])
def test_shards_of_another_split_or_number(opening, prepared):
    root, directory = prepared
    (train,), (validation,) = (list(directory.glob(f"*-{split}.*")) for split in ("train", "validation"))
    good, info = train.read_bytes(), directory / "dataset_info.json"
    train.write_bytes(validation.read_bytes())
    with pytest.raises(InputError, match=r"split 'train': .* has 4 examples, but 6 were prepared"):
        opening(root)
    train.write_bytes(good)
    before = info.read_text()
    info.write_text(before.replace('"6"', '"9999"'))
    with pytest.raises(InputError, match=r"has 6 examples, but 9999 were prepared"):
        opening(root)
    info.write_text(before)
    assert len(opening(root).train) == 6


def test_a_shard_with_as_many_examples_of_another_set(made, tmp_path):
    """Only the length of the examples tells them apart, which is known when all are read."""
    synthetic.write_imagenet(made, tmp_path / "a")
    synthetic.write_imagenet(made | {"train": synthetic.photographs(6, seed=9, longest=40)}, tmp_path / "b")
    name = "imagenet2012/5.1.0/imagenet2012-train.array_record-00000-of-00001"
    (tmp_path / "a" / name).write_bytes((tmp_path / "b" / name).read_bytes())
    with pytest.raises(InputError, match=r"'train': its examples have .* bytes, but .* were prepared"):
        load(tmp_path / "a")


def test_a_copy_of_another_split_is_said(made, tmp_path, capsys):
    synthetic.write_imagenet({"train": made["train"], "validation": made["train"]}, tmp_path)
    stream(tmp_path)
    assert "is a copy of" in capsys.readouterr().err


@pytest.mark.parametrize("opening", [load, stream])
def test_lost_names_of_classes_are_said(opening, prepared, capsys):
    root, directory = prepared
    (names,) = directory.glob("*.labels.txt")
    text = names.read_text()
    names.write_text(text.partition("\n")[0])
    with pytest.raises(InputError, match=r"has 5 classes but 1 names for them, in .*label.labels.txt"):
        opening(root)
    names.unlink()
    capsys.readouterr()
    classes = opening(root).classes
    assert classes == tuple(map(str, range(len(classes))))
    assert "has no names for its" in capsys.readouterr().err


# ---- archives -------------------------------------------------------------------------------------------------------


def packed(members, compression="", kind=tarfile.GNU_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=f"w:{compression}", format=kind) as target:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            target.addfile(info, io.BytesIO(content))
    return file.getvalue()


def unpacked(content: bytes) -> dict[str, bytes]:
    return dict(archive.read_members(io.BytesIO(content), "x.tar"))


MEMBERS = {f"train/{kind}/{i}.png": bytes([i]) * (300 * i) for kind in ("cat", "dog") for i in range(1, 5)}
LONG = {"train/cat/" + "long" * 40 + ".png": b"1"}  # whose name is content, without a checksum


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("name", ["train/Käse/1.png", "train/" + "Brötchen" * 20 + "/1.png", *LONG])
def test_names_that_stand_in_a_member_of_their_own_are_held_to_the_header(name, kind):
    """For as much of them as the header has: in this format without what is beyond ASCII."""
    good = packed({name: b"1", "train/dog/2.png": b"2"}, "", kind)
    assert name in unpacked(good)
    encoded = name.encode()
    at, changed = good.index(encoded), 0
    for place in range(len("train/"), min(len(encoded), 98)):
        damaged = bytearray(good)
        damaged[at + place] ^= 1
        try:
            names = unpacked(bytes(damaged))
        except InputError:
            continue
        assert name not in names
        assert encoded[place] > 127
        changed += 1
    assert changed <= sum(byte > 127 for byte in encoded[:98])


@pytest.mark.parametrize("compression", ["", "gz", "bz2", "xz"])
@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_flipped_bits_and_cuts_are_found_or_harmless(compression, kind):
    """A plain tar has no checksum of contents: there, names and lengths must be right, or the damage found."""
    members = MEMBERS | (LONG if compression else {})
    good = packed(members, compression, kind)
    assert unpacked(good) == members
    rng = np.random.default_rng(0)
    found = 0

    def harmless(content):
        nonlocal found
        try:
            read = unpacked(content)
        except InputError:
            found += 1
            return True
        if compression:
            return read == members
        return {name: len(member) for name, member in read.items()} == {n: len(m) for n, m in members.items()}

    for bit in rng.integers(0, 8 * len(good), 400):
        damaged = bytearray(good)
        damaged[bit // 8] ^= 1 << (bit % 8)
        assert harmless(bytes(damaged)), bit
    assert found > (100 if compression else 20)
    headers = [at for at in range(0, len(good), 512) if good[at + 257 : at + 262] == b"ustar"]
    for bit in rng.integers(0, 8 * 512, 300) if not compression else ():
        damaged = bytearray(good)
        damaged[headers[bit % len(headers)] + bit // 8] ^= 1 << (bit % 8)
        assert harmless(bytes(damaged)), bit
    # The blocks of zeros that fill a tar up to 10,240 bytes can be missing.
    end = len(good.rstrip(b"\0")) if not compression else len(good)
    for length in [*rng.integers(0, end, 150), *range(512, end, 512)]:
        before = found
        assert harmless(good[:length])
        assert found == before + 1, length


def test_what_follows_the_end_is_found():
    one, two = packed({"train/a/1.png": b"1"}), packed({"train/a/2.png": b"2"})
    with pytest.raises(InputError, match="something is left over after its end"):
        unpacked(one + two)
    assert unpacked(one + bytes(512 * 7)) == {"train/a/1.png": b"1"}
    with pytest.raises(InputError, match="its end is missing"):
        unpacked(one[:1536])  # header, content and one block of zeros
    assert len(unpacked(one[:2048])) == 1
    with pytest.raises(InputError, match="comes twice"):
        unpacked(one[:1024] + one)


def test_archives_are_bounded(capsys):
    """Sparse members, claims of terabytes, and bombs: one line each, and soon."""
    sparse = tarfile.TarInfo("train/a/1.png")
    sparse.size = 512
    header = bytearray(sparse.tobuf(tarfile.GNU_FORMAT))
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[483:495] = tarfile.itn(60 * 2**30, 12, tarfile.GNU_FORMAT)  # its real size
    header[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(header))[0]
    with pytest.raises(InputError, match=r"'train/a/1\.png' is sparse"):
        unpacked(bytes(header) + bytes(512 * 20))
    for kind in (tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE):
        large = tarfile.TarInfo("train/a/1.png")
        large.size, large.type = 60 * 2**30, kind
        with pytest.raises(InputError, match=r"64,424,509,\d+ bytes"):
            unpacked(large.tobuf(tarfile.GNU_FORMAT) + bytes(512 * 20))
    link = tarfile.TarInfo("train/a/2.png")
    link.type, link.linkname = tarfile.LNKTYPE, "train/a/1.png"
    assert len(unpacked(packed({"train/a/1.png": b"1"})[:1024] + link.tobuf() + bytes(1024))) == 1
    assert "1 links or devices are passed over, such as 'train/a/2.png'" in capsys.readouterr().err


def test_bombs_end_early(monkeypatch):
    monkeypatch.setattr(archive, "_BOMB", 2**22)
    monkeypatch.setattr(archive, "_CHUNK", 2**18)
    for compression in ("gz", "bz2", "xz"):
        bomb = packed({"train/a/1.png": bytes(2**24)}, compression)
        with pytest.raises(InputError, match="which no images do"):
            unpacked(bomb)
    assert len(unpacked(packed({"train/a/1.png": bytes(2**24)}))) == 1  # nothing expands here


def test_checksums_behind_the_tar_are_read():
    """The compressed stream's own end is checked, though the tar ends before."""
    good = lzma.compress(packed(MEMBERS), check=lzma.CHECK_CRC64)
    assert unpacked(good) == MEMBERS
    with pytest.raises(InputError, match="damaged or cut short"):
        unpacked(good[:-20])


# ---- images ---------------------------------------------------------------------------------------------------------


def encode(image, kind="PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "PA"])
def test_what_is_transparent_is_white(mode, tmp_path):
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[:, :2] = (200, 0, 0, 255)
    pixels[:, 2] = (0, 0, 0, 128)
    image = Image.fromarray(pixels)
    content = encode(image.convert(mode) if mode != "PA" else image.quantize(8).convert("PA").convert("RGBA"))
    found = np.asarray(images.decode_image(content, "x").convert("L"))
    assert (found[:, 3] == 255).all()
    assert (found[:, 0] < 100).all()
    if mode in ("RGBA", "LA"):
        assert (abs(found[:, 2].astype(int) - 127) <= 1).all()


def test_opaque_alpha_and_sixteen_bits_stay_as_they_were():
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (5, 6, 3), np.uint8)
    opaque = np.dstack([rgb, np.full((5, 6), 255, np.uint8)])
    np.testing.assert_array_equal(np.asarray(images.decode_image(encode(Image.fromarray(opaque)), "x")), rgb)
    deep = rng.integers(0, 65536, (5, 6), np.uint16)
    np.testing.assert_array_equal(np.asarray(images.decode_image(encode(Image.fromarray(deep)), "x")), deep >> 8)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_orientation_is_obeyed_everywhere(kind, orientation, tmp_path, files):
    """In memory, streamed in training and evaluation, and predicted."""
    from PIL import ImageOps

    upright = Image.fromarray(synthetic.photograph(np.random.default_rng(0), 24, 32))
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encode(upright, kind, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
    assert (expected.shape[0] > expected.shape[1]) == (orientation >= 5)
    np.testing.assert_array_equal(np.asarray(images.decode_image(content, "x")), expected)
    root = files.tree(tmp_path / "f", {f"train/{c}/0.{kind}": content for c in ("a", "b")})
    np.testing.assert_array_equal(data.load("folder", raw_dir=root).train.image[0], expected)
    height, width = expected.shape[:2]
    path = root / "train" / "a" / f"0.{kind}"
    np.testing.assert_array_equal(data.open_image(path, height, width, 3), expected)
    centre = expected[(height - 24) // 2 :, (width - 24) // 2 :][:24, :24]
    np.testing.assert_array_equal(data.open_photo(path, crop=24, resize=24), centre)
    streamed = data.open_photos("folder", raw_dir=root)
    (batch,) = photos.eval_batches(streamed, batch_size=2, crop=24, resize=24)
    np.testing.assert_array_equal(batch["image"][0], centre)
    whole = photos.train_batches(
        streamed, seed=0, start=0, stop=1, batch_size=2, crop=24, scale=(1, 1), ratio=(width / height,) * 2
    )
    resized = Image.fromarray(expected).resize((24, 24), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(next(whole)["image"][0], resized)


@pytest.mark.filterwarnings("ignore")  # Pillow's, about what it reads past
@pytest.mark.parametrize("kind", images.FORMATS)
def test_damaged_files_of_every_format_are_refused_or_read(kind):
    """With bytes changed or the end cut off; of a decoder's own kinds of errors none comes through."""
    Image.init()
    if kind not in Image.SAVE or kind not in Image.OPEN:
        pytest.skip(f"this Pillow writes no {kind}")
    rng = np.random.default_rng(0)
    content = encode(Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)), kind)
    refused = 0
    for i in range(60):
        damaged = bytearray(content)
        for at in rng.integers(0, len(content), rng.integers(1, 4)):
            damaged[at] = rng.integers(0, 256)
        try:
            images.decode_image(bytes(damaged[: rng.integers(0, len(content)) if i % 3 == 0 else None]), "x.y")
        except InputError as error:
            refused += 1
            assert str(error).startswith("image x.y ")  # noqa: PT017
    assert refused >= 10


@pytest.mark.parametrize("error", [ZeroDivisionError("division by zero"), KeyError(3), struct.error("too short")])
def test_whatever_a_decoder_raises_is_one_line(error, monkeypatch):
    """The first is of AVIF files whose duration is damaged."""

    def load(self):
        raise error

    content = encode(Image.new("L", (4, 4)))
    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    with pytest.raises(InputError, match=r"^image x\.y cannot be read: "):
        images.decode_image(content, "x.y")
