"""Splits that were decoded before: the same arrays, as long as nothing has changed."""

import os

import numpy as np
import pytest

from orc_jax import cache
from orc_jax.data import decoded
from orc_jax.data.decoded import Decoded, kept
from orc_jax.data.types import Images

ASKED = ["some/set:1.0.0", "/data", "train"]


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A source of two files, a way to decode it, and how often that was done."""
    monkeypatch.setenv("ORC_JAX_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "some" / "1.0.0"
    source.mkdir(parents=True)
    for name in ("a", "b"):
        (source / name).write_text(name)
    rng = np.random.default_rng(0)
    examples = Images(rng.integers(0, 256, (7, 4, 5, 3), np.uint8), np.arange(7, dtype=np.int32))
    calls = []

    def decode():
        calls.append(1)
        return Decoded(("x", "y"), examples, source)

    return source, examples, decode, calls


def check(found, examples):
    assert tuple(found.class_names) == ("x", "y")
    np.testing.assert_array_equal(found.examples.images, examples.images)
    np.testing.assert_array_equal(found.examples.labels, examples.labels)
    assert found.examples.images.dtype == np.uint8 and found.examples.labels.dtype == np.int32


def test_a_split_is_decoded_once(made):
    _, examples, decode, calls = made
    for _ in range(3):
        check(kept(ASKED, decode), examples)
    assert len(calls) == 1
    check(kept([*ASKED[:2], "train[:5]"], decode), examples)
    assert len(calls) == 2, "another split"


@pytest.mark.parametrize("change", ["size", "time", "file", "version"])
def test_a_source_that_has_changed_is_decoded_anew(made, change):
    source, examples, decode, calls = made
    kept(ASKED, decode)
    match change:
        case "size":
            stat = (source / "a").stat()
            (source / "a").write_text("longer")
            os.utime(source / "a", ns=(stat.st_atime_ns, stat.st_mtime_ns))
        case "time":
            os.utime(source / "a", ns=(1, 1))
        case "file":
            (source / "c").write_text("c")
        case "version":
            (source.parent / "1.1.0").mkdir()
    check(kept(ASKED, decode), examples)
    assert len(calls) == 2
    check(kept(ASKED, decode), examples)
    assert len(calls) == 2


@pytest.mark.parametrize("name", ["images.npy", "labels.npy", decoded.FILE])
def test_what_is_damaged_is_decoded_anew(made, name):
    _, examples, decode, calls = made
    kept(ASKED, decode)
    (path,) = (cache.folder() / "sets").rglob(name)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    check(kept(ASKED, decode), examples)
    assert len(calls) == 2
    path.write_bytes(content[: len(content) // 2])
    check(kept(ASKED, decode), examples)
    assert len(calls) == 3


def test_what_cannot_be_kept_is_used_all_the_same(made, tmp_path, monkeypatch):
    _, examples, decode, calls = made
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ORC_JAX_CACHE", str(tmp_path / "file"))
    for _ in range(2):
        check(kept(ASKED, decode), examples)
    assert len(calls) == 2
    assert kept(ASKED, lambda: None) is None
