"""Photographs to training batches: cnnjax against a plain PIL loop and torch's DataLoader.

    python benchmarks/input.py                 # a table for the results' page
    python benchmarks/input.py --rounds 2 --photographs 64
    python benchmarks/input.py --decoders      # decoders alone, also OpenCV's if it is installed
    python benchmarks/input.py --hashes        # of the same 1,000 batches, whatever makes them

All make the same batches of 224x224 from the same JPEG files (made up, of ImageNet's typical size) with the same crops:
the loop and the DataLoader by PIL, written out as torchvision's RandomResizedCrop works on PIL images. Nobody
normalises or mirrors. Every turn starts anew, throws away its first batches, in which processes start and buffers
fill, and times the following ones. Rounds are interleaved; the ratio within a round is what counts.
"""

import argparse
import concurrent.futures
import functools
import hashlib
import importlib.metadata
import importlib.util
import io
import multiprocessing
import pathlib
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import timing

from cnnjax.data import batch_indices, photos, synthetic
from cnnjax.doctor.machine import processor

# Makes so many batches of a split.
Make = Callable[[photos.Photos, int], Iterator[Any]]

CROP = 224
BATCH = 32
WARM = 4  # batches thrown away at the start of a turn, per process or thread that runs ahead


class PilExamples:
    """One position in the stream after another, decoded, cropped and resized by PIL: for a loop and for torch."""

    def __init__(self, split: photos.Photos, batches: int) -> None:
        self.split, self.batches = split, batches

    def __len__(self) -> int:
        return self.batches * BATCH

    def __getitem__(self, position: int) -> tuple[np.ndarray, int]:
        from PIL import Image

        step, row = divmod(position, BATCH)
        content, label = self.split.source[int(batch_indices(len(self.split), BATCH, step, 0)[row])]
        rng = np.random.default_rng((0, position, 1))
        image = Image.open(io.BytesIO(content)).convert("RGB")
        top, left, height, width = photos.random_crop(rng, image.height, image.width)
        part = image.crop((left, top, left + width, top + height))
        return np.array(part.resize((CROP, CROP), Image.Resampling.BILINEAR)), label


def pil_loop(split: photos.Photos, batches: int) -> Iterator[Any]:
    """Batches by a plain loop."""
    examples = PilExamples(split, batches)
    for step in range(batches):
        images, labels = zip(*(examples[step * BATCH + row] for row in range(BATCH)), strict=True)
        yield np.stack(images), np.array(labels, np.int32)


def data_loader(workers: int) -> Make:
    """Batches by torch's DataLoader with so many workers."""

    def make(split: photos.Photos, batches: int) -> Iterator[Any]:
        from torch.utils.data import DataLoader

        # JAX's threads forbid forking.
        context = "spawn" if workers else None
        yield from DataLoader(
            PilExamples(split, batches),  # ty: ignore[invalid-argument-type]
            batch_size=BATCH,
            num_workers=workers,
            multiprocessing_context=context,
        )

    return make


def ours(**options: Any) -> Make:
    """Batches by cnnjax with these threads or workers."""
    return lambda split, batches: photos.train_batches(
        split, seed=0, start=0, stop=batches, batch_size=BATCH, crop=CROP, **options
    )


def turn(make: Make, split: photos.Photos, warm: int, batches: int) -> float:
    """Images a second over `batches` batches, after `warm` of them, in a stream that goes on beyond both."""
    stream = make(split, warm + batches + 4 * WARM)
    for _ in range(warm):
        next(stream)
    started = time.perf_counter()
    for _ in range(batches):
        next(stream)
    seconds = time.perf_counter() - started
    del stream  # closes it
    return batches * BATCH / seconds


