"""Weights from PyTorch: files of every kind, what is refused, and what the imported network is used for."""

import argparse
import json
import pickle
import subprocess
import sys
from collections import OrderedDict

import jax
import numpy as np
import pytest

from orc_jax import checkpoint, evaluate, import_torch, train
from orc_jax.config import default
from orc_jax.data import sets
from orc_jax.data.sets import Dataset, Images
from orc_jax.errors import UserError
from orc_jax.import_torch import convert, import_checkpoint
from orc_jax.torch_file import read_arrays
from tests.helpers import assert_identical

torch = pytest.importorskip("torch")
torch_models = pytest.importorskip("tests.torch_models")


@pytest.fixture(scope="module")
def resnet8():
    return torch_models.randomize(torch_models.MODELS["resnet8"](10), 0)


@pytest.fixture
def digits_like(monkeypatch):
    """Ten classes of random 32x32 images under the name of CIFAR-10."""
    rng = np.random.default_rng(0)
    images = Images(rng.integers(0, 256, (24, 32, 32, 3), np.uint8), np.arange(24, dtype=np.int32) % 10)
    constants = sets.CONSTANTS["cifar10"]
    dataset = Dataset("cifar10", images, images, tuple("0123456789"), (32, 32, 3), *constants)
    monkeypatch.setattr(sets, "load", lambda config, warn: dataset)
    return dataset


def state(network):
    return {name: value.numpy() for name, value in network.state_dict().items()}


CONTAINERS = {
    "state dict": lambda net: net.state_dict(),
    "RepDistiller": lambda net: {
        "opt": argparse.Namespace(model="resnet8", lr=0.05, milestones=[150, 180]),
        "model": net.state_dict(),
        "optimizer": torch.optim.SGD(net.parameters(), 0.1, momentum=0.9).state_dict(),
        "epoch": 240,
        "best_acc": torch.tensor(72.34),
    },
    "wrapped": lambda net: {"state_dict": OrderedDict((f"module.{k}", v) for k, v in net.state_dict().items())},
    "half precision": lambda net: {k: v.half() if v.is_floating_point() else v for k, v in net.state_dict().items()},
    "views": lambda net: {k: v.mT.contiguous().mT if v.ndim == 4 else v for k, v in net.state_dict().items()},
    "parameters": lambda net: dict(net.named_parameters()) | dict(net.named_buffers()),
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("new_format", [True, False])
def test_files_of_pytorch_are_read_without_it(resnet8, tmp_path, container, new_format):
    path = tmp_path / "x.pth"
    torch.save(CONTAINERS[container](resnet8), path, _use_new_zipfile_serialization=new_format)
    arrays = read_arrays(path)
    expected = state(resnet8)
    assert set(arrays) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(arrays[name], value, rtol=1e-3 if container == "half precision" else 0, atol=1e-7)


def test_safetensors_are_read(resnet8, tmp_path):
    from safetensors.torch import save_file

    save_file(resnet8.state_dict(), tmp_path / "x.safetensors")
    assert_identical(read_arrays(tmp_path / "x.safetensors"), state(resnet8))
    save_file({k: v.bfloat16() for k, v in resnet8.state_dict().items()}, tmp_path / "b.safetensors")
    params = convert(read_arrays(tmp_path / "b.safetensors"), "resnet8")[0]
    assert all(value.dtype == np.float32 for value in params.values())


def test_reading_does_not_need_pytorch():
    blocked = "import sys; sys.modules['torch'] = None; import orc_jax.import_torch, orc_jax.main"
    assert subprocess.run([sys.executable, "-c", blocked], check=False).returncode == 0


class Malicious:
    def __reduce__(self):
        return (open, ("owned.txt", "w"))


@pytest.mark.parametrize("new_format", [True, False])
def test_nothing_that_a_file_names_is_run(resnet8, tmp_path, monkeypatch, new_format):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": resnet8.state_dict(), "x": Malicious()}, "x.pth", _use_new_zipfile_serialization=new_format)
    assert set(read_arrays(tmp_path / "x.pth")) == set(state(resnet8))
    assert not (tmp_path / "owned.txt").exists()


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "cannot be read as a PyTorch checkpoint"),
        (b"not a checkpoint at all", "cannot be read as a PyTorch checkpoint"),
        (pickle.dumps({"a": 1}), "cannot be read as a PyTorch checkpoint"),
    ],
)
def test_other_files_are_refused(tmp_path, content, text):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(UserError, match=text):
        read_arrays(tmp_path / "x.pth")


@pytest.mark.parametrize("new_format", [True, False])
def test_truncated_files_are_refused(resnet8, tmp_path, new_format):
    torch.save(resnet8.state_dict(), tmp_path / "x.pth", _use_new_zipfile_serialization=new_format)
    whole = (tmp_path / "x.pth").read_bytes()
    for share in (0.1, 0.5, 0.9, 0.999):
        (tmp_path / "x.pth").write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(UserError, match="cannot be read as a PyTorch checkpoint"):
            read_arrays(tmp_path / "x.pth")


def test_a_file_without_arrays_is_refused(tmp_path):
    torch.save({"epoch": 3, "args": {"lr": 0.1}}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="holds no state dict: it has epoch, args"):
        read_arrays(tmp_path / "x.pth")


