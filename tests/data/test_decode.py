"""Decoding images: crops against NumPy and Pillow, colours of every kind, and what Pillow says of odd files."""

import importlib
import types
import warnings

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from orc_jax.data import decode
from tests.data.pictures import encode, picture


def resample(image, box, shape):
    """Antialiased bilinear interpolation of a box (left, top, right, bottom) in NumPy."""

    def weights(count, low, high, out):
        scale = (high - low) / out
        centers = low + (np.arange(out) + 0.5) * scale
        offsets = (np.arange(count) + 0.5 - centers[:, None]) / max(scale, 1)
        triangle = np.maximum(0, 1 - np.abs(offsets))
        return triangle / triangle.sum(1, keepdims=True)

    pixels = np.asarray(image, np.float64)
    rows = weights(pixels.shape[0], box[1], box[3], shape[0])
    columns = weights(pixels.shape[1], box[0], box[2], shape[1])
    return np.einsum("yh,hwc,xw->yxc", rows, pixels, columns, optimize=True)


def test_crop_box_golden():
    """A quarter of 100x80 pixels at ratio 1; the first try, of the whole area at ratio 4/3, does not fit."""
    draws, offsets = [1.0, np.log(4 / 3), 0.25, 0.0], [7, 11]
    rng = types.SimpleNamespace(uniform=lambda *_: draws.pop(0), integers=lambda _: offsets.pop(0))
    assert decode.crop_box(rng, 100, 80, (0.08, 1.0)) == (11, 7, 56, 52)
    rng = np.random.default_rng(0)
    assert decode.crop_box(rng, 400, 100, (1.0, 1.0)) == (133, 0, 266, 100), "too wide: the central 4/3"
    assert decode.crop_box(rng, 100, 400, (1.0, 1.0)) == (0, 133, 100, 266), "too tall: the central 3/4"
    assert decode.crop_box(rng, 1, 50, (1.0, 1.0)) == (0, 24, 1, 25)


def test_crop_box_distribution():
    rng = np.random.default_rng(0)
    left, top, right, bottom = np.array([decode.crop_box(rng, 4000, 4000, (0.1, 0.4)) for _ in range(2000)]).T
    width, height = right - left, bottom - top
    shares, ratios = width * height / 4000**2, np.log(width / height) / np.log(4 / 3)
    np.testing.assert_allclose(np.quantile(shares, [0, 0.5, 1]), [0.1, 0.25, 0.4], atol=0.01)
    np.testing.assert_allclose(np.quantile(ratios, [0, 0.25, 0.5, 1]), [-1, -0.5, 0, 1], atol=0.06)
    np.testing.assert_allclose(np.quantile(left / (4000 - width), [0, 0.5, 1]), [0, 0.5, 1], atol=0.03)


@pytest.mark.parametrize("size", [48, 300])
def test_random_resized_crop_against_numpy(size):
    image = picture(260, 190)
    box = decode.crop_box(np.random.default_rng(1), *image.size, (0.2, 0.5))
    crop = decode.random_resized_crop(encode(image, "PNG"), np.random.default_rng(1), size, (0.2, 0.5), False)
    assert crop.shape == (size, size, 3) and crop.dtype == np.uint8
    np.testing.assert_allclose(crop, resample(image, box, (size, size)), atol=1.5)


def test_draft_is_close_to_the_exact_crop():
    data = encode(picture(1200, 900), quality=90)
    for seed in range(8):
        crops = [
            decode.random_resized_crop(data, np.random.default_rng(seed), 64, (0.3, 1.0), False, draft).astype(int)
            for draft in (True, False)
        ]
        assert np.abs(crops[0] - crops[1]).mean() < 1, "a shift by a pixel would be 4"


