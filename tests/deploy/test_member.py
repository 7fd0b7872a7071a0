"""One member of a pool: which one is meant, of which checkpoint, what it computes, and what its images must be."""

import json

import jax
import numpy as np
import pytest

from orc_jax.data import decode
from orc_jax.deploy.member import Member, classifier, find_member, load_member
from orc_jax.errors import UserError
from orc_jax.testing import assert_identical
from orc_jax.workdir import metrics, record
from tests.conftest import TINY
from tests.data.pictures import encode, picture
from tests.deploy.members import assert_same_logits, evaluated, save_pool


def test_any_member_and_checkpoint_of_a_pool(tmp_path):
    arrays = save_pool(tmp_path / "run", ["tiny_a", "tiny_b", "tiny_a"])
    for which, position in {"target": 2, "0": 0, "1": 1, "2": 2, "0_tiny_a": 0, "1_tiny_b": 1, "2_tiny_a": 2}.items():
        member = load_member(tmp_path / "run", which, "best")
        assert member.name == f"{position}_{member.architecture}" and member.step == 3
        assert member.model is TINY[member.architecture]
        assert_identical(member.weights, arrays[position])
    assert load_member(tmp_path / "run", "target", "latest").step == 8
    member = load_member(tmp_path / "run", "target", "3")
    assert member.class_names == ("a", "b", "c") and member.num_classes == 3 and member.image_shape == (8, 8, 1)
    assert (member.mean, member.std, member.crop) == ((0.4,), (0.2,), None)


def meant(workdir, which, step=8):
    return find_member(record.require(workdir), workdir, which, step)


def test_members_that_are_meant(tmp_path):
    """By number, name, role, or a part that only one has, however it is written."""
    save_pool(tmp_path, ["tiny_a", "tiny_b", "tiny_a"])
    words = {"target": 2, "1": 1, "2_tiny_a": 2, "0_tiny_a": 0, "tiny_b": 1, "tiny-B": 1, "2_": 2, "target student": 2}
    assert {which: meant(tmp_path, which) for which in words} == words
    for which in ("3", "-1"):
        with pytest.raises(UserError, match=f"--member={which}: must be a number from 0 to 2, or a name"):
            meant(tmp_path, which)
    for which in ("resnet8", "1_tiny_a", "", "_"):
        with pytest.raises(UserError, match=f"--member={which!r} is not known.* 0_tiny_a, 1_tiny_b, 2_tiny_a "):
            meant(tmp_path, which)
    with pytest.raises(UserError, match="--member='tiny_a' is not one member but 0_tiny_a, 2_tiny_a"):
        meant(tmp_path, "tiny_a")


def test_roles_are_those_of_the_method(tmp_path, config):
    config.num_networks, config.assistants = 3, "tiny_b"
    save_pool(tmp_path, ["tiny_a", "tiny_b", "tiny_b"], config=json.loads(config.to_json()))
    words = {"pivot teacher": 0, "pivot": 0, "pivot_teacher": 0, "assistant": 1, "target-student": 2, "tiny_a": 0}
    assert {which: meant(tmp_path, which) for which in words} == words


def test_a_name_that_is_part_of_another(tmp_path):
    save_pool(tmp_path, ["resnet8x4", "resnet8"])
    assert meant(tmp_path, "resnet8") == 1 and meant(tmp_path, "x4") == 0


def test_the_best_member_is_that_of_the_checkpoint(tmp_path):
    save_pool(tmp_path, ["tiny_a", "tiny_b"])
    rows = [
        {"step": 3, "eval/top1/0_tiny_a": 0.7, "eval/top1/1_tiny_b": 0.6, "eval/top1/ensemble": 0.9},
        {"step": 8, "eval/top1/0_tiny_a": 0.1, "eval/top1/1_tiny_b": 0.2, "eval/top1/ensemble": 0.9},
    ]
    with pytest.raises(UserError, match=r"--member=best: the checkpoint of step 8 in .* was not evaluated"):
        meant(tmp_path, "best")
    (tmp_path / metrics.METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert meant(tmp_path, "best", 3) == 0 and meant(tmp_path, "best", 8) == 1
    assert load_member(tmp_path, "best", "best").name == "0_tiny_a"
    assert load_member(tmp_path, "best", "latest").name == "1_tiny_b"


def test_it_computes_what_evaluation_does_in_float32(tmp_path):
    """Also if the run was trained in bfloat16."""
    save_pool(tmp_path / "run", ["tiny_a", "tiny_b"], config={"dataset": "toy", "dtype": "bfloat16"})
    member = load_member(tmp_path / "run", "target", "latest")
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), np.uint8)
    logits = np.asarray(jax.jit(classifier(member))(member.weights, images))
    assert_same_logits(logits, evaluated(member, images))
    by_jax = classifier(member, jax.lax.conv_general_dilated)  # the convolution that it is given
    assert "conv_general_dilated" in str(jax.make_jaxpr(by_jax)(member.weights, images))
    assert_same_logits(np.asarray(by_jax(member.weights, images)), logits)


def test_an_image_is_stretched_or_cut_out_of_its_middle():
    """As in evaluation: of a set in memory, and of one that is streamed."""
    data = encode(picture(40, 30), "PNG")

    def seen(shape, crop):
        about = {"class_names": (), "image_shape": shape, "mean": (0.5,), "std": (0.2,), "crop": crop}
        return Member("0_tiny_a", "tiny_a", TINY["tiny_a"], 0, ({}, {}), 3, **about).image(data)

    for shape in ((9, 12, 3), (9, 12, 1)):
        np.testing.assert_array_equal(seen(shape, None), decode.resize(data, shape))
    for crop in (0.5, 1.0):
        np.testing.assert_array_equal(seen((8, 8, 3), crop), decode.resize_and_center_crop(data, 8, crop))
