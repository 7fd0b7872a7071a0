"""What is changed of cropped images: the same pixels on the device as by Pillow, and the same distributions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from orc_jax.data import changes, device_changes
from tests.data.pictures import picture

PHOTO = np.asarray(picture(24, 17))
COLOURS = np.stack(np.meshgrid(*[np.arange(0, 256, 15, np.uint8)] * 3), -1).reshape(72, 81, 3)  # all over the cube
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
FILL = (1, 2, 3)


@pytest.mark.parametrize(
    ("colour", "factors"), [*((i, (0.0, 0.3, 1.0, 1.7)) for i in range(3)), (HUE, (-0.5, 0.13, 0.4))]
)
def test_colours_are_those_of_pillow(colour, factors):
    """Up to a step of rounding in few pixels; a step of the hue is six of a colour."""
    change = jax.jit(device_changes.COLOURS[colour])
    for image in (PHOTO, COLOURS):
        for factor in factors:
            expected = np.asarray(changes.COLOURS[colour](Image.fromarray(image), factor)).astype(int)
            actual = np.asarray(change(jnp.asarray(image), jnp.float32(factor)))
            assert actual.dtype == np.uint8
            off = np.abs(actual - expected)
            assert off.max() <= (6 if colour == HUE else 1) and (off > 0).mean() < 0.02, (factor, off.max(), off.mean())


def test_colours_golden():
    """By hand: to black and beyond white, to the mean of the luma, to the luma, and red to green by a third."""
    image = np.array([[[200, 100, 0], [0, 100, 200]]], np.uint8)
    luma = [118, 82]  # 0.299 r + 0.587 g + 0.114 b
    on_device = [functools.partial(one, jnp.asarray(image)) for one in device_changes.COLOURS]
    np.testing.assert_array_equal(on_device[BRIGHTNESS](jnp.float32(0.5)), image // 2)
    np.testing.assert_array_equal(on_device[BRIGHTNESS](jnp.float32(2.0)), [[[255, 200, 0], [0, 200, 255]]])
    np.testing.assert_array_equal(on_device[CONTRAST](jnp.float32(0.0)), np.full((1, 2, 3), 100))
    np.testing.assert_array_equal(on_device[SATURATION](jnp.float32(0.0))[..., 0], [luma])
    red = jnp.array([[[255, 0, 0]]], jnp.uint8)
    np.testing.assert_allclose(device_changes.turn_hue(red, jnp.float32(1 / 3)), [[[0, 255, 0]]], atol=3)
    grey = jnp.array([[[100], [200]]], jnp.uint8)
    np.testing.assert_array_equal(device_changes.contrast(grey, jnp.float32(0.0)), [[[150], [150]]])


def drawn(kind, image, count=2000, **arguments):
    """What both twins make of one image, again and again: from worker processes and from the device."""
    rng = np.random.default_rng(0)
    of_workers = np.stack([changes.KINDS[kind](image, rng, **arguments) for _ in range(count)])
    change = jax.jit(jax.vmap(functools.partial(device_changes.KINDS[kind], **arguments), (0, None)))
    return of_workers, np.asarray(change(jax.random.split(jax.random.key(0), count), jnp.asarray(image)))


def boxes(images):
    """Top, left, height and width of what is filled in each, of those with something."""
    hidden = (images == np.array(FILL)).all(-1)
    hidden = hidden[hidden.any((1, 2))]
    rows, columns = hidden.any(2), hidden.any(1)
    found = np.stack([rows.argmax(1), columns.argmax(1), rows.sum(1), columns.sum(1)], 1)
    assert (hidden.sum((1, 2)) == found[:, 2] * found[:, 3]).all(), "what is hidden is one box"
    return found


def test_a_square_is_cut_out_around_any_pixel():
    image = np.full((12, 9, 3), 200, np.uint8)
    for images in drawn("cutout", image, size=4, fill=FILL):
        top, left, height, width = boxes(images).T
        assert len(top) == 2000 and images.dtype == np.uint8
        bottom, right = top + height, left + width
        assert (height <= 4).all() and (width <= 4).all()
        # Around c the rows c - 2 ... c + 1, as far as there are: those around 10 and 11 both end at the edge
        assert np.unique(bottom).tolist() == [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
        np.testing.assert_allclose(np.bincount(bottom)[2:12] / 2000, 1 / 12, atol=0.03)
        np.testing.assert_allclose((right == 9).mean(), 2 / 9, atol=0.04)


def test_a_box_is_erased_as_torchvision_draws_it():
    image = np.full((40, 30, 3), 200, np.uint8)
    workers, device = (boxes(images) for images in drawn("erase", image, probability=0.5, fill=FILL))
    for found in (workers, device):
        np.testing.assert_allclose(len(found) / 2000, 0.5, atol=0.04)
        share = found[:, 2] * found[:, 3] / 1200
        assert share.min() > 0.01 and share.max() < 0.36 and (found[:, 2] < 40).all() and (found[:, 3] < 30).all()
        assert (found[:, 0] + found[:, 2] == 40).any() and (found[:, 0] == 0).any(), "up to both edges"
    # The share is uniform but for boxes that do not fit; both draw alike in all numbers.
    np.testing.assert_allclose(
        np.quantile(workers, (0.2, 0.5, 0.8), 0), np.quantile(device, (0.2, 0.5, 0.8), 0), atol=2
    )
    always = drawn("erase", image, 50, probability=1.0, fill=FILL)
    assert [len(boxes(images)) for images in always] == [50, 50]


def test_what_fits_nowhere_is_not_erased():
    """A single row: no box is lower than it is."""
    image = np.full((1, 30, 3), 200, np.uint8)
    for images in drawn("erase", image, 50, probability=1.0, fill=FILL):
        assert (images == 200).all() or len(boxes(images)) == 0


def test_jitter_draws_factors_evenly_and_in_any_order():
    image = np.full((2, 2, 3), 100, np.uint8)
    for images in drawn("jitter", image, strengths=(0.4, 0.0, 0.0, 0.0)):
        values = images[:, 0, 0, 0]
        assert values.min() == 60 and values.max() == 139
        np.testing.assert_allclose([values.mean(), values.std()], [99.5, 80 / 12**0.5], rtol=0.04)
    image = np.asarray(picture(4, 4))
    workers, device = (x.astype(float) for x in drawn("jitter", image, strengths=(0.4, 0.4, 0.4, 0.1)))
    np.testing.assert_allclose(workers.mean(0), device.mean(0), atol=5)
    np.testing.assert_allclose(workers.std(0), device.std(0), atol=5)
    (same,) = {x.tobytes() for x in drawn("jitter", image, 20, strengths=(0.0, 0.0, 0.0, 0.0))[1]}
    assert same == image.tobytes()


def test_the_order_of_colours_changes():
    """A brightness of nearly 2 before a contrast clips otherwise than after it."""
    image = np.array([[[10, 10, 10], [240, 240, 240]]], np.uint8)
    workers, device = (x[:, 0, :, 0].astype(float) for x in drawn("jitter", image, strengths=(0.9, 0.9, 0.0, 0.0)))
    np.testing.assert_allclose(
        np.quantile(workers, (0.25, 0.5, 0.75), 0), np.quantile(device, (0.25, 0.5, 0.75), 0), atol=12
    )


def test_grey_images_have_brightness_and_contrast_alone():
    image = np.arange(0, 250, 10, dtype=np.uint8).reshape(5, 5, 1)
    key = jax.random.key(0)
    assert not np.array_equal(device_changes.jitter(key, jnp.asarray(image), (0.4, 0.4, 0.0, 0.0)), image)
    np.testing.assert_array_equal(device_changes.jitter(key, jnp.asarray(image), (0.0, 0.0, 0.4, 0.1)), image)