def test_a_jpeg_is_decoded_no_smaller_than_it_is_needed(monkeypatch):
    """At 1/2, 1/4 or 1/8 of its size: the largest divisor that leaves the crop at least as large as the result."""
    drafts, draft = [], JpegImagePlugin.JpegImageFile.draft

    def noted(image, mode, size):
        result = draft(image, mode, size)
        drafts.append((size, image.size))
        return result

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "draft", noted)
    jpeg, png, rng = encode(picture(1200, 900)), encode(picture(900, 900), "PNG"), np.random.default_rng(0)
    for size, divisor in ((450, 2), (449, 2), (451, 1), (226, 2), (225, 4), (180, 4), (113, 4), (112, 8), (20, 8)):
        decode.random_resized_crop(png, rng, size, (1.0, 1.0), False)
        decode.random_resized_crop(jpeg, rng, size, (1.0, 1.0), False, draft=False)
        assert drafts == []
        decode.random_resized_crop(jpeg, rng, size, (1.0, 1.0), False)  # all of it, as no other box has this area
        asked, got = (1200 // divisor, 900 // divisor), (1200 // divisor, -(-900 // divisor))
        assert drafts == ([(asked, got)] if divisor > 1 else []), size
        drafts.clear()


@pytest.mark.parametrize(("width", "height"), [(260, 191), (191, 260), (100, 80), (256, 256)])
def test_resize_and_center_crop_against_pillow(width, height):
    image = picture(width, height)
    scale = (256, int(256 * height / width)) if width < height else (int(256 * width / height), 256)
    left, top = round((scale[0] - 224) / 2.0), round((scale[1] - 224) / 2.0)
    expected = image.resize(scale, Image.Resampling.BILINEAR).crop((left, top, left + 224, top + 224))
    actual = decode.resize_and_center_crop(encode(image, "PNG"), 224, 0.875)
    np.testing.assert_array_equal(actual, np.asarray(expected))


def test_flips():
    data, whole = encode(picture(40, 30), "PNG"), (0.99, 1.0)
    crops = [
        [decode.random_resized_crop(data, np.random.default_rng(seed), 20, whole, flip) for flip in (False, True)]
        for seed in range(200)
    ]
    mirrored = [np.array_equal(plain[:, ::-1], flipped) for plain, flipped in crops]
    assert 70 < sum(mirrored) < 130
    assert all(mirror or np.array_equal(*pair) for mirror, pair in zip(mirrored, crops, strict=True))


def test_modes():
    grey = np.arange(256, dtype=np.uint16).reshape(16, 16)
    rgb = picture(16, 16)
    palette = rgb.quantize(8)
    rgba = rgb.copy()
    rgba.putalpha(3)
    for image, kind, options, expected in [
        (Image.fromarray(grey * 257), "PNG", {}, np.stack([grey] * 3, -1)),
        (rgba, "PNG", {}, rgb),
        (palette, "PNG", {"transparency": bytes(8)}, palette.convert("RGB")),
        (rgb.convert("L"), "PNG", {}, rgb.convert("L").convert("RGB")),
        (rgb.convert("CMYK"), "TIFF", {}, rgb),
        (rgb, "WEBP", {"lossless": True}, rgb),
    ]:
        decoded = decode.to_rgb(decode.open_image(encode(image, kind, **options)))
        np.testing.assert_array_equal(np.asarray(decoded), np.asarray(expected))


def test_exif_orientation_is_not_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    assert decode.to_rgb(decode.open_image(encode(picture(30, 20), exif=exif))).size == (30, 20)


def test_far_too_many_pixels(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 14000)
    with pytest.raises(ValueError, match=r"30000 pixels\) exceeds limit"):
        decode.open_image(encode(picture(200, 150)))


def test_odd_metadata_goes_unmentioned():
    data = encode(picture(9, 9), exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0")
    with warnings.catch_warnings(record=True) as seen:
        warnings.resetwarnings()  # pytest has its own filters
        assert decode.open_image(data).size == (9, 9) and "Corrupt EXIF" in str(seen.pop().message)
        importlib.reload(decode)
        assert decode.open_image(data).size == (9, 9) and not seen


def test_resize_keeps_the_pixels_of_an_image_of_that_size():
    """In grey or RGB, as the set has it; others are scaled whole."""
    image = picture(12, 9)
    np.testing.assert_array_equal(decode.resize(encode(image, "PNG"), (9, 12, 3)), np.asarray(image))
    grey = decode.resize(encode(image, "PNG"), (9, 12, 1))
    np.testing.assert_array_equal(grey[..., 0], np.asarray(image.convert("L")))
    np.testing.assert_array_equal(decode.resize(encode(image.convert("L"), "PNG"), (9, 12, 3)), grey.repeat(3, axis=2))
    smaller = decode.resize(encode(image, "PNG"), (5, 4, 3))
    assert smaller.shape == (5, 4, 3) and smaller.dtype == np.uint8
    np.testing.assert_allclose(smaller, resample(image, (0, 0, 12, 9), (5, 4)), atol=1.5)


@pytest.mark.parametrize("turned", [False, True])
def test_a_very_long_image_is_cropped_before_it_is_scaled(turned, monkeypatch):
    """Else 16000x2 pixels would become two million by 256."""
    image = picture(1700, 40)
    image = image.transpose(Image.Transpose.ROTATE_90) if turned else image
    cropped = decode.resize_and_center_crop(encode(image, "PNG"), 64, 0.875)
    monkeypatch.setattr(decode, "LONG", 1000)
    exact = decode.resize_and_center_crop(encode(image, "PNG"), 64, 0.875)
    assert np.abs(cropped.astype(int) - exact).max() <= 1
    monkeypatch.setattr(decode, "LONG", 16)
    largest = []
    resize = Image.Image.resize

    def noted(self, size, *args, **options):
        largest.append(max(size))
        return resize(self, size, *args, **options)

    monkeypatch.setattr(Image.Image, "resize", noted)
    assert decode.resize_and_center_crop(encode(Image.new("RGB", (16000, 2)), "PNG"), 224, 0.875).shape == (224, 224, 3)
    whole = np.asarray(decode.resize_and_center_crop(encode(Image.new("RGB", (9, 9), "white"), "PNG"), 8, 1e-4))
    assert whole.shape == (8, 8, 3) and whole.min() == 255, "nor 9x9 pixels 80000x80000"
    assert largest == [224, 8]


def test_a_padded_crop_is_a_window_of_the_padded_image():
    image = np.asarray(picture(8, 8))
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
    windows = {padded[y : y + 8, x : x + 8].tobytes() for y in range(5) for x in range(5)}
    data = encode(Image.fromarray(image), "PNG")
    seen = {decode.padded_crop(data, np.random.default_rng(i), 8, 2, False).tobytes() for i in range(200)}
    assert seen <= windows and len(seen) > 20
    assert decode.padded_crop(data, np.random.default_rng(0), 8, 0, False).tobytes() == image.tobytes()
    mirrored = {decode.padded_crop(data, np.random.default_rng(i), 8, 0, True).tobytes() for i in range(20)}
    assert mirrored == {image.tobytes(), image[:, ::-1].tobytes()}


def test_postscript_is_not_executed():
    with pytest.raises(ValueError, match="EPS, a program and not an image"):
        decode.open_image(encode(picture(8, 8), "EPS"))
