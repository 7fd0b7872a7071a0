"""Every method through the whole program: trained, evaluated from its checkpoint, on one device and on four."""

import json

import jax
import numpy as np
import pytest

from orc_jax.config import resolve
from orc_jax.data.augment import none
from orc_jax.data.types import Images
from orc_jax.defaults import options_of
from orc_jax.methods import BRANCHED, METHODS, OFFLINE, STAGES, group_of
from orc_jax.methods.base import Stage
from orc_jax.methods.dgkd import stages
from orc_jax.methods.orc import PROMOTED
from orc_jax.methods.switokd import EXPERT_MODE
from orc_jax.parallel import DataParallel
from orc_jax.run import build, values_of
from orc_jax.step import augment, make_train_step
from orc_jax.testing import assert_close, assert_devices_agree, build_run
from orc_jax.workdir import metrics
from tests.helpers import each_method, evaluate, printed, stepper_of, train

pytestmark = pytest.mark.usefixtures("toy_set")


def for_method(config, method):
    """A pool of three that the method can train, with images of which every member may see another crop."""
    config.method, config.num_networks, config.crop_padding = method, 3, 1
    config.teacher, config.assistants, config.student = "tiny_a", "tiny_b", "tiny_b"
    if method in (*BRANCHED, "fsp"):  # one architecture, or maps of as many channels
        config.teacher = "tiny_b"
    return config


PIVOT = Stage("pivot", "independent", (0,))
SCORES = ("loss", "accuracy")
# What a method says of a pool of four, where it is not what `Method` has by itself.
SAID = {
    "orc": {
        "roles": ("pivot teacher", "assistant", "assistant", "target student"),
        "metrics": (*SCORES, "promoted", "feedback_share"),
        "shares": (PROMOTED,),
        "stages": (PIVOT,),
        "spares": 2,
    },
    "dgkd": {
        "roles": ("teacher", "assistant", "assistant", "target student"),
        "stages": stages("dgkd", 4),
        "frozen": (0, 1, 2),
    },
    "takd": {
        "roles": ("teacher", "assistant", "assistant", "target student"),
        "stages": stages("takd", 4),
        "frozen": (0, 1, 2),
    },
    "switokd": {
        "roles": ("teacher", "student", "student", "target student"),
        "metrics": (*SCORES, "gap", "threshold", "expert_mode"),
        "shares": (EXPERT_MODE,),
    },
    "pcl": {"roles": ("peer", "peer", "peer", "target student"), "views": 4, "tied": True},
    "dml": {"roles": ("peer", "peer", "peer", "target student")},
    "kdcl": {
        "roles": ("peer", "peer", "peer", "target student"),
        "views": 4,
    },
    "okddip": {"roles": ("auxiliary peer", "auxiliary peer", "auxiliary peer", "target student")},
    "one": {"roles": ("peer", "peer", "peer", "target student"), "early": True, "tied": True},
    "cl_ilr": {"roles": ("peer", "peer", "peer", "target student"), "tied": True},
    "independent": {"roles": ("member", "member", "member", "target student"), "spares": 2},
    **{
        name: {"roles": ("teacher", "student", "student", "target student"), "stages": (PIVOT,), "frozen": (0,)}
        for name in OFFLINE
    },
}
# Stages of a loss and a length of their own.
for _name, _stage, _members, _fields in (
    ("ft", "paraphraser", (0,), {"learning_rate": 0.01}),
    ("ab", "boundaries", (0, 1, 2, 3), {}),
    ("fsp", "flow", (0, 1, 2, 3), {}),
):
    _fields = {"num_epochs": 30, "lr_schedule": "constant", "warmup_epochs": 0.0, "patience": 0, **_fields}
    SAID[_name]["stages"] = (PIVOT, Stage(_stage, f"{_name}.{_stage}", _members, _fields))
