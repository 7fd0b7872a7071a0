"""Networks are found in files by the names of their arrays, however they were wrapped and whatever lies beside them."""

import collections
import enum
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from orc_jax import import_torch
from orc_jax.deploy.import_torch import choose, convert, import_checkpoint
from orc_jax.deploy.torch_file import read_state_dicts
from orc_jax.deploy.torch_match import named
from orc_jax.errors import UserError
from orc_jax.testing import assert_identical
from orc_jax.workdir import record
from tests.deploy.members import network_of, state_of


@pytest.fixture(scope="module")
def states():
    """Two networks called resnet8, a deeper and a wider one."""
    one, deep, wide = (network_of(name, 10).state_dict() for name in ("resnet8", "resnet20", "resnet8x4"))
    return {"one": one, "two": {k: v * 0.5 for k, v in one.items()}, "deep": deep, "wide": wide}


@pytest.fixture(scope="module")
def expected():
    return convert(state_of(network_of("resnet8", 10)), "resnet8")[:2]


def named_as(prefix, state):
    return {prefix + name: value for name, value in state.items()}


class History(list):
    pass


class Easy(dict):
    pass


class Kind(enum.Enum):
    ONE = 1


class Trainer:
    def __init__(self):
        self.me = [self]


PREFIXES = ["", "module.", "model.", "net.", "_orig_mod.", "module._orig_mod.", "module.student.", "a.b.c.d."]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("kind", ["file", "dict", "safetensors"])
def test_what_stands_before_all_names_is_taken_off(states, expected, tmp_path, prefix, kind):
    path, content = tmp_path / "net.pth", named_as(prefix, states["one"])
    if kind == "safetensors":
        save_file(content, path)
    else:
        torch.save({"state_dict": content} if kind == "dict" else content, path)
    label, found = choose(read_state_dicts(path), "resnet8")
    assert label == (("state_dict." if kind == "dict" else "") + prefix).strip(".") or label == "."
    assert_identical(found[:2], expected)


def in_parts(state, body, head):
    """A state dict as of a wrapper that has the last layer of a network apart from all else."""
    return {(name.replace("fc.", head) if name.startswith("fc.") else body + name): x for name, x in state.items()}


@pytest.mark.parametrize(
    ("body", "head"),
    [("backbone.", "head.fc."), ("backbone.", "fc."), ("module.encoder.", "module.classifier."), ("a.b.", "linear.")],
)
def test_a_last_layer_that_lies_apart(states, expected, tmp_path, body, head):
    torch.save({"state_dict": in_parts(states["one"], body, head), "epoch": 3}, tmp_path / "net.pth")
    assert_identical(choose(read_state_dicts(tmp_path / "net.pth"), "resnet8")[1][:2], expected)


def test_a_last_layer_that_may_be_of_another_network_is_not_taken(states, tmp_path):
    apart = in_parts(states["one"], "backbone.", "teacher.fc.")
    torch.save(apart | {"teacher.conv9.weight": torch.zeros(3)}, tmp_path / "net.pth")
    with pytest.raises(UserError, match=r"(?s)missing: fc.bias.*Beside it in the file"):
        choose(read_state_dicts(tmp_path / "net.pth"), "resnet8")


BESIDE = {
    "list subclass": lambda one: {"model": one, "history": History([1, 2])},
    "deque": lambda one: {"model": one, "last": collections.deque([1, torch.zeros(3)], maxlen=3)},
    "dict subclass": lambda one: Easy(model=Easy(one), epoch=3),
    "set of enums": lambda one: {"model": one, "seen": {Kind.ONE}, Kind.ONE: 3},
    "default dict": lambda one: {"model": one, "meters": collections.defaultdict(list, {"loss": [1.0]})},
    "counts of operations": lambda one: one | {"total_ops": torch.zeros(1), "conv1.total_params": torch.zeros(1)},
    "counts of averages": lambda one: named_as("module.", one) | {"n_averaged": torch.tensor(3)},
    "a head for distillation": lambda one: named_as("student.", one) | {"projection.weight": torch.zeros(3, 3)},
    "a cycle": lambda one: {"model": one, "trainer": Trainer()},
    "a module": lambda one: {"model": one, "ema": torch.nn.Linear(2, 2)},
    "parameters": lambda one: {"model": {k: torch.nn.Parameter(v, False) for k, v in one.items()}},
    "quantised": lambda one: {"model": one, "q": torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8)},
    "tuple": lambda one: (3, one),
    "best of all": lambda one: {**one, "ema": {"decay": torch.tensor(0.9)}},
    "the same twice": lambda one: {"state_dict": one, "best": {k: v.clone() for k, v in one.items()}},
}


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("kind", BESIDE)
def test_what_lies_beside_is_nobodys_business(states, expected, tmp_path, kind):
    torch.save(BESIDE[kind](states["one"]), tmp_path / "net.pth")
    assert_identical(choose(read_state_dicts(tmp_path / "net.pth"), "resnet8")[1][:2], expected)


OTHERS = {
    "two dicts": lambda s: {"student": s["one"], "teacher": s["deep"]},
    "teacher first": lambda s: {"teacher": s["deep"], "student": s["one"]},
    "one dict": lambda s: {"model": named_as("module.teacher.", s["deep"]) | named_as("module.student.", s["one"])},
    "other widths": lambda s: {"teacher": s["wide"], "student": s["one"]},
    "within it": lambda s: {**s["one"], **named_as("teacher.", s["deep"])},
}


