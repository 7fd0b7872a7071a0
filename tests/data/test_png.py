"""PNG as TFDS writes it."""

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from orc_jax.data import png

PREPARED = Path(__file__).parents[3] / "shared" / "data" / "tfds"


def pixels(encoded):
    with Image.open(io.BytesIO(encoded)) as image:
        assert image.format == "PNG"
        return np.asarray(image)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 1), (8, 6), (40, 70)])
def test_every_image_comes_back(size):
    rng = np.random.default_rng(0)
    smooth = np.add.outer(np.arange(size[0]), np.arange(size[1]))[..., None] * [1, 2, 3] % 256
    noise = rng.integers(0, 256, (*size, 3))
    images = np.stack([smooth, noise, np.zeros_like(noise), np.full_like(noise, 255)]).astype(np.uint8)
    for image, encoded in zip(images, png.encode(images), strict=True):
        np.testing.assert_array_equal(pixels(encoded), image)


def test_rows_get_the_filter_that_suits_them():
    """A constant row the difference to its left, its repetition the one to the row above, zeros none."""
    image = np.zeros((1, 4, 6, 3), np.uint8)
    image[0, 1:3] = 100
    image[0, 2, :, 0] = np.arange(6) * 40
    image[0, 3] = image[0, 2]
    encoded = png.encode(image)[0]
    start = encoded.index(b"IDAT")
    rows = np.frombuffer(zlib.decompress(encoded[start + 4 :]), np.uint8).reshape(4, 19)
    assert rows[0, 0] == 0 and rows[1, 0] == 1 and rows[3, 0] == 2
    assert not rows[0, 1:].any() and not rows[3, 1:].any() and rows[1, 1:].sum() == 300


@pytest.mark.skipif(not (PREPARED / "cifar100").is_dir(), reason="needs CIFAR-100 as TFDS has prepared it")
@pytest.mark.skipif("ng" in zlib.ZLIB_RUNTIME_VERSION, reason="another zlib compresses otherwise")
def test_files_are_those_that_tfds_wrote(monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
    builder = tfds.builder("cifar100", data_dir=str(PREPARED))
    source = builder.as_data_source(split="test", decoders={"image": tfds.decode.SkipDecoding()})
    written = [source[i]["image"] for i in range(2_000)]
    assert png.encode(np.stack([pixels(encoded) for encoded in written])) == written
