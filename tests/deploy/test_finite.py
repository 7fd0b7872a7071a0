"""Weights that compute nothing are refused wherever they are used: not at last seen in a probability."""

import numpy as np
import pytest
from PIL import Image

from orc_jax.deploy.finite import require_usable
from orc_jax.deploy.member import load_member
from orc_jax.deploy.predict import predict
from orc_jax.errors import UserError
from tests.data.pictures import encode, picture
from tests.deploy.members import save_pool


@pytest.mark.parametrize(
    ("params", "stats", "text"),
    [
        ({"a.kernel": [1.0, np.nan]}, {}, r"it holds weights that are not finite: a.kernel \(1 of 2 values\)"),
        ({"a.kernel": [-np.inf]}, {"b.var": [np.nan]}, r"not finite: a.kernel \(1 of 1 values\), b.var \(1 of 1"),
        ({"a.kernel": [-1.0]}, {"b.mean": [-1.0], "b.var": [1.0, -1e-3]}, "it holds variances below zero: b.var$"),
        ({f"{i}.kernel": [np.nan] for i in range(9)}, {}, "4.kernel .1 of 1 values. and 4 more$"),
    ],
)
def test_what_is_refused(params, stats, text):
    with pytest.raises(UserError, match=text):
        require_usable(
            "it", {k: np.float32(v) for k, v in params.items()}, {k: np.float32(v) for k, v in stats.items()}
        )


def test_a_network_that_computes_is_not_refused():
    require_usable("it", {"a.kernel": np.float32([-1e30, 0])}, {"b.var": np.float32([0, 1e-30])})


def test_what_may_not_have_been_seen_as_it_was_meant_has_a_note(tmp_path):
    """12 bits in 16, by a network of images of 8 bits, and by one that was told what is white."""
    save_pool(tmp_path / "run", ["tiny_a"])
    member = load_member(tmp_path / "run", "0", "latest")
    (tmp_path / "x.png").write_bytes(encode(Image.fromarray(np.arange(0, 4096, 64, np.uint16).reshape(8, 8)), "PNG"))
    notes, seen = [], []
    for asked in (member, member._replace(pixel_range=(0, 4095)), member._replace(pixel_range=(5000, 6000))):
        answers = lambda images: seen.append(images.max()) or np.ones((len(images), 3))  # noqa: E731
        (row,) = predict(asked, [tmp_path / "x.png"], 1, answers)
        notes.append(row.get("note"))
    assert notes == [
        "16 bits of grey from 0 to 4032, of which 0 is seen as black and 65535 as white",
        None,
        "16 bits of grey from 0 to 4032, of which 5000 is seen as black and 6000 as white",
    ]
    assert seen == [15, 251, 0]


def test_an_answer_that_is_no_number_is_no_prediction(tmp_path):
    save_pool(tmp_path / "run", ["tiny_a"])
    (tmp_path / "x.png").write_bytes(encode(picture(8, 8), "PNG"))
    member = load_member(tmp_path / "run", "0", "latest")
    (row,) = predict(member, [tmp_path / "x.png"], 3, lambda images: np.full((len(images), 3), np.nan))
    assert row == {"file": str(tmp_path / "x.png"), "error": "the network's answer is not a number"}
