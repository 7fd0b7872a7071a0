"""Weights from PyTorch as a workdir: what is refused, and what the imported network is used for."""

import json
import sys

import jax
import numpy as np
import pytest
import torch

from orc_jax import config_files, evaluate, import_torch, training
from orc_jax.config import default, resolve
from orc_jax.data import sets
from orc_jax.data.types import Dataset, Images
from orc_jax.deploy.export import FORMATS, describe
from orc_jax.deploy.import_torch import convert, import_checkpoint
from orc_jax.deploy.member import Member, load_member
from orc_jax.errors import UserError
from orc_jax.models import MODELS
from orc_jax.testing import assert_identical
from orc_jax.workdir import checkpoint, record
from tests.deploy.members import CLASSES, MEAN, STD, network_of, state_of


@pytest.fixture(scope="module")
def resnet8():
    return network_of("resnet8", 10)


@pytest.fixture
def digits_like(monkeypatch):
    """Ten classes of random 32x32 images under the name of CIFAR-10."""
    rng = np.random.default_rng(0)
    images = Images(rng.integers(0, 256, (24, 32, 32, 3), np.uint8), np.arange(24, dtype=np.int32) % 10)
    constants = sets.CONSTANTS["cifar10"]
    dataset = Dataset("cifar10", images, images, tuple("0123456789"), (32, 32, 3), *constants)
    monkeypatch.setattr(sets, "load", lambda *_, **__: dataset)
    return dataset


def test_all_differences_are_in_one_error(resnet8):
    arrays = state_of(resnet8)
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
        convert(state_of(resnet8), "vgg8")


def test_classes_and_channels_are_read_off():
    network = network_of("plane4", 10)
    params, _, classes, shape = convert(state_of(network), "plane4")
    assert classes == 10 and shape == (32, 32, 3) and params["fc_layers.0.kernel"].shape == (2048, 10)
    arrays = state_of(network_of("resnet8", 37))
    arrays["conv1.weight"] = arrays["conv1.weight"][:, :1]
    assert convert(arrays, "resnet8")[2:] == (37, (32, 32, 1))


def imported(network, tmp_path, *, model="resnet8", mean=(), std=(), image_size=None):
    torch.save(network.state_dict(), tmp_path / "net.pth")
    options = {"mean": list(mean), "std": list(std), "image_size": image_size}
    return import_checkpoint(tmp_path / "net.pth", model, tmp_path / "out", **options)


@pytest.mark.parametrize(
    ("model", "classes", "options", "shape", "mean", "crop"),
    [
        ("plane2", 10, {}, (32, 32, 3), (0.4914, 0.4822, 0.4465), None),
        ("plane2", 100, {}, (32, 32, 3), (0.5071, 0.4865, 0.4409), None),
        ("resnet10", 1000, {}, (224, 224, 3), (0.485, 0.456, 0.406), 0.875),
        ("resnet10", 1000, {"image_size": 64}, (64, 64, 3), (0.485, 0.456, 0.406), 0.875),
        ("resnet8", 37, {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}, (32, 32, 3), (0.1, 0.2, 0.3), None),
    ],
)
def test_what_is_assumed_of_its_images(tmp_path, model, classes, options, shape, mean, crop):
    """By the number of classes and the network, unless it is said."""
    written = imported(network_of(model, classes), tmp_path, model=model, **options)
    assert (written.num_classes, written.image_shape, written.mean, written.eval_crop) == (classes, shape, mean, crop)
    assert written.std == (tuple(options["std"]) if "std" in options else dict(sets.CONSTANTS.values())[mean])
    assert record.require(tmp_path / "out") == written._replace(config=json.loads(default().to_json()))
    assert written.imported["file"] == "net.pth" and len(written.imported["sha256"]) == 64


def test_an_imported_network_is_evaluated(resnet8, tmp_path, console, digits_like):
    written = imported(resnet8, tmp_path)
    assert written.num_classes == 10 and written.mean == sets.CONSTANTS["cifar10"][0]
    config = default()
    config.dataset, config.method, config.student, config.num_networks = "cifar10", "independent", "resnet8", 1
    config.eval_batch_size = 8
    evaluate.evaluate_checkpoint(resolve(config), tmp_path / "out", "latest", console)
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
    network = network_of("plane2", 10)
    imported(network, tmp_path, model="plane2")
    config = default()
    config.dataset, config.teacher, config.student, config.num_networks = "cifar10", "plane2", "tiny_a", 3
    config.batch_size, config.eval_batch_size, config.num_epochs, config.warmup_epochs = 8, 8, 1, 0.0
    config.pivot_checkpoint = str(tmp_path / "out")
    config.orc.intensive_teaching = False  # so that it stays as it was
    training.train(resolve(config), tmp_path / "run", console)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    trained = checkpoint.restore_networks(tmp_path / "run", record.require(tmp_path / "run"), "latest", device, {})
    pivot = trained.pool.member(0)
    assert_identical((pivot.params, pivot.batch_stats), convert(state_of(network), "plane2")[:2])
    with pytest.raises(UserError, match="holds imported weights, not a run that could go on"):
        training.train(resolve(config), tmp_path / "out", console)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"mean": [0.5]}, r"--mean=\(0.5,\): must have 3 values, one per channel"),
        ({"mean": [0.5] * 3}, r"--std=\(\): must have 3 values, one per channel"),
        ({"mean": [0.5] * 3, "std": [0.0] * 3}, r"--std=\(0.0, 0.0, 0.0\): must be greater than 0 and at most 1"),
        (
            {"mean": [125.0, 123.0, 114.0], "std": [63.0, 62.0, 67.0]},
            r"--mean=\(125.0, 123.0, 114.0\): must be from 0 to 1, of images in \[0, 1\]; .*0 to 255, divide by 255$",
        ),
        ({"mean": [0.5] * 3, "std": [63.0, 62.0, 67.0]}, r"--std=.* at most 1, of images in \[0, 1\]; .*divide by 255"),
        ({"mean": [np.nan] * 3, "std": [0.5] * 3}, r"--mean=\(nan, nan, nan\): must be from 0 to 1"),
        ({"image_size": 0}, "--image_size=0: must be from 1 to 4096"),
        ({"image_size": -5}, "--image_size=-5: must be"),
        ({"image_size": 1_000_000}, "--image_size=1000000: must be"),
    ],
)
def test_wrong_options(resnet8, tmp_path, options, text):
    with pytest.raises(UserError, match=text):
        imported(resnet8, tmp_path, **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["safetensors", "torch"])
