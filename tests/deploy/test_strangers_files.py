"""Weights as strangers have them: wrapped, several in a file, beside odd objects, damaged, or no weights at all."""

import collections

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from orc_jax.commands import read_class_names
from orc_jax.deploy.import_torch import choose, convert, import_checkpoint
from orc_jax.deploy.torch_file import read_state_dicts
from orc_jax.deploy.torch_layout import without_timm
from orc_jax.errors import UserError
from orc_jax.testing import assert_identical
from tests.deploy.members import network_of, state_of


class History(list):
    """As training tools keep beside weights."""


class Wrapper(torch.nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net


@pytest.fixture(scope="module")
def resnet8():
    return network_of("resnet8", 10)


def named(prefix, state):
    return {prefix + name: value for name, value in state.items()}


def chosen(path, key=None):
    return choose(read_state_dicts(path), "resnet8", key, None)


PREFIXES = ["", "model.", "_orig_mod.", "module._orig_mod.", "module.student.", "a.b.c.", "net.backbone."]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("kind", ["pth", "safetensors", "bin"])
def test_any_prefix_is_taken_off(resnet8, tmp_path, prefix, kind):
    path, state = tmp_path / f"x.{kind}", named(prefix, resnet8.state_dict()) | {"loss.scale": torch.zeros(3)}
    if not prefix:
        del state["loss.scale"]
    torch.save({"state_dict": state, "loops": {}}, path) if kind == "pth" else save_file(state, path)
    assert_identical(convert(chosen(path), "resnet8"), convert(state_of(resnet8), "resnet8"))


def test_of_several_networks_the_one_that_fits_is_taken(resnet8, tmp_path):
    state, teacher = resnet8.state_dict(), network_of("resnet20", 10).state_dict()
    contents = [
        {"student": state, "teacher": teacher},
        named("module.student.", state) | named("module.teacher.", teacher),
    ]
    for content in contents:
        torch.save(content, tmp_path / "x.pth")
        assert_identical(convert(chosen(tmp_path / "x.pth"), "resnet8"), convert(state_of(resnet8), "resnet8"))


def test_of_several_that_fit_one_is_chosen(resnet8, tmp_path):
    state = resnet8.state_dict()
    torch.save({"state_dict": state, "state_dict_ema": {k: v + 1 for k, v in state.items()}}, tmp_path / "x.pth")
    message = "2 different networks that fit --model=resnet8: 'state_dict', 'state_dict_ema'. Choose one by --key"
    with pytest.raises(UserError, match=message):
        chosen(tmp_path / "x.pth")
    assert_identical(chosen(tmp_path / "x.pth", "state_dict"), state_of(resnet8))
    ema = chosen(tmp_path / "x.pth", "state_dict_ema")
    np.testing.assert_array_equal(ema["conv1.weight"], state["conv1.weight"].numpy() + 1)
    with pytest.raises(UserError, match="--key='ema': is not one of what the file holds: 'state_dict', "):
        chosen(tmp_path / "x.pth", "ema")
    torch.save({"net1": state, "net2": dict(state)}, tmp_path / "same.pth")
    assert_identical(chosen(tmp_path / "same.pth"), state_of(resnet8))


@pytest.mark.parametrize(
    "beside",
    [History([1, 2]), collections.deque([1, 2], maxlen=3), {History: 1}, {torch.Size([1])}, collections.Counter("aab")],
)
def test_what_is_no_tensor_is_left_alone(resnet8, tmp_path, beside):
    torch.save({"model": resnet8.state_dict(), "beside": beside}, tmp_path / "x.pth")
    assert_identical(chosen(tmp_path / "x.pth"), state_of(resnet8))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda net: net, "a whole module, whose code is needed to read it: save its state_dict"),
        (lambda net: {"model": net}, "a whole module"),
        (lambda net: state_of(net), "NumPy arrays instead of tensors"),
        (lambda net: {"state_dict": state_of(net)}, "NumPy arrays instead of tensors"),
        (lambda net: {"epoch": 3}, "holds no state dict: it has epoch"),
    ],
)
def test_what_holds_no_weights_is_named(resnet8, tmp_path, content, message):
    torch.save(content(resnet8), tmp_path / "x.pth")
    with pytest.raises(UserError, match=message):
        chosen(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer.*git lfs pull"),
        ("<!DOCTYPE html><html>", "a web page"),
        ("\n  <HTML>", "a web page"),
    ],
)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_other_files_under_such_a_name(tmp_path, text, message, suffix):
    (tmp_path / f"x.{suffix}").write_text(text)
    with pytest.raises(UserError, match=message):
        read_state_dicts(tmp_path / f"x.{suffix}")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_named(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"is TorchScript.*state_dict\(\)"):
        read_state_dicts(tmp_path / "x.pt")