SAID["crd"]["indexed"] = True
SAID["mlkd"]["views"] = 2
VALUES = {
    "orc": ("temperature", "beta", "pivot_lr_multiplier"),
    "dgkd": ("temperature", "lam"),
    "takd": ("temperature", "lam"),
    "kdcl": ("temperature", "lam"),
    "kd": ("temperature", "alpha", "weight"),
    "dkd": ("temperature", "alpha", "beta"),
    "dist": ("temperature", "beta", "gamma"),
    "rkd": ("distance_weight", "angle_weight"),
    "pkt": ("weight",),
    "cc": ("weight",),
    "crd": ("weight", "temperature"),
    "mlkd": ("temperature", "label_weight", "weight"),
    **dict.fromkeys(("at", "sp", "nst", "fitnets", "vid", "ofd", "reviewkd", "ft"), ("weight",)),
    "ab": ("weight", "kd_weight", "temperature"),
}
WITH_ADAPTERS = {"cc", "crd", "fitnets", "vid", "ofd", "reviewkd", "simkd", "ft"}
FUNCTIONS = {
    "start": {"pcl", "okddip", "one", "cl_ilr", *WITH_ADAPTERS},  # have heads, or tie what they share
    "answers": {"simkd"},  # whose members are used otherwise than by their networks alone
    "deployed": {"simkd"},
    "ensemble": {"pcl", "one"},  # have one of their own
    "hand_back": {"orc"},  # has feedback samples
}
MAPS = {
    **dict.fromkeys(("at", "sp", "nst", "fitnets", "vid", "ft"), ("post",)),
    "reviewkd": ("post", "preact"),
    "ofd": ("preact", "norms"),
    "simkd": ("post", "pooled"),
}
NOT_SAID = (*FUNCTIONS, "iterate", "decided_by_labels")  # the last in test_mixing.py
PLAIN = {"metrics": SCORES, "shares": (), "views": 1, "stages": (), "frozen": (), "spares": None}
PLAIN |= {"held_out": None, "early": False, "tied": False, "indexed": False}


@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_says_of_itself(name):
    method = METHODS[name](["resnet20"] * 4)
    said = {field: value for field, value in method._asdict().items() if field not in NOT_SAID}
    assert said == PLAIN | {"values": VALUES.get(name, ()), "maps": MAPS.get(name, ())} | SAID[name]
    for field, methods in FUNCTIONS.items():
        assert (getattr(method, field) is not None) == (name in methods), field
    assert {share.metric for share in method.shares} <= set(method.metrics)
    assert set(method.frozen) <= {member for stage in method.stages for member in stage.members} <= set(range(4))


@pytest.mark.parametrize("name", STAGES)
def test_what_a_stage_says_of_itself(name):
    """It is a run of the same options, with a teacher that is trained before it, whose loss is told."""
    method, alone = group_of(name), name == "ft.paraphraser"
    stage = STAGES[name](["resnet20"] * (1 if alone else 4), **options_of(METHODS[method]))
    assert stage.metrics == (*SCORES, "objective") and stage.frozen == (0,) and stage.stages == (PIVOT,)
    assert stage.roles == (("teacher",) if alone else SAID["kd"]["roles"])
    assert stage.values == (VALUES["ab"] if method == "ab" else ()) and stage.decided_by_labels == ""
    assert METHODS[method](["resnet20"] * 4).stages[-1].method == name


def test_what_follows_from_options():
    assert METHODS["orc"](["a"] * 5, num_temporary_teachers=2).spares == 4 - 2
    fixed = METHODS["orc"](["a"] * 5, num_temporary_teachers=2, role_change=False)
    assert fixed.frozen == (1, 2) and fixed.stages == (Stage("pivot", "independent", (0, 1, 2)),)
    for name in ("kdcl", "pcl"):
        assert METHODS[name](["resnet20"] * 3, own_augmentation=False).views == 1
    roles = METHODS["switokd"](["a"] * 4, num_teachers=2).roles
    assert roles == ("teacher", "teacher", "student", "target student")
    assert METHODS["independent"](["a"]).spares == METHODS["independent"](["a"] * 2).spares == 0
    # With role change one student is promoted in every iteration; a teacher may pause or not.
    assert PROMOTED.adds_up and not EXPERT_MODE.adds_up


COMMON = ("learning_rate", "weight_decay", "label_smoothing")  # of all methods