def time_decoders(rounds: int, examples: list[tuple[str, bytes, int]]) -> None:
    """Prints the milliseconds that decoding, and cropping and resizing, a photograph take on one core."""
    import simplejpeg
    from PIL import Image

    contents = [content for _, content, _ in examples]
    pixels = simplejpeg.decode_jpeg(synthetic.jpeg(synthetic.photograph(np.random.default_rng(0), 375, 500)))

    def pillow(content: bytes, eighths: int = 8) -> None:
        with Image.open(io.BytesIO(content)) as image:
            image.draft("RGB", (image.width * eighths // 8, image.height * eighths // 8))
            image.load()

    def simple(content: bytes, eighths: int) -> None:
        height, width, *_ = simplejpeg.decode_jpeg_header(content)
        least = int(height) * eighths // 8, int(width) * eighths // 8
        simplejpeg.decode_jpeg(content, "RGB", min_height=least[0], min_width=least[1])

    def resize(_: bytes) -> None:
        part = Image.fromarray(np.ascontiguousarray(pixels[40:320, 100:380]))
        np.asarray(part.resize((CROP, CROP), Image.Resampling.BILINEAR))

    decoders: dict[str, Callable[[bytes], object]] = {
        "simplejpeg, the header alone": simplejpeg.decode_jpeg_header,
        "Pillow": pillow,
        "Pillow, draft of 1/2": lambda content: pillow(content, 4),
        **{f"simplejpeg, {k}/8": lambda content, k=k: simple(content, k) for k in (8, 7, 6, 5, 4, 2, 1)},
        "Pillow, a crop of 280x280 resized to 224x224": resize,
    }
    if importlib.util.find_spec("cv2"):
        cv2 = importlib.import_module("cv2")
        cv2.setNumThreads(1)
        flag = {"OpenCV": cv2.IMREAD_COLOR_RGB, "OpenCV, 1/2": cv2.IMREAD_REDUCED_COLOR_2}
        for name, value in flag.items():
            decoders[name] = lambda content, value=value: cv2.imdecode(np.frombuffer(content, np.uint8), value)

    def all_of_them(decode: Callable[[bytes], object]) -> None:
        for content in contents:
            decode(content)

    run = {name: functools.partial(all_of_them, decode) for name, decode in decoders.items()}
    print("| | ms a photograph |\n|---|---|")
    for name, seconds in timing.interleave(run, rounds, 0.0).items():
        ms = [1000 * value / len(contents) for value in seconds]
        print(f"| {name} | {statistics.median(ms):.3f} ({min(ms):.3f} to {max(ms):.3f}) |")


def part_digests(data_dir: str, rows: list[int], batches: int, workers: int) -> list[list[bytes]]:
    """What one process of several makes: of each batch, the hash of each of its rows."""
    split = photos.open_photos("tfds:imagenet2012", data_dir=data_dir)
    stream = photos.train_batches(
        split, seed=0, start=0, stop=batches, batch_size=BATCH, rows=rows, crop=CROP, workers=workers
    )
    return [
        [
            hashlib.sha256(image.tobytes() + label.tobytes()).digest()
            for image, label in zip(*batch.values(), strict=True)
        ]
        for batch in stream
    ]


def hash_batches(made: list[tuple[str, bytes, int]], batches: int = 1000) -> None:
    """Prints one hash of all rows of all batches, made by 0, 1 and 2 workers and by one and two processes."""
    print("| processes | workers of each | sha256 of 1,000 batches of 32 |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as root:
        synthetic.write_imagenet({"train": made}, root)
        for processes, workers in ((1, 0), (1, 1), (1, 2), (2, 0), (2, 1)):
            shares = [list(range(number, BATCH, processes)) for number in range(processes)]
            spawn = multiprocessing.get_context("spawn")
            with concurrent.futures.ProcessPoolExecutor(processes, mp_context=spawn) as pool:
                tasks = [pool.submit(part_digests, root, share, batches, workers) for share in shares]
                parts = [task.result() for task in tasks]
            total = hashlib.sha256()
            for of_batch in zip(*parts, strict=True):
                rows = {
                    row: each
                    for share, found in zip(shares, of_batch, strict=True)
                    for row, each in zip(share, found, strict=True)
                }
                total.update(b"".join(rows[row] for row in range(BATCH)))
            print(f"| {processes} | {workers} | {total.hexdigest()[:32]} |", flush=True)


def main() -> None:
    """Times all and prints a page of results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, default=20, help="timed in each turn, of 32 images")
    parser.add_argument("--photographs", type=int, default=384)
    parser.add_argument("--decoders", action="store_true", help="time decoders alone")
    parser.add_argument("--hashes", action="store_true", help="hash 1,000 batches instead")
    arguments = parser.parse_args()
    cores = photos.cores()

    made = synthetic.photographs(arguments.photographs)
    if arguments.decoders:
        time_decoders(arguments.rounds, made)
        return
    if arguments.hashes:
        hash_batches(made)
        return
    with tempfile.TemporaryDirectory() as root:
        folder = synthetic.write_folder({"train": made}, pathlib.Path(root, "photographs"))
        synthetic.write_imagenet({"train": made}, root)
        files = photos.open_photos("folder", raw_dir=folder)
        records = photos.open_photos("tfds:imagenet2012", data_dir=root)
        # By name: (what makes batches, from what, how many processes or threads decode).
        contestants = {
            "PIL loop": (pil_loop, files, 1),
            "torch DataLoader, in the process": (data_loader(0), files, 1),
            "torch DataLoader, 2 workers": (data_loader(2), files, 2),
            "cnnjax, 1 thread": (ours(threads=1), files, 1),
            f"cnnjax, default ({cores} threads)": (ours(), files, cores),
            "cnnjax, default, from array_record": (ours(), records, cores),
            "cnnjax, 1 worker": (ours(workers=1), files, 1),
            "cnnjax, 2 workers": (ours(workers=2), files, 2),
        }
        rates: dict[str, list[float]] = {name: [] for name in contestants}
        for number in range(arguments.rounds):
            for name in timing.order(list(contestants), number):
                make, split, ahead = contestants[name]
                time.sleep(timing.PAUSE)
                rates[name].append(turn(make, split, WARM * ahead, arguments.batches))
                print(f"round {number}: {name}: {rates[name][-1]:.0f}", flush=True)

    kilobytes = [len(content) / 1000 for _, content, _ in made]
    names = ("numpy", "pillow", "simplejpeg", "grain", "array_record", "torch")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    print(f"\n{processor()}, {cores} cores; Python {platform.python_version()}, {versions}")
    print(
        f"{len(made)} photographs of {statistics.mean(kilobytes):.0f} kB on average ({min(kilobytes):.0f} to"
        f" {max(kilobytes):.0f}); {arguments.rounds} rounds of {arguments.batches} batches of {BATCH}\n"
    )
    print("| | images a second | per core | against the PIL loop |\n|---|---|---|---|")
    for name, values in rates.items():
        median, ahead = statistics.median(values), min(contestants[name][2], cores)
        against = timing.ratio(values, rates["PIL loop"])
        print(f"| {name} | {median:.0f} ({min(values):.0f} to {max(values):.0f}) | {median / ahead:.0f} | {against} |")
    two = timing.ratio(rates["cnnjax, 2 workers"], rates["torch DataLoader, 2 workers"])
    print(f"\n2 workers against 2 workers, cnnjax over torch: {two}")


if __name__ == "__main__":
    main()
