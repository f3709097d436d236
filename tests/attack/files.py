"""Files: run folders that were damaged, swapped or named oddly; data sets; weights."""

import contextlib
import functools
import gzip
import io
import json
import os
import pathlib
import random
import shutil
import tarfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from case import Case, Said, call, command, copy, result_of
from PIL import Image
from safetensors.numpy import save_file

import cnnjax
from cnnjax import data, models
from cnnjax.data import synthetic
from cnnjax.models import weights
from cnnjax.training import rundir

Damage = Callable[[pathlib.Path], None]

ODD = (
    "exp[1]", "[lr=0.1]", "a[!b]", "run?", "a*", "a\\b", "a b", " a", "a ", "ü", "²", "😀", "-x", "--workdir", "a'b",
    'a"b',
    "$HOME", "`id`", "a;b", "a\nb", "a\tb", "\x1b[2J", "{a}", "a%20b", "~", "...", "a:b", "con", ".hidden", "x" * 200,
    "a#b",
    "a&b", "a|b", "a,b", "a=b", "\udcff", "[bold]", "()", "0", "a.json", "checkpoints",
)  # fmt: skip


# ---- run folders ---------------------------------------------------------------------------------------------------


class Runs:
    """A finished run, one of another seed, and what the commands say of the first."""

    def __init__(self, folder: pathlib.Path, experiment: pathlib.Path):
        self.experiment, self.work = experiment, folder / "runs"
        self.whole, self.other = folder / "whole", folder / "other"
        for run, seed in ((self.whole, 0), (self.other, 1)):
            said = command("run", experiment, "--workdir", run, "--train.seed", seed)
            assert said.status == 0, said.err
        self.linked = folder / "linked"  # a user may keep checkpoints on another disk: written to, nothing in it lost
        self.linked.mkdir()
        (self.linked / "precious.txt").write_text("the only copy, too\n")
        self.image = folder / "image.png"
        Image.fromarray(np.arange(81, dtype=np.uint8).reshape(9, 9)).save(self.image)
        self.expected = {name: self.do(name, self.whole) for name in ("again", "evaluate", "predict", "load")}
        self.expected["resume"] = self.expected["again"]
        assert [said.status for said in self.expected.values()] == [0] * 5, self.expected

    def do(self, what: str, run: pathlib.Path) -> Said:
        """The same command again, `evaluate`, `predict` or `cnnjax.load`; the value is what must be as before."""
        if what == "load":
            return call(lambda: [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(cnnjax.load(run)[1])])
        if what in ("again", "resume"):
            said = command("run", self.experiment, "--workdir", run)
        elif what == "evaluate":
            said = command("evaluate", run, "--json")
        else:
            said = command("predict", run, self.image, "--json")
        if said.status:
            return said
        value: Any = said.out
        if what in ("again", "resume"):
            rows = rundir.read_metrics(run / "metrics.jsonl") if (run / "metrics.jsonl").is_file() else None
            result = result_of(run)
            value = [result["fingerprint"], result["test_accuracy"], result["seed"], rows]
        return Said(0, said.out, said.err, value)

    def right(self, what: str, name: str, said: Said) -> str:
        """Nothing changed, or a line names the file that was attacked or the checkpoint that it belongs to."""
        folder, _, inside = name.partition("/")
        step = inside.partition("/")[0].removesuffix(".json")
        named = [name]
        if folder == "checkpoints" and step:
            named += [f"checkpoint {step} in ", f"no good checkpoint of step {step},"]
        if said.value == self.expected[what].value or any(one in said.err for one in named):
            return ""
        return f"{str(said.value)[:150]} for {str(self.expected[what].value)[:150]}, {said.err!r:.600} said"

    def attacked(self, what: str, damage: Damage) -> Said:
        """Damages a copy, and does something with it."""
        run = copy(self.whole, self.work / "run")
        damage(run)
        if what == "resume":  # as if it had been stopped after its last step
            with contextlib.suppress(OSError):
                (run / "result.json").unlink(missing_ok=True)
        return self.do(what, run)