def test_all_differences_are_in_one_error(resnet8):
    arrays = state(resnet8)
    del arrays["layer1.0.bn1.running_var"]
    arrays["layer2.0.conv2.weight"] = np.zeros((32, 32, 1, 1))
    arrays["head.weight"] = np.zeros((3, 2))
    with pytest.raises(UserError) as caught:
        convert(arrays, "resnet8")
    message = str(caught.value)
    assert "--model=resnet8 (3 differences)" in message
    assert "missing: layer1.0.bn1.running_var" in message
    assert "of another shape: layer2.0.conv2.weight (32, 32, 1, 1), needed is (32, 32, 3, 3)" in message
    assert "left over: head.weight (3, 2)" in message
    with pytest.raises(UserError, match=r"(?s)--model=vgg8 \(\d+ differences\).*and \d+ more"):
        convert(state(resnet8), "vgg8")


def test_classes_and_channels_are_read_off():
    network = torch_models.MODELS["plane4"](10)
    params, _, classes, shape = convert(state(network), "plane4")
    assert classes == 10 and shape == (32, 32, 3) and params["fc_layers.0.kernel"].shape == (2048, 10)
    arrays = state(torch_models.MODELS["resnet8"](37))
    arrays["conv1.weight"] = arrays["conv1.weight"][:, :1]
    assert convert(arrays, "resnet8")[2:] == (37, (32, 32, 1))


def imported(network, tmp_path, *, model="resnet8", mean=(), std=()):
    torch.save(network.state_dict(), tmp_path / "net.pth")
    return import_checkpoint(tmp_path / "net.pth", model, tmp_path / "out", mean=list(mean), std=list(std))


def test_an_imported_network_is_evaluated(resnet8, tmp_path, console, digits_like):
    description = imported(resnet8, tmp_path)
    assert description["num_classes"] == 10 and description["mean"] == list(sets.CONSTANTS["cifar10"][0])
    config = default()
    config.dataset, config.method, config.student, config.num_networks = "cifar10", "independent", "resnet8", 1
    config.eval_batch_size = 8
    evaluate.evaluate_checkpoint(config, tmp_path / "out", "latest", console)
    result = json.loads((tmp_path / "out" / "evaluation_0.json").read_text())
    mean, std = sets.CONSTANTS["cifar10"]
    images = torch.tensor((digits_like.test.images / 255 - mean) / std, dtype=torch.float32).permute(0, 3, 1, 2)
    resnet8.eval()
    with torch.no_grad():
        logits = resnet8(images)[0]
    labels = torch.tensor(digits_like.test.labels, dtype=torch.long)
    np.testing.assert_allclose(
        result["target_student"]["loss"], torch.nn.functional.cross_entropy(logits, labels), rtol=1e-4
    )
    assert np.isclose(result["target_student"]["top1"], (logits.argmax(1) == labels).double().mean())


def test_an_imported_network_is_the_pivot_teacher(tmp_path, console, digits_like):
    network = torch_models.randomize(torch_models.MODELS["plane2"](10), 0)
    imported(network, tmp_path, model="plane2")
    config = default()
    config.dataset, config.teacher, config.student, config.num_networks = "cifar10", "plane2", "tiny_a", 3
    config.batch_size, config.eval_batch_size, config.num_epochs, config.warmup_epochs = 8, 8, 1, 0.0
    config.pivot_checkpoint = str(tmp_path / "out")
    config.orc.intensive_teaching = False  # so that it stays as it was
    train.train(config, tmp_path / "run", console)
    with checkpoint.open_manager(tmp_path / "run", create=False) as manager:
        description = checkpoint.read_description(tmp_path / "run")
        _, params, batch_stats = checkpoint.restore_networks(
            manager, manager.latest_step(), description, jax.sharding.SingleDeviceSharding(jax.devices()[0])
        )
    expected = convert(state(network), "plane2")[:2]
    assert_identical(jax.tree.map(lambda x: x[0], (params["plane2"], batch_stats["plane2"])), expected)
    with pytest.raises(UserError, match="holds imported weights, not a run that could go on"):
        train.train(config, tmp_path / "out", console)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"mean": [0.5]}, "must have 3 values each"),
        ({"mean": [0.5] * 3, "std": [0.0] * 3}, "std greater than 0"),
    ],
)
def test_wrong_options(resnet8, tmp_path, options, text):
    with pytest.raises(UserError, match=text):
        imported(resnet8, tmp_path, **options)
    assert not (tmp_path / "out").exists()


def test_normalisation_must_be_known(tmp_path):
    with pytest.raises(UserError, match="--mean, --std: needed for a network of 37 classes"):
        imported(torch_models.MODELS["resnet8"](37), tmp_path)


def test_nothing_is_overwritten(resnet8, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and is not an empty folder"):
        imported(resnet8, tmp_path)
    with pytest.raises(UserError, match="there is no such file"):
        import_checkpoint(tmp_path / "no.pth", "resnet8", tmp_path / "new", mean=[], std=[])
    with pytest.raises(UserError, match=r"--model='resnet9' is not known. Did you mean"):
        import_checkpoint(tmp_path / "no.pth", "resnet9", tmp_path / "new", mean=[], std=[])


def test_the_command(resnet8, tmp_path, monkeypatch, capsys):
    torch.save({"model": resnet8.state_dict()}, tmp_path / "net.pth")
    out = str(tmp_path / "out")
    monkeypatch.setattr(sys, "argv", ["import_torch", str(tmp_path / "net.pth"), "--model", "resnet8", "--out", out])
    import_torch.main()
    assert f"--config.pivot_checkpoint={out}" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        import_torch.main()
    assert caught.value.code == 2 and capsys.readouterr().err.startswith("orc_jax: --out=")
