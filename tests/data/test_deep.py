"""Images of more than 8 bits a channel: the brightness that they have, or a refusal that says what to do."""

import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from orc_jax.data import checks, decode, deep, folder
from orc_jax.errors import UserError
from tests.data.pictures import encode

GREY = np.arange(256, dtype=np.uint16).reshape(16, 16)
RGB16 = "16 bits a colour"


def file(values, kind, **options):
    return encode(Image.fromarray(values), kind, **options)


@pytest.mark.parametrize(
    ("data", "given"),
    [
        (file(GREY * 257, "PNG"), ()),
        (file(GREY * 257, "TIFF"), ()),
        (file((GREY * 257).astype(">u2"), "TIFF"), ()),
        (file(GREY, "PNG"), (0, 255)),
        (file(GREY.astype(np.int32), "TIFF"), (0, 255)),
        (file((GREY / 255).astype(np.float32), "TIFF"), (0, 1)),
        (file((GREY / 127.5 - 1).astype(np.float32), "TIFF"), (-1, 1)),
        (file(GREY.astype(np.float32) * 2 - 100, "TIFF"), (-100, 410)),
        (encode(Image.fromarray((255 - GREY).astype(np.uint16)), "TIFF", tiffinfo={262: 0}), (0, 255)),
        (file(GREY.astype(np.uint8), "PNG"), (0, 4095)),  # is for more than 8 bits alone
    ],
)
def test_grey_is_as_bright_as_it_is(data, given):
    decoded = np.asarray(decode.to_rgb(decode.open_image(data), given))
    np.testing.assert_array_equal(decoded, np.stack([GREY] * 3, -1))


@pytest.mark.parametrize("mode", [mode for mode in Image.MODES if mode[0] not in "IF"])
def test_every_other_mode_becomes_rgb(mode):
    assert decode.to_rgb(Image.new(mode, (4, 3))).size == (4, 3)
    grey = Image.new("L", (2, 2), 204)
    if mode in ("RGB", "L", "CMYK", "YCbCr", "HSV", "P"):
        assert np.asarray(decode.to_rgb(grey.convert("RGB").convert(mode))).mean() == 204


def test_without_a_range_values_of_32_bits_are_refused():
    for values in (GREY.astype(np.int32), GREY.astype(np.float32)):
        with pytest.raises(ValueError, match=r"of 32 bits have no range of their own: config.stream.pixel_range="):
            decode.to_rgb(decode.open_image(file(values, "TIFF")))
    broken = np.full((4, 4), np.nan, np.float32)
    with pytest.raises(ValueError, match="not finite"):
        decode.to_rgb(decode.open_image(file(broken, "TIFF")), (0, 1))


@pytest.mark.parametrize(
    ("kind", "low", "high", "given", "text"),
    [
        (deep.GREY, 0, 65535, (), None),
        (deep.GREY, 29000, 31000, (), None),
        (deep.GREY, 3, 4000, (), r"nearly black. config.stream.pixel_range='\(0, 4095\)' .*'\(0, 65535\)' if"),
        (deep.GREY, 0, 1, (), r"'\(0, 1\)'"),
        (deep.GREY, 0, 16383, (), r"'\(0, 16383\)'"),
        (deep.GREY, 3, 4000, (0, 65535), None),
        (deep.INTEGERS, 0, 255, (), r"no range. .*'\(0, 255\)' says"),
        (deep.INTEGERS, -1000, 3000, (), r"'\(-1000, 3000\)'"),
        (deep.FLOATS, 0, 0.9, (), r"'\(0, 1\)'"),
        (deep.FLOATS, -0.5, 0.9, (), r"'\(-1, 1\)'"),
        (deep.FLOATS, 0, 0.9, (10, 20), "all beyond config.stream.pixel_range"),
        (deep.FLOATS, 0, 254.5, (), r"'\(0, 255\)'"),
        (deep.COLOURS, 0, 65535, (), None),
        (deep.COLOURS, 0, 4095, (), "up to about 4095: of such only the upper 8 bits are read"),
        (deep.COLOURS, 0, 4095, (0, 65535), None),
        (deep.COLOURS, 0, 4095, (0, 4095), "only the upper 8 bits"),
    ],
)
def test_objections(kind, low, high, given, text):
    found = deep.objection(deep.Values(kind, low, high), given)
    if text is None:
        assert found is None
    else:
        assert found is not None and re.search(text, found)


def test_a_folder_of_them_is_refused_before_training_and_taken_with_the_range(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
        for i in range(2):
            (tmp_path / split / "a" / f"{i}.png").write_bytes(file(GREY * 16 + i, "PNG"))
    with pytest.raises(UserError, match=r"16 bits of grey with values from 0 to 4081: .*pixel_range='\(0, 4095\)'"):
        folder.load(str(tmp_path), "train", "val", folder.Options(), pytest.fail)
    options = folder.Options(pixel_range=(0, 4095))
    assert folder.load(str(tmp_path), "train", "val", options, pytest.fail).largest == 16
    lines = []
    folder.load(str(tmp_path), "train", "val", folder.Options(pixel_range=(10, 4000)), lines.append)
    assert len(lines) == 1 and "what is beyond config.stream.pixel_range=(10, 4000) is black or white" in lines[0]


@pytest.mark.parametrize(
    ("colour_type", "pixel"),  # numbers of PNG
    [(2, (4095, 0, 17)), (4, (4095, 65535)), (6, (0, 17, 4095, 65535))],
    ids=["RGB", "LA", "RGBA"],
)
def test_colours_of_16_bits_are_known_as_such(colour_type, pixel, tmp_path):
    """As a PNG has them, which Pillow reads and cannot write; how opaque they are tells nothing of them."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\0" + np.array(pixel * 2, ">u2").tobytes()) * 2
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 16, colour_type, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "x.png").write_bytes(data)
    seen = checks.look(str(tmp_path / "x.png"))
    assert seen.defect is None and seen.values == deep.Values(RGB16, 0, 4095)