def _damages(runs: Runs, outside: pathlib.Path, name: str) -> dict[str, Damage]:
    """What can be done to a file, by name."""

    def rewrite(change: Callable[[bytes], bytes]) -> Damage:
        def damage(run: pathlib.Path) -> None:
            path = run / name
            path.write_bytes(change(path.read_bytes()))

        return damage

    def replace(make: Callable[[pathlib.Path], Any]) -> Damage:
        def damage(run: pathlib.Path) -> None:
            path = run / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            make(path)

        return damage

    def theirs() -> pathlib.Path:
        path = runs.other / name
        return path if path.exists() else min(path.parent.iterdir())  # arrays' files have names that are drawn

    def flip(content: bytes, part: float) -> bytes:
        changed = bytearray(content)
        changed[int(part * (len(changed) - 1))] ^= 1
        return bytes(changed)

    found = {
        "deleted": replace(lambda path: None),
        "a FIFO": replace(os.mkfifo),
        "a folder": replace(os.mkdir),
        "a link outside": replace(lambda path: path.symlink_to(outside / "precious.txt")),
        "a link to nothing": replace(lambda path: path.symlink_to("nothing")),
        "a link to itself": replace(lambda path: path.symlink_to(path.name)),
        "a link to /dev/zero": replace(lambda path: path.symlink_to("/dev/zero")),
    }
    source = runs.whole / name
    if source.is_file() and not source.stat().st_size:
        return found
    if source.is_dir():
        return found | {
            "a file": replace(lambda path: path.write_text("a file")),
            "a link to a folder": replace(lambda path: path.symlink_to(runs.linked)),
        }
    found |= {
        "empty": rewrite(lambda content: b""),
        "cut": rewrite(lambda content: content[: len(content) // 2]),
        "longer": rewrite(lambda content: content + b"\n\0junk"),
        "zeros": rewrite(lambda content: bytes(len(content))),
        "another run's": replace(lambda path: shutil.copy(theirs(), path)),
    }
    found |= {
        f"a bit at {part:.0%}": rewrite(functools.partial(flip, part=part)) for part in (0.0, 0.3, 0.5, 0.8, 0.99)
    }
    if name.endswith((".json", ".jsonl")):
        for text in (
            "[]",
            "null",
            "{}",
            '"x"',
            "1e999",
            "[" * 5000,
            '{"a": ' * 3000,
            '{"config": 3, "what": 3, "derived": 3, "history": 3}',
        ):
            found[f"the text {text[:12]}"] = rewrite(lambda content, text=text: text.encode())
    return found


def run_folders(runs: Runs, outside: pathlib.Path, count: int, rng: random.Random) -> Iterator[Case]:
    """Each file of a run's folder deleted, damaged, swapped, replaced by what is no file."""
    files = ["config.json", "result.json", "metrics.jsonl", ".lock", "checkpoints", "checkpoints/2", "checkpoints/4",
             "checkpoints/2.json", "checkpoints/4.json", "curves.png", "predictions.png"]  # fmt: skip
    inside = sorted(p for p in (runs.whole / "checkpoints/4").rglob("*") if p.is_file() and p.stat().st_size)
    files += [str(path.relative_to(runs.whole)) for path in rng.sample(inside, min(4, len(inside)))]
    every = [
        (name, damage, what)
        for name in files
        if os.path.lexists(runs.whole / name)
        for damage in _damages(runs, outside, name).items()
        for what in runs.expected
    ]
    for name, (title, damage), what in rng.sample(every, min(count, len(every))):
        act = functools.partial(runs.attacked, what, damage)
        right = functools.partial(runs.right, what, name)
        yield Case("run folders", f"{what}: {name} {title}", act, right, keeps=(runs.linked, runs.linked))


def strays(runs: Runs, outside: pathlib.Path) -> Iterator[Case]:
    """Files and folders in a run's folder that nobody expects there; no checkpoint is lost by them."""
    names = ("...deleting", "..deleting", ".deleting", "²", "².json", "-1", "-1.json", "4.json~", "04", "04.json",
    "4 ", "１",
             ".DS_Store", "Thumbs.db", "notes.txt", "99999999999999999999.json", "set-aside", "4.deleting", "9" * 200,
             "4.orbax-checkpoint-tmp-1", "\udcff", "\x1b[2J", "1e3", "3", "3.json", "NaN.json")  # fmt: skip
    kinds: dict[str, Damage] = {
        "file": lambda path: path.write_text("{}"),
        "folder": lambda path: path.mkdir(),
        "link": lambda path: path.symlink_to(outside),
    }

    def stray(where: str, name: str, make: Damage, run: pathlib.Path) -> None:
        path = run / where / name
        if not os.path.lexists(path):
            make(path)

    for name in names:
        for where in ("checkpoints", "checkpoints/4", "."):
            for kind, make in kinds.items() if where == "checkpoints" else [("file", kinds["file"])]:
                for what in ("resume", "evaluate") if (where, kind) == ("checkpoints", "folder") else ("evaluate",):
                    act = functools.partial(runs.attacked, what, functools.partial(stray, where, name, make))
                    title = f"{what}: a {kind} {where}/{name!r:.40}"
                    right = functools.partial(runs.right, what, str(pathlib.PurePath(where, name)))
                    yield Case("strays", title, act, right, keeps=(runs.whole / "checkpoints", runs.work / "run"))


def names(runs: Runs) -> Iterator[Case]:
    """A run in a folder of an odd name, or below one: begun, shown again, evaluated."""
    for name in ODD:
        for below in (False, True):
            folder = runs.work / "names" / name
            act = functools.partial(_named, runs, folder / "run" if below else folder)
            right = lambda said: "" if said.value == runs.expected["again"].value else f"another result: {said.value}"
            yield Case("names", f"{'below ' if below else ''}{name!r:.40}", act, right)


def _named(runs: Runs, workdir: pathlib.Path) -> Said:
    shutil.rmtree(runs.work / "names", ignore_errors=True)
    said = command("run", runs.experiment, f"--workdir={workdir}")
    if said.status:
        return said
    for what in ("again", "load"):
        said = runs.do(what, workdir)
        if said.status:
            return said
    return runs.do("again", workdir)


# ---- data ----------------------------------------------------------------------------------------------------------


class Sets:
    """A folder of twelve images of two classes, the same as a tar, and what is read of them."""

    def __init__(self, folder: pathlib.Path):
        self.work, self.whole = folder / "sets", folder / "photos"
        rng = np.random.default_rng(0)
        for split, label, i in [(s, c, i) for s in ("train", "test") for c in ("cat", "dog") for i in range(3)]:
            path = self.whole / split / label / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (9, 9, 3)).astype(np.uint8)).save(path)
        self.tar = folder / "photos.tar"
        with tarfile.open(self.tar, "w") as archive:
            archive.add(self.whole, ".")
        self.folder_value, self.tar_value = self.read(self.whole), self.read(self.tar)
        assert self.folder_value.status == self.tar_value.status == 0

    def read(self, raw_dir: pathlib.Path) -> Said:
        """The images, labels and classes of a set."""
        cache = self.work / "cache"
        shutil.rmtree(cache, ignore_errors=True)

        def load() -> Any:
            found = data.load("folder", raw_dir=raw_dir, cache_dir=cache, size=(9, 9))
            assert found.test is not None
            return data.sha256(found), found.classes, len(found.train), len(found.test)

        return call(load)

    def right(self, said: Said) -> str:
        """Nothing changed, or what was read is named: how many images of how many classes."""
        if said.value == self.folder_value.value:
            return ""
        classes, train, test = said.value[1:]
        several = "es" * (len(classes) > 1)
        named = f"holds images of {len(classes)} class{several}: {train} in train, {test} in test\n" in said.err
        return "" if named else f"{said.value[1:]} read, {said.err!r:.600} said"