@pytest.mark.parametrize("crop", [None, 0.875])
def test_what_an_export_says_is_read(tmp_path, kind, crop):
    """Of other images than usual: names, size, normalisation, preparation; what is given holds over it."""
    params, batch_stats, _, _ = convert(state_of(network_of("resnet8", 7)), "resnet8", 16)
    about = {"class_names": CLASSES, "image_shape": (16, 16, 3), "mean": MEAN, "std": STD, "crop": crop}
    about["pixel_range"] = (0.0, 4095.0) if crop else ()
    member = Member("2_resnet8", "resnet8", MODELS["resnet8"], 7, (params, batch_stats), 7, **about)
    write, taken = FORMATS[kind]
    path = tmp_path / "net.bin" if kind == "torch" else tmp_path / "net.safetensors"
    path.write_bytes(write(member, describe(member, taken)))
    if kind == "torch":  # a safetensors file has its description in it
        with pytest.raises(
            UserError, match=r"--model: needed to know which network .*net.bin holds, for no net.bin.js"
        ):
            import_checkpoint(path, None, tmp_path / "out", mean=[], std=[])
        (tmp_path / "net.bin.json").write_text(json.dumps(describe(member, taken)))
    import_checkpoint(path, None, tmp_path / "out", mean=[], std=[])
    there = record.require(tmp_path / "out")
    assert there.architectures == ("resnet8",) and there.eval_crop == (crop and 16 / round(16 / crop))
    assert (there.class_names, there.image_shape, there.mean, there.std) == (CLASSES, (16, 16, 3), MEAN, STD)
    again = load_member(tmp_path / "out", "target", "latest")
    assert_identical(again.weights, member.weights)
    for field in ("resize", "pixel_range"):
        assert describe(again, taken)[field] == describe(member, taken)[field]
    assert config_files.of_run(tmp_path / "out").stream.pixel_range == again.pixel_range == about["pixel_range"]
    other = import_checkpoint(path, "resnet8", tmp_path / "other", mean=[0.5] * 3, std=[0.1] * 3)
    assert (other.mean, other.std, other.class_names) == ((0.5,) * 3, (0.1,) * 3, CLASSES)
    with pytest.raises(UserError, match="--model=vgg8"):
        import_checkpoint(path, "vgg8", tmp_path / "no", mean=[], std=[])


def test_a_description_of_another_network_is_refused(tmp_path):
    network = network_of("plane2", 10)
    torch.save(network.state_dict(), tmp_path / "net.pth")
    about = {"class_names": CLASSES, "image_shape": (32, 32, 3), "mean": MEAN, "std": STD, "crop": None}
    member = Member("2_plane2", "plane2", MODELS["plane2"], 7, ({}, {}), 7, **about)
    (tmp_path / "net.pth.json").write_text(json.dumps(describe(member, {})))
    with pytest.raises(UserError, match=r"net\.pth has 10 classes, but its description names 7"):
        import_checkpoint(tmp_path / "net.pth", None, tmp_path / "out", mean=[], std=[])
    member = member._replace(class_names=tuple("0123456789"), mean=(0.5,))
    (tmp_path / "net.pth.json").write_text(json.dumps(describe(member, {})))
    with pytest.raises(UserError, match=r"the description of .*net\.pth: mean=\(0.5,\): must have 3 values"):
        import_checkpoint(tmp_path / "net.pth", None, tmp_path / "out", mean=[], std=[])


def test_images_need_not_be_square():
    _, _, _, shape = convert(state_of(network_of("resnet8", 10)), "resnet8", (24, 40))
    assert shape == (24, 40, 3)


def test_normalisation_must_be_known(resnet8, tmp_path):
    with pytest.raises(UserError, match="--mean, --std: needed for a network of 37 classes"):
        imported(network_of("resnet8", 37), tmp_path)
    grey = resnet8.state_dict() | {"conv1.weight": resnet8.conv1.weight.detach()[:, :1]}
    torch.save(grey, tmp_path / "grey.pth")
    with pytest.raises(UserError, match=r"^--mean, --std: needed for images of 1 channel, .* only for 3 channels$"):
        import_checkpoint(tmp_path / "grey.pth", "resnet8", tmp_path / "out", mean=[], std=[])
    written = import_checkpoint(tmp_path / "grey.pth", "resnet8", tmp_path / "out", mean=[0.0], std=[1.0])
    assert (written.image_shape, written.mean, written.std) == ((32, 32, 1), (0.0,), (1.0,))


def test_nothing_is_overwritten(resnet8, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and is not an empty folder"):
        imported(resnet8, tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--out=.*file/new: cannot be written: Not a directory"):
        import_checkpoint(tmp_path / "net.pth", "resnet8", tmp_path / "file" / "new", mean=[], std=[])
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
