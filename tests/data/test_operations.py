"""The operations of RandAugment and its kin: those of Pillow on both sides, drawn and as strong as torchvision does."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from orc_jax.data import device_operations, operations
from orc_jax.data.policies import OPERATIONS, POLICIES, SIGNED, magnitudes
from tests.data.pictures import picture

PHOTO = np.asarray(picture(41, 30)) // 2 + 30
STRENGTHS = {"posterize": (8, 6, 3), "solarize": (255.0, 120.3, 0.0)}


@pytest.mark.parametrize("name", OPERATIONS)
def test_on_the_device_as_by_pillow(name):
    """Up to a step of rounding in few pixels, and where a pixel comes from up to few that lie between two."""
    operate = jax.jit(device_operations.operate)
    sizes = magnitudes(name, 31, True, PHOTO.shape[:2])[[0, 9, 20, 30]]
    for m in STRENGTHS.get(name, [*sizes, *(-sizes if name in SIGNED else [])]):
        expected = np.asarray(operations.KINDS[name](Image.fromarray(PHOTO), float(m))).astype(int)
        actual = np.asarray(operate(jnp.asarray(PHOTO), OPERATIONS.index(name), jnp.float32(m)))
        assert actual.dtype == np.uint8
        off = np.abs(actual - expected)
        moves = name in device_operations.MOVES
        few = (off > 0).mean() < (0.01 if moves else 0.03) and (moves or off.max() <= 1)
        assert few, (m, off.max(), (off > 0).mean())
        if m == 0 and name in SIGNED:
            np.testing.assert_array_equal(actual, PHOTO)


def test_grey_images_and_those_of_one_value():
    grey, flat, operate = PHOTO[..., :1], np.full((5, 5, 3), 77, np.uint8), jax.jit(device_operations.operate)
    for name in ("autocontrast", "equalize", "color", "sharpness", "rotate"):
        number = OPERATIONS.index(name)
        expected = np.asarray(operations.KINDS[name](Image.fromarray(grey[..., 0]), 0.5)).astype(int)
        actual = operate(jnp.asarray(grey), number, jnp.float32(0.5))[..., 0]
        assert (np.abs(actual - expected) > 1).mean() < 0.01, name
        if name != "rotate":
            np.testing.assert_array_equal(operate(jnp.asarray(flat), number, jnp.float32(0.5)), flat)


def test_magnitudes_are_those_of_torchvision():
    """From its tables: of RandAugment the tenth of 31, of TrivialAugmentWide the last, of AutoAugment all ten."""
    size = (40, 80)
    narrow = {name: magnitudes(name, 31, False, size) for name in OPERATIONS}
    wide = {name: magnitudes(name, 31, True, size) for name in OPERATIONS}
    expected = {"shear_x": 0.09, "translate_x": 0.3 * 150 / 331 * 80, "translate_y": 0.3 * 150 / 331 * 40}
    expected |= {"rotate": 9.0, "brightness": 0.27, "sharpness": 0.27, "posterize": 7, "solarize": 178.5, "equalize": 0}
    for name, value in expected.items():
        np.testing.assert_allclose(narrow[name][9], value, rtol=1e-6, err_msg=name)
    most = {
        "shear_y": 0.99,
        "translate_y": 32,
        "rotate": 135,
        "color": 0.99,
        "posterize": 2,
        "solarize": 0,
        "invert": 0,
    }
    for name, value in most.items():
        np.testing.assert_allclose(wide[name][30], value, rtol=1e-6, err_msg=name)
    assert magnitudes("posterize", 10, False, size).tolist() == [8, 8, 7, 7, 6, 6, 5, 5, 4, 4]


def test_policies_are_those_of_the_papers():
    rand, trivial, cifar, imagenet = (POLICIES[name]((32, 32), 3, 9) for name in POLICIES)
    assert rand.draws == 3 and rand.operations[:, 0].tolist() == list(range(14))
    assert trivial.draws == 1 and len(trivial.operations) == 14 * 31
    for policy, first, last in (
        (cifar, ("invert", "contrast"), ("translate_y", "autocontrast")),
        (imagenet, ("posterize", "rotate"), ("equalize", "equalize")),
    ):
        assert policy.operations.shape == (25, 2) and policy.draws == 1
        for i, names in ((0, first), (-1, last)):
            assert tuple(OPERATIONS[number] for number in policy.operations[i]) == names
    np.testing.assert_allclose(cifar.magnitudes[0], [0, 0.6], rtol=1e-6)
    np.testing.assert_allclose(cifar.probabilities[0], [0.1, 0.2], rtol=1e-6)
    np.testing.assert_allclose(imagenet.magnitudes[0], [4, 30])
    # How often each comes in all pairs: no line was lost or turned.
    counts = [collections.Counter(OPERATIONS[i] for i in policy.operations.reshape(-1)) for policy in (cifar, imagenet)]
    told = ("equalize", "autocontrast", "translate_y", "rotate", "color", "solarize", "invert", "posterize")
    assert [[count[one] for one in told] for count in counts] == [[9, 7, 5, 1, 5, 4, 3, 1], [17, 2, 0, 6, 6, 7, 3, 5]]


@pytest.mark.parametrize("name", POLICIES)
def test_both_sides_draw_alike(name):
    """Of two values in a row, whose sums tell most operations apart: the same distribution of images."""
    image = np.zeros((6, 6, 3), np.uint8)
    image[2:5, 1:4] = (200, 120, 40)
    policy = POLICIES[name](image.shape[:2], 2, 9)
    rng, count = np.random.default_rng(0), 3000
    of_workers = np.stack([operations.apply(image, rng, policy) for _ in range(count)])
    apply = jax.jit(jax.vmap(functools.partial(device_operations.apply, policy=policy), (0, None)))
    of_device = np.asarray(apply(jax.random.split(jax.random.key(0), count), jnp.asarray(image)))
    for moment in (np.mean, np.std):
        both = [moment(images.astype(float), axis=0) for images in (of_workers, of_device)]
        np.testing.assert_allclose(*both, atol=9)
    same = [(images == image).all((1, 2, 3)).mean() for images in (of_workers, of_device)]
    np.testing.assert_allclose(*same, atol=0.04)
    for seen, _ in collections.Counter(map(bytes, of_workers)).most_common(8):
        one = np.frombuffer(seen, np.uint8).reshape(image.shape).astype(int)
        shares = [(np.abs(images - one) <= 2).all((1, 2, 3)).mean() for images in (of_workers, of_device)]
        np.testing.assert_allclose(*shares, atol=0.03)