def folders(sets: Sets, outside: pathlib.Path) -> Iterator[Case]:
    """Folders of images with odd names, odd files and damaged ones."""

    def attacked(change: Damage) -> Said:
        folder = copy(sets.whole, sets.work / "folder")
        change(folder)
        return sets.read(folder)

    changes: dict[str, Damage] = {}
    for name in ODD:
        changes[f"a class {name!r:.40}"] = lambda folder, name=name: [
            shutil.copytree(folder / split / "cat", folder / split / name) for split in ("train", "test")
        ]  # fmt: skip
        if name == "0":
            continue  # which is there
        changes[f"an image {name!r:.40}.png"] = lambda folder, name=name: shutil.copy(
            folder / "train/cat/0.png", folder / "train/cat" / f"{name}.png"
        )
    image = "train/cat/1.png"

    def written(content: bytes) -> Damage:
        return lambda folder: (folder / image).write_bytes(content)

    def instead(make: Callable[[pathlib.Path], Any]) -> Damage:
        return lambda folder: ((folder / image).unlink(), make(folder / image))

    whole = (sets.whole / image).read_bytes()
    contents = {
        "empty": b"", "cut": whole[: len(whole) // 2], "text": b"no image", "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n",
        "a page": b"<html></html>", "a GIF": b"GIF89a\1\0\1\0\0\0\0;", "zeros": bytes(len(whole)),
        "tiff": b"II*\0\10\0\0\0\0\0",
        "huge": whole[:16] + b"\x7f\xff\xff\xff\x7f\xff\xff\xff" + whole[24:],
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    }  # fmt: skip
    changes |= {f"an image that is {name}": written(content) for name, content in contents.items()}
    for part in range(0, len(whole), max(1, len(whole) // 25)):
        flipped = bytearray(whole)
        flipped[part] ^= 4
        changes[f"a bit of byte {part} of an image"] = written(bytes(flipped))
    for mode in ("1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "I", "F", "YCbCr"):
        buffer = io.BytesIO()
        with contextlib.suppress(OSError):
            Image.new(mode, (9, 9)).save(buffer, "PNG" if mode not in ("CMYK", "F", "YCbCr") else "TIFF")
            changes[f"an image of mode {mode}"] = written(buffer.getvalue())
    changes |= {
        "a FIFO": instead(os.mkfifo), "a folder of an image's name": instead(os.mkdir),
        "a link to nothing": instead(lambda path: path.symlink_to("nothing")),
        "a link to itself": instead(lambda path: path.symlink_to(path)),
        "a link to /dev/zero": instead(lambda path: path.symlink_to("/dev/zero")),
        "a link outside": instead(lambda path: path.symlink_to(outside / "precious.txt")),
        "a loop of folders": lambda folder: (folder / "train/cat/loop").symlink_to(folder / "train"),
        "a class that is a link": lambda folder: (folder / "train/cow").symlink_to(folder / "train/cat"),
        "no train": lambda folder: shutil.rmtree(folder / "train"),
        "an empty class": lambda folder: [p.unlink() for p in (folder / "train/cat").iterdir()],
        "one class": lambda folder: [shutil.rmtree(folder / split / "cat") for split in ("train", "test")],
        "a class in test alone": lambda folder: shutil.copytree(folder / "test/cat", folder / "test/cow"),
        "a class in train alone": lambda folder: shutil.copytree(folder / "train/cat", folder / "train/cow"),
        "Käse twice": lambda folder: [shutil.copytree(folder / s / "cat", folder / s / n)
                                      for s in ("train", "test") for n in ("K\u00e4se", "Ka\u0308se")],
        "stray files": lambda folder: [(folder / p).write_text("x") for p in
                                       ("notes.txt", "train/.DS_Store", "train/cat/Thumbs.db", "train/notes.txt")],
    }  # fmt: skip
    same = lambda said: "" if said.value == sets.folder_value.value else "other pixels were read"
    for name, change in changes.items():
        right = same if name.startswith("a bit of") else sets.right
        yield Case("folders of images", name, functools.partial(attacked, change), right)


def archives(sets: Sets, rng: random.Random) -> Iterator[Case]:
    """Tars with bits flipped in their headers and ends, cut short, compressed, with odd members."""

    def attacked(content: bytes, name: str = "photos.tar") -> Said:
        shutil.rmtree(sets.work / "tar", ignore_errors=True)
        path = sets.work / "tar" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        return sets.read(path)

    def right(said: Said) -> str:
        return "" if said.value == sets.tar_value.value else f"{said.value[1:]} read"

    def kinds(said: Said) -> str:
        return sets.right(said)

    whole = sets.tar.read_bytes()
    headers = []
    with tarfile.open(sets.tar) as archive:
        headers = [member.offset for member in archive]
    case = lambda name, content, right=right, file="photos.tar": Case(
        "archives", name, functools.partial(attacked, content, file), right
    )

    def flipped(content: bytes, at: int) -> bytes:
        changed = bytearray(content)
        changed[at] ^= 1 << rng.randrange(8)
        return bytes(changed)

    for _ in range(60):
        at = rng.choice(headers) + rng.randrange(512)
        yield case(f"a bit of byte {at}, in a header", flipped(whole, at))
    for _ in range(30):
        length = rng.randrange(len(whole))
        yield case(f"cut to {length} bytes", whole[:length])
    for ending, pack in (("gz", lambda b: gzip.compress(b, mtime=0)), ("xz", _xz), ("bz2", _bz2)):
        packed = pack(whole)
        yield case(f"as {ending}", packed, file=f"photos.tar.{ending}")
        for _ in range(20):
            at = rng.randrange(len(packed))
            yield case(f"{ending}: a bit of byte {at}", flipped(packed, at), file=f"photos.tar.{ending}")
        yield case(f"{ending}: cut", packed[: len(packed) // 2], file=f"photos.tar.{ending}")
        yield case(f"{ending}: junk behind", packed + b"junk" * 100, file=f"photos.tar.{ending}")
    yield case("junk behind", whole + b"junk" * 300)
    yield case("twice", whole + whole)
    yield case("empty", b"")
    yield case("text", b"no tar" * 200)
    yield case("a bomb", gzip.compress(bytes(2**28)), file="photos.tar.gz")
    for name, change in {
        "../../evil.png": {}, "/tmp/evil.png": {}, "train/cat/\x1b[2J.png": {}, "train/cat/" + "x" * 300 + ".png": {},
        "train/cat/0.png": {}, "train/cat/link.png": {"type": tarfile.SYMTYPE, "linkname": "../../../etc/passwd"},
        "train/cat/hard.png": {"type": tarfile.LNKTYPE, "linkname": "train/dog/0.png"},
        "train/cat/fifo.png": {"type": tarfile.FIFOTYPE}, "train/cat/dev.png": {"type": tarfile.CHRTYPE},
        "train/cat/large.png": {"size": 60 * 2**30},
    }.items():  # fmt: skip
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            archive.add(sets.whole, ".")
            member = tarfile.TarInfo(name)
            for field, value in change.items():
                setattr(member, field, value)
            archive.fileobj.write(member.tobuf())  # type: ignore[union-attr]
            archive.offset += 512
        yield case(f"a member {name!r:.40} {change}", buffer.getvalue(), kinds)


def _xz(content: bytes) -> bytes:
    import lzma

    return lzma.compress(content)


def _bz2(content: bytes) -> bytes:
    import bz2

    return bz2.compress(content)


def prepared(folder: pathlib.Path) -> Iterator[Case]:
    """Descriptions of a prepared TFDS set that say something else, or would have code run."""
    whole, work = folder / "tfds", folder / "tfds-work"
    made = {split: synthetic.photographs(8, seed=i, longest=40) for i, split in enumerate(("train", "validation"))}
    with contextlib.redirect_stderr(io.StringIO()):
        synthetic.write_imagenet(made, whole)
    (place,) = (whole / "imagenet2012").glob("*")
    inside = place.relative_to(whole)

    def read(change: Damage) -> Said:
        root = copy(whole, work)
        change(root / inside)

        def load() -> Any:
            found = data.open_photo_set("tfds:imagenet2012", data_dir=root)
            return (
                found.sha256,
                found.classes,
                len(found.train),
                [found.train.source[i][1] for i in range(len(found.train))],
            )

        return call(load)

    expected = read(lambda path: None)
    assert expected.status == 0, expected.err
    _, classes, *rest = expected.value
    numbered = (
        tuple(str(i) for i in range(len(classes))),
        *rest,
    )  # where the names are lost, by which the sum goes too

    def right(said: Said) -> str:
        named = said.value[1:] == numbered and f"has no names for its {len(classes)} classes" in said.err
        if said.value == expected.value or named:
            return ""
        return f"{str(said.value)[:200]}, {said.err!r:.600} said"

    def edited(name: str, change: Callable[[Any], Any]) -> Damage:
        def damage(place: pathlib.Path) -> None:
            content = json.loads((place / name).read_text())
            (place / name).write_text(json.dumps(change(content)))

        return damage

    def at(*path: Any, value: Any) -> Callable[[Any], Any]:
        def change(content: Any) -> Any:
            here = content
            for key in path[:-1]:
                here = here[key]
            here[path[-1]] = value
            return content

        return change

    changes: dict[str, Damage] = {}
    for value in (
        "",
        "evilmod.X",
        "os.system",
        "tensorflow_datasets.core.features.evil.X",
        3,
        None,
        [],
        "builtins.eval",
    ):
        for name in ("image", "label"):
            path = ("featuresDict", "features", name, "pythonClassName")
            changes[f"{name} is a {value!r}"] = edited("features.json", at(*path, value=value))
        changes[f"the set is a {value!r}"] = edited("features.json", at("pythonClassName", value=value))
    for value in ([], ["9999"], ["-1", "9"], "x", None, ["²"], ["4", "4"], [8.5], {}, ["7"], ["9"]):
        changes[f"shard lengths {value}"] = edited("dataset_info.json", at("splits", 0, "shardLengths", value=value))
    for value in ("", "../x", "evil{", None, 3, "{DATASET}-{SPLIT}", "/etc/passwd"):
        path = ("splits", 0, "filepathTemplate")
        changes[f"a path template {value!r}"] = edited("dataset_info.json", at(*path, value=value))
    for value in ("", "..", "test", None, 3, "\x1b[2J"):
        changes[f"a split {value!r}"] = edited("dataset_info.json", at("splits", 0, "name", value=value))
    for value in ("tfrecord", "parquet", "", None, "evil", 3):
        changes[f"a format {value!r}"] = edited("dataset_info.json", at("fileFormat", value=value))
    for name in ("features.json", "dataset_info.json", "label.labels.txt"):
        if (place / name).exists():
            for text in ("", "{}", "[]", "null", "[" * 5000, "x"):
                changes[f"{name} is {text[:5]!r}"] = lambda place, name=name, text=text: (place / name).write_text(text)
            changes[f"no {name}"] = lambda place, name=name: (place / name).unlink()
    shards = sorted(p.name for p in place.glob("*array_record*"))
    for name in shards:
        changes |= {
            f"no {name}": lambda place, name=name: (place / name).unlink(),
            f"{name} empty": lambda place, name=name: (place / name).write_bytes(b""),
            f"{name} cut": lambda place, name=name: (place / name).write_bytes((place / name).read_bytes()[:-500]),
            f"{name} a FIFO": lambda place, name=name: ((place / name).unlink(), os.mkfifo(place / name)),
        }  # fmt: skip
        for part in range(10):

            def flip(place: pathlib.Path, name: str = name, part: int = part) -> None:
                content = bytearray((place / name).read_bytes())
                content[len(content) * part // 10 + 7] ^= 1
                (place / name).write_bytes(content)

            changes[f"{name}, a bit at {part}/10"] = flip
    for name, change in changes.items():
        yield Case("prepared sets", name, functools.partial(read, change), right)


# ---- weights -------------------------------------------------------------------------------------------------------


def state_dicts(folder: pathlib.Path) -> Iterator[Case]:
    """State dicts and their files with other names, shapes, types, values; files that were damaged."""
    work = folder / "weights"
    work.mkdir()
    model, image = models.create("resnet18", num_classes=3), (32, 32, 3)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(  # whole numbers, which other dtypes hold too
        lambda leaf: rng.integers(-99, 100, leaf.shape).astype(leaf.dtype),
        jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *image), np.float32)),
    )
    whole = weights.to_torch(variables, model)
    first = next(iter(whole))

    def took(said: Said, variables: Any = variables) -> str:
        if jax.tree.structure(said.value) != jax.tree.structure(variables):
            return f"other variables, {said.err!r:.600} said"
        same = jax.tree.map(lambda a, b: np.array_equal(np.asarray(a), b, equal_nan=True), said.value, variables)
        other = [jax.tree_util.keystr(path) for path, one in jax.tree.leaves_with_path(same) if not one]
        return f"other values of {', '.join(other)[:200]}, {said.err!r:.600} said" if other else ""

    def given(state: Any) -> Case:
        return functools.partial(call, weights.from_torch, state, model, image)  # type: ignore[return-value]

    changed: dict[str, Any] = {"as it is": whole}
    for kind in ("float64", "float16", "int8", "int64", "uint16", "bool", "complex64", "<U3", "O", "datetime64[s]"):
        with contextlib.suppress(TypeError, ValueError):
            changed[f"{first} as {kind}"] = whole | {first: whole[first].astype(kind)}
    for value in (
        None,
        3,
        "x",
        [],
        {},
        np.zeros(0),
        np.zeros((1, 2, 3)),
        np.float32(3),
        object(),
        whole[first].T,
        lambda: 0,
    ):
        changed[f"{first} is {type(value).__name__} {getattr(value, 'shape', '')}"] = whole | {first: value}
    for name in ("", "x", 3, None, ("a",), b"conv1.weight", "conv1.weight ", "CONV1.WEIGHT", "a/b", "\x1b[2J"):
        changed[f"a further {name!r}"] = whole | {name: whole[first]}
    for prefix in ("module.", "_orig_mod.", "module._orig_mod.", "model.", "state_dict.", "net."):
        changed[f"all below {prefix}"] = {prefix + name: value for name, value in whole.items()}
    for name in (first, "fc.bias", "bn1.running_mean", "layer1.0.bn2.num_batches_tracked"):
        changed[f"without {name}"] = {key: value for key, value in whole.items() if key != name}
    for name in ("model", "state_dict", "model_state_dict", "x"):
        changed[f"inside {name!r}"] = {name: whole, "epoch": 3}
    for value in (None, [], {}, 3, "x", b"x", [whole], iter(()), np.zeros(3), model):
        changed[f"a {type(value).__name__}"] = value
    changed["sorted"] = dict(sorted(whole.items()))
    for name, state in changed.items():
        yield Case("weights", name, given(state), took)  # type: ignore[arg-type]
    layers = variables["params"]
    nan = {**variables, "params": {**layers, "conv1": jax.tree.map(lambda leaf: leaf * np.nan, layers["conv1"])}}
    right = functools.partial(took, variables=nan)  # what is given is taken
    yield Case("weights", "NaN", given(whole | {first: whole[first] * np.nan}), right)  # type: ignore[arg-type]

    path = work / "weights.safetensors"
    save_file({name: np.ascontiguousarray(value) for name, value in whole.items()}, path)
    content = path.read_bytes()

    def read(name: str, make: Damage) -> Said:
        place = work / name
        if os.path.lexists(place):
            shutil.rmtree(place) if place.is_dir() and not place.is_symlink() else place.unlink()
        make(place)
        return call(lambda: weights.from_torch(weights.read_torch(place), model, image))

    files: dict[str, Damage] = {
        "empty": lambda p: p.write_bytes(b""), "cut": lambda p: p.write_bytes(content[: len(content) // 2]),
        "cut in the header": lambda p: p.write_bytes(content[:100]), "longer": lambda p: p.write_bytes(content + b"x"),
        "text": lambda p: p.write_bytes(b"no weights"), "a folder": lambda p: p.mkdir(), "nothing": lambda p: None,
        "a FIFO": os.mkfifo, "/dev/zero": lambda p: p.symlink_to("/dev/zero"),
        "a link to itself": lambda p: p.symlink_to(p.name),
        "a huge header": lambda p: p.write_bytes((2**62).to_bytes(8, "little") + content[8:]),
        "a header of brackets": lambda p: p.write_bytes((9000).to_bytes(8, "little") + b"[" * 9000),
    }  # fmt: skip
    for at in (0, 3, 8, 20, 60):
        flipped = bytearray(content)
        flipped[at] ^= 1
        files[f"a bit of byte {at}"] = lambda p, flipped=bytes(flipped): p.write_bytes(flipped)
    for name, make in files.items():
        for ending in ("safetensors", "pth"):
            act = functools.partial(read, f"attacked.{ending}", make)
            yield Case("weights", f"a file .{ending}: {name}", act, took)