@pytest.mark.parametrize("method", each_method(("orc", "kd"), among=VALUES))
def test_runs_that_differ_in_values_share_one_program(method, config, toy):
    """The program is the same text, and does what that with the values in it does."""
    for_method(config, method).ft.weight = 1.0  # with 200 the rounding shows of a bias' gradient that is 0
    options = METHODS[method](["tiny_a"] * 3).values
    fields = [f"{method}.{option}" for option in options]
    texts, ends = [], []
    for factor in (1.0, 0.5):
        config.learning_rate *= factor
        config.weight_decay *= factor
        smoothing = METHODS[method](["tiny_a"] * 3).decided_by_labels is not None
        config.label_smoothing = 0.1 * factor if smoothing else 0.0
        for option in options:
            config[method][option] *= factor
        run = build(resolve(config, 1).with_values([*fields, *COMMON, "seed"]), toy, jax.local_devices()[:1])
        assert set(run.resolved.values) == {*fields, *COMMON}
        step = make_train_step(run.setup, run.method.iterate, takes_values=True)
        mapped = DataParallel(step, run.devices, donate=False)
        plain = stepper_of(config, toy)
        state, indices = plain.init(), np.arange(16, dtype=np.int32)[None]
        given = (plain.data, jax.device_put(values_of(run), run.sharding))
        texts.append(mapped.lower(state, given, indices).as_text())
        ends.append(mapped(state, given, indices))
        assert_close(ends[-1].stacks, plain(state, indices[0]).stacks, rtol=1e-5, atol=1e-6)
    assert texts[0] == texts[1]
    kernels = [end.stacks["tiny_b"].params["fc.kernel"][-1] for end in ends]
    assert not np.array_equal(*kernels)


@pytest.mark.parametrize("method", each_method(("orc", "dgkd", "pcl", "kdcl", "okddip", "one", "independent")))
def test_training_and_evaluation_from_the_checkpoint(method, config, console, tmp_path):
    for_method(config, method)
    train(config, tmp_path / "run", console)
    evaluate(config, tmp_path / "run", "latest", console)
    result = json.loads((tmp_path / "run" / "evaluation_11.json").read_text())
    last = metrics.read(tmp_path / "run")[-1]
    rows = [*result["members"], {"name": "ensemble"} | result["ensemble"]]
    if method in BRANCHED:
        rows.append({"name": "mean"} | result["mean"])
        np.testing.assert_allclose(result["mean"]["top1"], np.mean([row["top1"] for row in result["members"]]))
    for row in rows:
        for metric in metrics.EVALUATED:
            np.testing.assert_allclose(row[metric], last[f"eval/{metric}/{row['name']}"], rtol=1e-5)
    assert result["target_student"]["role"] == "target student"
    assert "summary" not in printed(console)


DECIDING = {
    "switokd": {},
    "kdcl": {"target": "linear"},
    "okddip": {"projection_divisor": 2, "rampup_fraction": 0.0},
    "pcl": {"rampup_fraction": 0.0},
    "one": {},
    "cl_ilr": {},
}


@pytest.mark.parametrize("method", each_method({"switokd", "kdcl", "pcl", "one"}, DECIDING))
def test_one_device_equals_four(method, config, toy):
    for_method(config, method)[method].update(DECIDING[method])
    assert_devices_agree(config, toy)


def test_views_are_augmentations_of_the_same_images(config, toy):
    """The first view is what a method with one view gets; streamed examples bring their views along."""
    for_method(config, "kdcl").flip = True
    setups = [build_run(config, toy, axis_name=None).setup]
    config.kdcl.own_augmentation = False
    setups.append(build_run(config, toy, axis_name=None).setup)
    examples = Images(toy.train.images[:16], toy.train.labels[:16])
    views, one = (np.asarray(augment(setup, np.uint32(0), np.int32(0), examples)) for setup in setups)
    assert views.shape == (3, *one.shape)
    np.testing.assert_array_equal(views[0], one)
    assert not np.array_equal(views[0], views[1]) and not np.array_equal(views[1], views[2])
    streamed = Images(np.moveaxis(views, 0, 1), examples.labels)
    plain = setups[0]._replace(augment=none)
    np.testing.assert_array_equal(augment(plain, np.uint32(0), np.int32(0), streamed), views)