@pytest.mark.parametrize("kind", OTHERS)
def test_the_one_of_several_networks_that_the_model_fits(states, expected, tmp_path, kind):
    torch.save(OTHERS[kind](states), tmp_path / "net.pth")
    assert_identical(choose(read_state_dicts(tmp_path / "net.pth"), "resnet8")[1][:2], expected)


def arrays(state):
    return {name: value.numpy() for name, value in state.items()}


def test_of_several_that_fit_one_is_named(states, expected):
    one, two = arrays(states["one"]), arrays(states["two"])
    pairs = [("net1", "net2"), ("state_dict_ema", "state_dict"), ("model_ema", "model"), ("ema", "state_dict")]
    for other, this in pairs:
        found = {other: two, this: one}
        with pytest.raises(
            UserError, match=rf"2 different networks that fit --model=resnet8: {other}, {this}. Choose one by --key"
        ):
            choose(found, "resnet8")
        label, network = choose(found, "resnet8", key=this)
        assert label == this
        assert_identical(network[:2], expected)
    within = {"": named_as("model.", one) | named_as("ema_model.", two)}
    with pytest.raises(UserError, match=r"2 different networks .*: model, ema_model"):
        choose(within, "resnet8")
    assert_identical(choose(within, "resnet8", key="model")[1][:2], expected)
    # of which one cannot be used, it is still for a person to say
    broken = two | {"conv1.weight": two["conv1.weight"] * np.nan}
    with pytest.raises(UserError, match=r"2 different networks .*: net1, net2"):
        choose({"net1": broken, "net2": one}, "resnet8")


def test_how_one_is_named():
    labels = [".", "model.module.student", "model.module.teacher", "state_dict", "state_dict_ema"]
    words = {".": ".", "student": "model.module.student", "state_dict": "state_dict", "teach": "model.module.teacher"}
    assert {which: named(labels, which) for which in words} == words
    with pytest.raises(UserError, match=r"'model' is not one but model.module.student, model.module.teacher"):
        named(labels, "model")
    with pytest.raises(UserError, match=r"'state_dct' is not there. Did you mean state_dict\? Accepted: "):
        named(labels, "state_dct")


@pytest.mark.parametrize(
    ("change", "model", "text"),
    [
        (
            lambda s: named_as("x.", s["one"]),
            "vgg8",
            "missing: block0.*left over: conv1.weight.*Likely: it is another net",
        ),
        (lambda s: s["deep"], "resnet8", "left over: layer1.1.*and .* more.*Likely: it is a deeper network"),
        (lambda s: s["one"], "resnet20", "missing: layer1.1.*Likely: it is a shallower network"),
        (lambda s: s["wide"], "resnet8", "of another shape: conv1.weight .*Likely: it is a network of another width"),
        (
            lambda s: {k: v for k, v in s["one"].items() if "running" not in k},
            "resnet8",
            "missing: bn1.running_mean.*Likely: only parameters were saved",
        ),
        (
            lambda s: {"a.weight": torch.zeros(3)},
            "resnet8",
            "missing: .*left over: a.weight .*Likely: it is another net",
        ),
        (
            lambda s: in_parts(s["one"], "body.", "head.fc.") | {"neck.weight": torch.zeros(3)},
            "resnet8",
            "missing: fc.bias.*without its classifier.*Beside it in the file: head.fc.weight, head.fc.bias, neck.wei",
        ),
        (lambda s: s["one"] | {"fc.bias": torch.zeros(10).int()}, "resnet8", r"no numbers of .*: fc.bias \(int32\)"),
        (lambda s: s["one"] | {"fc.bias": torch.zeros(10) * 1j}, "resnet8", r"no numbers of .*: fc.bias \(complex64\)"),
    ],
)
def test_errors_show_names_of_both_sides_and_the_likely_cause(states, change, model, text):
    with pytest.raises(UserError, match=f"(?s).*{text}"):
        choose({"state_dict": arrays(change(states))}, model)


def test_the_command_names_what_was_taken(states, tmp_path, monkeypatch, capsys):
    torch.save({"state_dict": states["one"], "state_dict_ema": states["two"]}, tmp_path / "net.pth")
    command = ["import_torch", str(tmp_path / "net.pth"), "--model", "resnet8", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as caught:
        import_torch.main()
    assert caught.value.code == 2 and "state_dict, state_dict_ema" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", [*command, "--key", "ema"])
    import_torch.main()
    assert "resnet8 (state_dict_ema of the file) with 10 classes" in capsys.readouterr().out
    assert record.require(tmp_path / "out").imported["key"] == "state_dict_ema"


def test_weights_that_are_not_finite_are_not_imported(states, tmp_path):
    for value in (float("nan"), float("inf")):
        torch.save({"model": states["one"] | {"bn1.running_var": torch.full((16,), value)}}, tmp_path / "net.pth")
        with pytest.raises(
            UserError, match=r"net.pth \(model\) holds weights that are not finite: bn1.running_var \(16"
        ):
            import_checkpoint(tmp_path / "net.pth", "resnet8", tmp_path / "out", mean=[], std=[])
    assert not (tmp_path / "out").exists()
