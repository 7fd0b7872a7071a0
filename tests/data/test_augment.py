"""Augmentation: what it does to images, what of it the config decides, and that it differs wherever it should."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from orc_jax import step
from orc_jax.data import augment
from orc_jax.data.augment import crop_and_flip, normalize
from orc_jax.data.types import Images
from orc_jax.errors import UserError
from orc_jax.testing import build_run
from tests.data.pictures import Encoded, encode, picture


def test_crops_are_windows_of_the_padded_image_and_flips_mirror():
    image = np.arange(1, 17, dtype=np.uint8).reshape(4, 4, 1)
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
    windows = {padded[y : y + 4, x : x + 4].tobytes(): (y, x) for y in range(5) for x in range(5)}
    mirrored = {padded[y : y + 4, x : x + 4][:, ::-1].tobytes(): (y, x) for y in range(5) for x in range(5)}
    images = jnp.repeat(jnp.asarray(image)[None], 600, axis=0)
    keys = jax.random.split(jax.random.key(0), 600)
    seen = [x.tobytes() for x in np.asarray(crop_and_flip(keys, images, 2, True))]
    assert all(x in windows or x in mirrored for x in seen)
    offsets = np.array([(windows | mirrored)[x] for x in seen])
    assert len(np.unique(offsets, axis=0)) == 25, "all offsets occur"
    counts = np.stack([np.bincount(offset) for offset in offsets.T])
    assert counts.min() > 80 and counts.max() < 160, "and equally often: 120 times of 600"
    flipped = np.mean([x in mirrored for x in seen])
    assert 0.4 < flipped < 0.6
    untouched = crop_and_flip(keys, images, 0, False)
    assert untouched.dtype == jnp.uint8
    np.testing.assert_array_equal(untouched, images)


def test_normalize_golden():
    images = jnp.array([[[[0, 255], [51, 102]]]], jnp.uint8)
    np.testing.assert_allclose(normalize(images, (0.2, 0.4), (0.5, 0.2)), [[[[-0.4, 3.0], [0.0, 0.0]]]], atol=1e-6)


def test_the_config_decides_for_a_set_in_memory(config, toy):
    images, keys = jnp.asarray(toy.train.images[:32]), jax.random.split(jax.random.key(0), 32)

    def augmented(padding, flip):
        config.crop_padding, config.flip = padding, flip
        return np.asarray(augment.of_memory(config, toy)(keys, images))

    both = augmented(2, True)
    np.testing.assert_array_equal(both, crop_and_flip(keys, images, 2, True))
    np.testing.assert_array_equal(augmented(0, False), images)
    flipped, cropped = augmented(0, True), augmented(2, False)
    for other in (flipped, cropped, augmented(1, True), np.asarray(images)):
        assert not np.array_equal(other, both)
    mirrored = [np.array_equal(x, image[:, ::-1]) for x, image in zip(flipped, np.asarray(images), strict=True)]
    assert 0 < sum(mirrored) < 32 and (cropped == 0).any(axis=(1, 2, 3)).sum() > 20


def test_the_config_decides_for_a_streamed_set(config, toy):
    data = encode(picture(60, 40), "PNG")
    base = {"image_size": 12, "crop_area": (0.4, 0.5)}

    def augmented(flip=True, **fields):
        config.flip = flip
        config.stream.update(**base | fields)
        one = pickle.loads(pickle.dumps(augment.of_stream(config, toy)))  # worker processes get a copy
        return np.stack([one(data, np.random.default_rng(seed)) for seed in range(8)])

    crops = augmented()
    assert crops.shape == (8, 12, 12, 3) and crops.dtype == np.uint8
    np.testing.assert_array_equal(augmented(), crops)
    plain = augmented(flip=False)
    mirrored = [np.array_equal(*pair) for pair in zip(plain[:, :, ::-1], crops, strict=True)]
    same = [np.array_equal(*pair) for pair in zip(plain, crops, strict=True)]
    assert 0 < sum(mirrored) < 8 and sum(mirrored) + sum(same) == 8
    assert augmented(image_size=9).shape == (8, 9, 9, 3)
    whole = augmented(flip=False, crop_area=(0.99, 1.0))  # nearly the same part every time
    assert np.ptp(whole.astype(int), axis=0).mean() < 0.5 * np.ptp(plain.astype(int), axis=0).mean()


def test_the_config_decides_for_small_images_of_a_streamed_set(config, toy):
    data = encode(picture(12, 12), "PNG")
    config.stream.image_size = 12
    for padding, differing in ((0, 1), (1, 9)):
        config.crop_padding = padding
        one = augment.of_stream(config, toy._replace(whole=True))
        assert len({one(data, np.random.default_rng(seed)).tobytes() for seed in range(99)}) == differing


def test_what_is_changed_after_the_crop_is_so_for_memory_and_streams(config, toy):
    """In order: the crop as ever, colours, and then what is hidden, in the mean colour."""
    colour = toy._replace(image_shape=(12, 12, 3), mean=(0.2, 0.4, 0.6))
    data = encode(picture(12, 12), "PNG")
    pixels = jnp.asarray(np.asarray(picture(12, 12)))[None]
    keys = jax.random.split(jax.random.key(0), 1)
    config.stream.update(image_size=12, crop_area=(1.0, 1.0))
    config.crop_padding, config.flip = 0, False

    def augmented(**fields):
        config.update(color_jitter=(), cutout=0, random_erasing=0.0)
        config.update(fields)
        streamed = pickle.loads(pickle.dumps(augment.of_stream(config, colour._replace(whole=True))))
        return streamed(data, np.random.default_rng(0)), np.asarray(augment.of_memory(config, colour)(keys, pixels)[0])

    for images in zip(*(augmented(**f) for f in ({}, {"cutout": 4}, {"random_erasing": 1.0})), strict=True):
        plain, *hidden = images
        np.testing.assert_array_equal(plain, pixels[0])
        for image in hidden:
            filled = (image == (51, 102, 153)).all(-1)
            assert 2 < filled.sum() < 60 and image.dtype == np.uint8
            np.testing.assert_array_equal(image[~filled], plain[~filled])
    for image in augmented(color_jitter=(0.9, 0.0, 0.0, 0.0), cutout=4):
        filled = (image == (51, 102, 153)).all(-1)
        assert filled.any() and not np.array_equal(image[~filled], np.asarray(pixels[0])[~filled])


@pytest.mark.parametrize("name", augment.POLICIES)
def test_policies_by_their_names(name, config, toy):
    """For memory and for streams, of which RandAugment has the numbers of its field."""
    colour = toy._replace(image_shape=(12, 12, 3), mean=(0.2, 0.4, 0.6), whole=True)
    data, pixels = encode(picture(12, 12), "PNG"), jnp.asarray(np.asarray(picture(12, 12)))
    keys, many = jax.random.split(jax.random.key(0), 40), jnp.repeat(pixels[None], 40, axis=0)
    config.stream.image_size = 12
    config.auto_augment, config.rand_augment = name, (3, 30)
    streamed = pickle.loads(pickle.dumps(augment.of_stream(config, colour)))
    of_workers = [streamed(data, np.random.default_rng(seed)) for seed in range(40)]
    of_device = np.asarray(augment.of_memory(config, colour)(keys, many))
    for images in (of_workers, of_device):
        assert all(x.dtype == np.uint8 and x.shape == (12, 12, 3) for x in images)
        same = np.mean([np.array_equal(x, pixels) for x in images])
        assert same < 0.2 if name == "rand" else same < 0.6
        assert len({x.tobytes() for x in images}) > 10


def test_colours_are_those_of_grey_and_colour_images(config, toy):
    config.color_jitter = (0.4, 0.0, 0.0, 0.0)
    augment.check_images(config, toy)
    with pytest.raises(UserError, match=r"config.color_jitter=\(0.4, .*images of toy have 2 channels"):
        augment.check_images(config, toy._replace(image_shape=(8, 8, 2)))


def test_a_method_of_ones_own_says_what_it_does_with_labels(config):
    config.label_smoothing = 0.1
    with pytest.raises(
        UserError, match=r"config.label_smoothing=0.1: config.method='orc' does not say .*accepted is 0"
    ):
        augment.check_method(config, None)
    augment.check_method(config, "something")


def sees(config, toy):
    """What a run makes of a batch of one image again and again, by seed and step."""
    setup = build_run(config, toy, axis_name=None).setup
    copies = Images(jnp.repeat(jnp.asarray(toy.train.images[:1]), 16, axis=0), jnp.zeros(16, jnp.int32))
    see = jax.jit(lambda seed, at: step.augment(setup, seed, at, copies))
    return lambda seed, at: np.asarray(see(jnp.uint32(seed), jnp.int32(at)))


def test_every_step_seed_and_place_in_the_batch_has_its_own(config, toy):
    config.crop_padding, config.flip, config.cutout, config.color_jitter = 3, True, 3, (0.4, 0.4, 0.0, 0.0)
    see = sees(config, toy)
    seen = {(seed, at): see(seed, at) for seed in (0, 1) for at in (0, 1, 2)}
    np.testing.assert_array_equal(see(1, 2), seen[1, 2])
    assert len({images.tobytes() for images in seen.values()}) == 6
    for images in seen.values():
        assert len(np.unique(images.reshape(16, -1), axis=0)) > 8


def test_every_view_has_its_own(config, toy):
    config.crop_padding, config.flip, config.method = 3, True, "pcl"
    config.teacher, config.assistants, config.num_networks = "tiny_b", "copies", 3
    views = sees(config, toy)(0, 0)
    assert views.shape == (3, 16, 8, 8, 1) and len({view.tobytes() for view in views}) == 3
    config.pcl.own_augmentation = False
    np.testing.assert_array_equal(sees(config, toy)(0, 0), views[0])


@pytest.mark.parametrize("views", [1, 3])
def test_what_is_streamed_comes_augmented(config, toy, views):
    """A step leaves it alone, whatever the config says; views come first."""
    config.crop_padding, config.flip = 3, True
    streamed = toy._replace(train=Encoded(*[b""] * 90))
    setup = build_run(config, streamed, axis_name=None).setup._replace(views=views)
    images = np.random.default_rng(0).integers(0, 256, (16, views, 8, 8, 1), np.uint8)
    images = images[:, 0] if views == 1 else images
    seen = step.augment(setup, jnp.uint32(0), jnp.int32(0), Images(jnp.asarray(images), jnp.zeros(16, jnp.int32)))
    np.testing.assert_array_equal(seen, images if views == 1 else images.swapaxes(0, 1))


def test_what_a_config_does_to_images_in_words(config):
    """A streamed set is cropped whatever the padding is."""
    config.crop_padding, config.flip = 0, False
    assert augment.in_words(config, streamed=False) == "not augmented"
    assert augment.in_words(config, streamed=True) == "cropped at random"
    config.flip = True
    assert augment.in_words(config, streamed=False) == "flipped at random"
    config.crop_padding = 4
    assert augment.in_words(config, streamed=False) == "cropped and flipped at random"
    config.update(
        auto_augment="trivial", color_jitter=(0.4, 0.4, 0.4, 0.1), cutout=8, random_erasing=0.25, mixup=0.2, cutmix=1.0
    )
    told = (
        "cropped and flipped at random, TrivialAugment, colours jittered, 8 x 8 pixels cut out, a box erased of 25%, "
    )
    assert augment.in_words(config, streamed=False) == told + "mixed by mix-up or CutMix"
