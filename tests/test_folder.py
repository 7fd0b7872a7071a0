"""Decoding images, and folders of them: crops, order, and everything that can be wrong with a file or a folder."""

import importlib
import io
import os
import pickle
import re
import types
import warnings

import numpy as np
import pytest
from PIL import Image

from orc_jax.data import decode, folder
from orc_jax.errors import UserError


def picture(width, height, seed=0):
    """A smooth random image, as photos are."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def encode(image, kind="JPEG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


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
    image = decode.open_image(data)
    assert decode._draft(image, 5) == 4 and image.size == (300, 225)
    assert decode._draft(decode.open_image(data), 1) == 1
    assert decode._draft(decode.open_image(encode(picture(900, 900), "PNG")), 5) == 1


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
        (Image.fromarray((grey * 257).astype(np.int32)), "TIFF", {}, np.stack([grey] * 3, -1)),
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


JPEG, PNG = encode(picture(200, 150)), encode(picture(60, 40), "PNG")
BROKEN = {  # data of a file, and why it cannot be used
    "empty.jpg": (b"", "empty file"),
    "page.jpg": (b"<html>not found</html>" * 9, "not an image of a known format"),
    "cut.jpg": (JPEG[:-300], "image file is truncated"),
    "header.jpg": (JPEG[:150], "."),
    "zeros.jpg": (JPEG[: len(JPEG) // 2] + bytes(9999), "zeros instead of its end"),
    "cut.png": (PNG[: len(PNG) // 2], "image file is truncated"),
    "cut.webp": (encode(picture(60, 40), "WEBP")[:-100], "."),
    "cut.bmp": (encode(picture(60, 40), "BMP")[:-100], "image file is truncated"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_defects(name, tmp_path):
    data, reason = BROKEN[name]
    (tmp_path / name).write_bytes(data)
    assert re.match(reason, folder.defect(str(tmp_path / name)))
    if name != "zeros.jpg":  # which decodes
        with pytest.raises(ValueError, match=r"."):
            decode.resize_and_center_crop(data, 32, 1.0)


@pytest.mark.parametrize("data", [JPEG + b"of a camera" * 999, JPEG + bytes(9999), PNG, encode(picture(9, 9), "GIF")])
def test_whole_files_have_no_defect(data, tmp_path):
    (tmp_path / "x").write_bytes(data)
    assert folder.defect(str(tmp_path / "x")) is None


def test_far_too_many_pixels(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20000)
    with pytest.raises(ValueError, match=r"30000 pixels\) exceeds limit"):
        decode.open_image(JPEG)


def test_odd_metadata_goes_unmentioned():
    data = encode(picture(9, 9), exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0")
    with warnings.catch_warnings(record=True) as seen:
        warnings.resetwarnings()  # pytest has its own filters
        assert decode.open_image(data).size == (9, 9) and "Corrupt EXIF" in str(seen.pop().message)
        importlib.reload(decode)
        assert decode.open_image(data).size == (9, 9) and not seen


def make_tree(root, files):
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return str(root)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """21 training images of three classes, one of them in a folder of its own, and 7 for evaluation of two."""
    files = {f"train/{'cab'[i % 3]}/{i:02d}.jpg": encode(picture(60 + i, 50, i)) for i in range(20)}
    files |= {"train/b/more/x.png": PNG, "train/.hidden": b"", "train/a/.hidden": b"", "notes.txt": b""}
    files |= {f"val/{'ca'[i % 2]}/{i}.jpg": encode(picture(50, 60 + i, i)) for i in range(7)}
    return make_tree(tmp_path_factory.mktemp("tree"), files)


def load(root, skip_corrupt=False, warn=pytest.fail, train="train", val="val"):
    return folder.load(root, train, val, skip_corrupt, warn)


def test_a_folder(tree):
    names, train, val = load(tree)
    assert names == ("a", "b", "c") and len(train) == 21 and len(val) == 7
    assert train.labels.dtype == np.int32 and list(train.labels) == sorted(train.labels)
    assert [os.path.relpath(val.name(i), tree) for i in range(3)] == ["val/a/1.jpg", "val/a/3.jpg", "val/a/5.jpg"]
    assert train.name(13).endswith("train/b/more/x.png") and train.read(13) == (PNG, 1)
    assert list(val.labels) == [0, 0, 0, 2, 2, 2, 2]
    again = pickle.loads(pickle.dumps(train))
    assert again.read(5) == train.read(5) and len(pickle.dumps(train)) < 2000


@pytest.mark.parametrize(
    ("files", "fields", "text"),
    [
        ({}, {"root": ""}, "config.data_dir='': must be the folder that holds <split>/<class>"),
        ({}, {"root": "{}/none"}, "config.data_dir='.*/none': there is no such directory"),
        ({}, {"root": "{}/train/a/0.jpg"}, "config.data_dir='.*0.jpg': is not a directory"),
        ({}, {"train": "trian"}, "config.train_split='trian': .* no such folder; it has train, val"),
        ({}, {"val": "test"}, "config.eval_split='test': .* no such folder; it has train, val"),
        ({"val/d/0.jpg": JPEG}, {}, "config.eval_split='val' .* 1 class that config.train_split='train' lacks: d"),
        ({"train/d/.x": JPEG}, {}, "config.train_split='train' .* 1 empty class folder: d"),
        ({"val/0.jpg": JPEG}, {}, "config.eval_split='val': 1 file outside of the class folders of .*val: 0.jpg"),
        ({"test/d/.x": b""}, {"val": "test"}, "config.eval_split='test': .*test has no image"),
    ],
)
def test_wrong_folders(files, fields, text, tmp_path):
    root = make_tree(tmp_path, {"train/a/0.jpg": JPEG, "val/a/0.jpg": JPEG} | files)
    fields = {"root": "{}"} | fields
    with pytest.raises(UserError, match=text):
        load(**fields | {"root": fields["root"].format(root)})


@pytest.mark.parametrize("alone", [100, 0])
def test_broken_files_are_named_before_training(alone, tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "ALONE", alone)
    files = {f"train/a/{name}": data for name, (data, _) in BROKEN.items()}
    root = make_tree(tmp_path, files | {"train/a/fine.jpg": JPEG, "val/a/fine.jpg": JPEG})
    text = r"config.train_split='train': 8 of 9 files .*a/cut.bmp \(image.* and 3 more. config.stream.skip_corrupt=True"
    with pytest.raises(UserError, match=text):
        load(root)
    warnings = []
    _, train, _ = load(root, True, warnings.append)
    assert [train.name(i) for i in range(len(train))] == [f"{root}/train/a/fine.jpg"]
    assert len(warnings) == 1 and re.search("8 of 9 files cannot be used.*left out", warnings[0])
    (tmp_path / "train/a/fine.jpg").unlink()
    with pytest.raises(UserError, match=r"8 of 8 files cannot be used.*No image is left"):
        load(root, True)
