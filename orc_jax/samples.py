"""Training images as the networks see them: the first ones of the first step, augmented and not normalised yet."""

import io
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from rich.console import Console

from orc_jax import hosts
from orc_jax.config import Resolved
from orc_jax.data import augment, feed, sets
from orc_jax.data.batches import seed_of
from orc_jax.data.types import Images
from orc_jax.errors import UserError
from orc_jax.run import Run, build
from orc_jax.step import seen
from orc_jax.terminal import doing, warner
from orc_jax.workdir import record
from orc_jax.workdir.files import writing
from orc_jax.workdir.logs import MetricsLog

COUNT, COLUMNS = 16, 8
SHEET = 64  # images of a preview
PREVIEW = "preview.png"
SMALLEST = 64  # pixels: smaller images are enlarged in a picture


def first(run: Run, count: int = COUNT) -> Images:
    """The first examples of the first step of a run, at most `count`, on the host, as its networks see them.

    Of a method with several views, the first of them.
    """
    setup = run.setup._replace(axis_name=None)  # all on one device: the places in the batch stay the same
    needed = run.config.batch_size if any(setup.mixing) else count  # they are mixed with any other of the batch
    examples = feed.first_examples(run.dataset, run.config, needed, setup.views)
    seed = jnp.asarray(seed_of(run.config), jnp.uint32)  # an argument: runs that differ in it have one program
    images = jax.jit(lambda seed, examples: seen(setup, seed, jnp.int32(0), examples)[0])(seed, examples)
    images = np.asarray(images[0] if setup.views > 1 else images)[:count]
    return Images(images.round().astype(np.uint8), examples.labels[:count])


def grid(images: np.ndarray, columns: int = COLUMNS) -> np.ndarray:
    """Images uint8 `[n, height, width, channels]`, row by row in one: `[rows, columns of pixels, channels]`."""
    factor = -(-SMALLEST // max(images.shape[1:3]))
    images = images.repeat(factor, axis=1).repeat(factor, axis=2)
    count, height, width, channels = images.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    places = np.zeros((rows * columns, height, width, channels), np.uint8)
    places[:count] = images
    places = places.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    return places.reshape(rows * height, columns * width, channels)


def show(run: Run, log: MetricsLog) -> None:
    """Puts them in the trackers of a run, if it has any and they are grey or colour images."""
    if log.trackers and run.dataset.image_shape[-1] in (1, 3):
        log.picture("samples", grid(first(run).images), 0)


def preview(resolved: Resolved, workdir: Path, console: Console) -> None:
    """Writes a contact sheet of what the networks of a run will see first, as a PNG in `workdir`. Trains nothing.

    Raises:
        UserError: for what a training would refuse, too, for images that are no pictures, and if it cannot be written.
    """
    with doing(console, f"reading {resolved.config.dataset}"):
        dataset = sets.load(resolved.config, warner(console), resolved.plugins)
    if (there := record.read(workdir)) is not None:
        dataset = dataset._replace(whole=there.seen_whole(dataset.whole))
    channels = dataset.image_shape[-1]
    if channels not in (1, 3):
        raise UserError(f"--mode=preview: images of {dataset.name} have {channels} channels; accepted are 1 and 3")
    with doing(console, "augmenting the first images"):
        run = build(resolved, dataset, jax.local_devices())
        picture = grid(first(run, SHEET).images)
    path, file = workdir / PREVIEW, io.BytesIO()
    Image.fromarray(picture if channels == 3 else picture[..., 0]).save(file, "PNG")
    if hosts.is_main():
        with writing(f"--workdir={workdir}"):
            workdir.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file.getvalue())
    console.print(f"augmentation: {augment.in_words(run.config, streamed=dataset.is_streamed)}", highlight=False)
    console.print(f"the first images of the first step in {path}", soft_wrap=True)