@pytest.mark.parametrize("name", ["conv1.weight", "bn1.running_var"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(resnet8, tmp_path, name, value):
    state = resnet8.state_dict()
    torch.save(state | {name: torch.full_like(state[name], value)}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=f"weights that are not finite: {name}"):
        import_checkpoint(tmp_path / "x.pth", "resnet8", tmp_path / "out", mean=[], std=[])
    assert not (tmp_path / "out").exists()


def test_an_error_shows_names_of_both_sides():
    with pytest.raises(UserError) as caught:
        convert(choose({"": {f"block.{i}.w": np.zeros(1) for i in range(9)}}, "resnet8", None, None), "resnet8")
    message = str(caught.value)
    assert "missing: " in message and "left over: block.0.w (1,)" in message and "and 3 more" in message
    assert "No name is in common, so it is another network" in message
    with pytest.raises(UserError, match="It is most likely a deeper network"):
        convert(state_of(network_of("resnet20", 10)), "resnet8")


def test_names_of_classes_are_given(resnet8, tmp_path):
    (tmp_path / "names.txt").write_text("\n".join("jihgfedcba") + "\n\n")
    torch.save(resnet8.state_dict(), tmp_path / "x.pth")
    names = read_class_names([str(tmp_path / "names.txt")])
    options = {"mean": [], "std": [], "class_names": names}
    assert names == tuple("jihgfedcba") == read_class_names("jihgfedcba")
    assert import_checkpoint(tmp_path / "x.pth", "resnet8", tmp_path / "out", **options).class_names == names
    with pytest.raises(UserError, match="10 classes, but --class_names names 2"):
        import_checkpoint(tmp_path / "x.pth", "resnet8", tmp_path / "o", mean=[], std=[], class_names=("a", "b"))
    with pytest.raises(UserError, match="--class_names: 'a' comes twice"):
        read_class_names(["a", "b", "a"])
    with pytest.raises(UserError, match="cannot be read as a file of names"):
        read_class_names([str(tmp_path / "no.txt")])


@pytest.mark.parametrize(
    ("timm", "torchvision"),
    [
        ("conv_stem.weight", "features.0.0.weight"),
        ("bn1.running_mean", "features.0.1.running_mean"),
        ("blocks.0.0.conv_dw.weight", "features.1.conv.0.0.weight"),
        ("blocks.0.0.bn2.bias", "features.1.conv.2.bias"),
        ("blocks.1.0.conv_pw.weight", "features.2.conv.0.0.weight"),
        ("blocks.3.3.bn2.weight", "features.10.conv.1.1.weight"),
        ("blocks.6.0.conv_pwl.weight", "features.17.conv.2.weight"),
        ("conv_head.weight", "features.18.0.weight"),
        ("classifier.bias", "classifier.1.bias"),
        ("layer1.0.bn1.weight", "layer1.0.bn1.weight"),
    ],
)
def test_names_of_timm(timm, torchvision):
    assert without_timm(timm) == torchvision
