"""How many images the input pipeline delivers by itself, against a plain loop over Pillow in one process.

python -m scripts.bench_input DIR                 # DIR holds train/<class>/<image> and val/<class>/<image>
python -m scripts.bench_input                     # synthetic photos of 500x375 pixels
"""

import argparse
import functools
import itertools
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
from PIL import Image

from orc_jax.data import decode, folder, stream
from orc_jax.data.batches import batch_indices

AREA = (0.08, 1.0)


def make_tree(root: Path, count: int) -> None:
    """Smooth random noise with a little grain: about 100 kB each, as photos of ImageNet have."""
    rng = np.random.default_rng(0)
    for i in range(count):
        image = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize(
            (500, 375), Image.Resampling.BICUBIC
        )
        grain = rng.normal(0, 12, (375, 500, 1))
        path = root / ("val" if i == 0 else "train") / "photos" / f"{i:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((np.asarray(image) + grain).clip(0, 255).astype(np.uint8)).save(path, quality=90)


def plain_loop(records: folder.Records, size: int, batch_size: int) -> Iterator[np.ndarray]:
    """The same crops without draft mode, workers or threads."""
    rng = np.random.default_rng(0)
    for step in itertools.count():
        images = []
        for i in batch_indices(0, step, batch_size, len(records)):
            with Image.open(records.name(i)) as file:
                image = file.convert("RGB")
            image = image.crop(decode.crop_box(rng, *image.size, AREA)).resize((size, size), Image.Resampling.BILINEAR)
            if rng.random() < 0.5:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            images.append(np.asarray(image))
        yield np.stack(images)


class Rate(NamedTuple):
    per_second: float
    per_cpu_second: float  # of this process and its workers: what a core delivers, also of a busy machine


def cpu_seconds() -> float:
    """What this process and its workers have used so far (Linux)."""
    ticks = 0
    for pid in (os.getpid(), *(child.pid for child in multiprocessing.active_children())):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def rate(batches: Iterator, batch_size: int, seconds: float, warm_up: int) -> Rate:
    """Measures once the batches that were made in advance are used up."""
    for _ in range(warm_up):
        next(batches)
    started, used = time.perf_counter(), cpu_seconds()
    count = 0
    while time.perf_counter() - started < seconds:
        next(batches)
        count += batch_size
    return Rate(count / (time.perf_counter() - started), count / (cpu_seconds() - used))


def measurements(records: folder.Records, size: int, args: argparse.Namespace) -> dict[str, Callable[[], Rate]]:
    """What measures the rate of each pipeline, by name."""

    def plain() -> Rate:
        return rate(plain_loop(records, size, args.batch), args.batch, args.seconds, warm_up=1)

    def pipeline(num_workers: int) -> Rate:
        augment = functools.partial(decode.random_resized_crop, size=size, area=AREA, flip=True)
        source = stream.TrainExamples(records, 0, args.batch, 10**9, 0, augment, skip_corrupt=False)
        with stream.batches(source, args.batch, num_workers) as batches:
            return rate(batches, args.batch, args.seconds, warm_up=4 * max(1, num_workers))

    cores = os.cpu_count() or 1
    result = {"plain loop": plain, f"threads of one process: {cores}": lambda: pipeline(0)}
    return result | {f"worker processes: {n}": functools.partial(pipeline, n) for n in sorted({1, cores})}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", nargs="?", help="a folder of images; by default a temporary one is made")
    parser.add_argument("--count", type=int, default=300, help="of synthetic photos")
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 64])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--repeats", type=int, default=3, help="of which the median counts")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        if not args.directory:
            make_tree(Path(temporary), args.count)
        options = folder.Options(skip_corrupt=True)
        records = folder.load(args.directory or temporary, "train", "val", options, print).train
        pixels = np.mean([decode.open_image(records.read(i)[0]).size for i in range(min(len(records), 500))], axis=0)
        print(f"{len(records)} images, on average {pixels[0]:.0f}x{pixels[1]:.0f}, Pillow {PIL.__version__}")
        print("| pixels | | images/s | of the plain loop | images per CPU second | of the plain loop |")
        print("|---|---|---|---|---|---|")
        for size in args.sizes:
            programs = measurements(records, size, args)
            rates = {name: [] for name in programs}
            for _ in range(args.repeats):  # interleaved, so that a busy machine is unfair to all alike
                for name, measure in programs.items():
                    while multiprocessing.active_children():  # those of the measurement before
                        time.sleep(0.1)
                    rates[name].append(measure())
            medians = {name: Rate(*map(statistics.median, zip(*values, strict=True))) for name, values in rates.items()}
            plain = medians["plain loop"]
            for name, value in medians.items():
                cells = (f"{x:.0f} | {x / y:.2f}" for x, y in zip(value, plain, strict=True))
                print(f"| {size} | {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
