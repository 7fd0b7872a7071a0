"""Training images as the networks see them."""

import itertools

import jax
import numpy as np
import pytest
from PIL import Image

from orc_jax import samples
from orc_jax.config import resolve
from orc_jax.data import sets
from orc_jax.data.batches import batch_indices
from orc_jax.errors import UserError
from orc_jax.step import augment, pick, seen
from orc_jax.testing import build_run
from tests.helpers import printed

pytestmark = pytest.mark.usefixtures("toy_set")


@pytest.mark.parametrize("method", ["independent", "pcl"])
def test_they_are_those_of_the_first_step(method, config, toy):
    """Cropped and flipped alike, also where the step has several views and shares the batch among devices."""
    config.method, config.crop_padding, config.flip, config.seed = method, 2, True, 3
    config.teacher, config.assistants = "tiny_b", "copies"
    run = build_run(config, toy, 2)
    alone = run.setup._replace(axis_name=None)
    indices = batch_indices(3, 0, 16, 90)
    seen = augment(alone, jax.numpy.uint32(3), jax.numpy.int32(0), pick(toy.train, indices))
    shown = samples.first(run, 5)
    np.testing.assert_array_equal(shown.images, (seen[0] if method == "pcl" else seen)[:5])
    np.testing.assert_array_equal(shown.labels, toy.train.labels[indices[:5]])
    assert shown.images.dtype == np.uint8 and not np.array_equal(shown.images, toy.train.images[indices[:5]])
    assert len(samples.first(run, 99).images) == 16


def test_those_of_a_streamed_set(config, tmp_path):
    for split, (i, name) in itertools.product(("train", "val"), enumerate(("red", "red", "ruby", "ruby"))):
        (tmp_path / split / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 9), (200 + i, 0, 0)).save(tmp_path / split / name / f"{i}.png")
    config.dataset, config.data_dir, config.eval_split, config.batch_size = "folder", str(tmp_path), "val", 4
    config.stream.update(image_size=8, num_workers=0)
    shown = samples.first(build_run(config, sets.load(config, print)))
    assert shown.images.shape == (4, 8, 8, 3) and sorted(shown.images[:, 0, 0, 0]) == [200, 201, 202, 203]
    assert not shown.images[..., 1:].any()
    assert shown.labels.tolist() == [int(red >= 202) for red in shown.images[:, 0, 0, 0]]


def test_a_picture_of_them():
    """Row by row, the last one filled up with black; small ones are enlarged."""
    images = np.arange(1, 6, dtype=np.uint8)[:, None, None, None] * np.ones((1, 100, 70, 3), np.uint8)
    picture = samples.grid(images, columns=3)
    assert picture.shape == (200, 210, 3) and picture.dtype == np.uint8
    assert picture[::100, ::70, 0].tolist() == [[1, 2, 3], [4, 5, 0]]
    assert samples.grid(images[:2, :8, :8], columns=3).shape == (64, 128, 3)


def test_they_are_mixed_as_in_the_step(config, toy):
    """With any other of the batch, also if few are asked for."""
    config.method, config.mixup = "independent", 1.0
    run = build_run(config, toy)
    indices = batch_indices(0, 0, 16, 90)
    alone = run.setup._replace(axis_name=None)
    images, mixed = seen(alone, jax.numpy.uint32(0), jax.numpy.int32(0), pick(toy.train, indices))
    shown = samples.first(run, 5)
    np.testing.assert_allclose(shown.images, images[:5], atol=0.5)
    np.testing.assert_array_equal(shown.labels, toy.train.labels[indices[:5]])
    share, own = float(mixed.share), toy.train.images[indices].astype(float)
    off = [np.abs(shown.images[0] - share * own[0] - (1 - share) * other).max() for other in own]
    assert min(off) < 0.6 and 0.01 < share < 0.99


def test_a_preview_is_a_picture_of_them(config, toy, console, tmp_path):
    """In a folder that is made for it; a training can start there."""
    config.cutout, config.method = 3, "independent"
    samples.preview(resolve(config), tmp_path / "new", console)
    (path,) = (tmp_path / "new").iterdir()
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        np.testing.assert_array_equal(
            np.asarray(picture), samples.grid(samples.first(build_run(config, toy)).images)[..., 0]
        )
    assert f"augmentation: 3 x 3 pixels cut out the first images of the first step in {path}" in printed(console)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--workdir=.*file: cannot be written"):
        samples.preview(resolve(config), tmp_path / "file", console)


def test_a_preview_of_a_streamed_set(config, console, tmp_path):
    for split, name, i in itertools.product(("train", "val"), ("red", "ruby"), range(2)):
        (tmp_path / split / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (200, 0, 0)).save(tmp_path / split / name / f"{i}.png")
    config.dataset, config.data_dir, config.eval_split, config.batch_size = "folder", str(tmp_path), "val", 4
    config.method, config.cutout, config.num_epochs = "independent", 30, 1
    config.stream.update(image_size=60, num_workers=0)
    samples.preview(resolve(config), tmp_path / "run", console)
    with Image.open(tmp_path / "run" / samples.PREVIEW) as picture:
        pixels = np.asarray(picture)
    colours = np.unique(pixels.reshape(-1, 3), axis=0).tolist()
    assert pixels.shape == (120, 480, 3) and [200, 0, 0] in colours and [124, 116, 104] in colours, colours


def test_images_that_are_no_pictures_have_no_preview(config, toy, console, tmp_path, monkeypatch):
    monkeypatch.setattr(sets, "load", lambda *rest: toy._replace(image_shape=(8, 8, 2)))
    with pytest.raises(UserError, match="--mode=preview: images of toy have 2 channels; accepted are 1 and 3"):
        samples.preview(resolve(config), tmp_path / "run", console)


def test_where_nobody_looks_nothing_is_made(config, toy, monkeypatch):
    class Log:
        trackers = ()

    monkeypatch.setattr(samples, "first", pytest.fail)
    samples.show(build_run(config, toy), Log())
    Log.trackers = ("one",)
    two_channels = toy._replace(image_shape=(8, 8, 2))
    samples.show(build_run(config, two_channels), Log())
