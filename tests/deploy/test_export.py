"""Members taken out of their runs: every format computes the logits of evaluation, and every mistake is one message."""

import errno
import io
import json
import sys
from pathlib import Path

import jax
import jax.export
import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.torch
import torch

from orc_jax import export
from orc_jax.deploy.export import FORMATS, describe, export_member, to_stablehlo
from orc_jax.deploy.import_torch import import_checkpoint
from orc_jax.errors import UserError
from orc_jax.models import LARGE
from orc_jax.testing import assert_identical
from tests import torch_models
from tests.deploy.members import (
    assert_same_logits,
    by_pytorch,
    evaluated,
    member_of,
    network_of,
    photos,
    read_arrays,
    save_pool,
    state_of,
)

# One network of each family; the rest run with `-m slow`.
QUICK = {
    "resnet8",
    "switokd_resnet20",  # pads its shortcuts
    "wrn_16_1",
    "vgg8",
    "ShuffleV1",
    "densenet_40_12",
    "plane8",
    "resnet10",
}
CASES = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in torch_models.MODELS]
LOADED = {
    "safetensors": safetensors.torch.load,
    "torch": lambda content: torch.load(io.BytesIO(content), weights_only=True),
}


def by_onnxruntime(file, images):
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"images": images})[0]


@pytest.mark.parametrize("name", CASES)
def test_every_format_computes_what_evaluation_does(name):
    size = 64 if name in LARGE else 32
    member, images = member_of(network_of(name), name, size), photos(size)
    expected = evaluated(member, images)
    files = {kind: write(member, describe(member, taken)) for kind, (write, taken) in FORMATS.items()}
    for kind in LOADED:
        assert_same_logits(by_pytorch(member, LOADED[kind](files[kind]), images), expected)
    onnx.checker.check_model(onnx.load_from_string(files["onnx"]), full_check=True)
    program = jax.export.deserialize(bytearray(files["stablehlo"]))
    assert program.platforms == ("cpu", "cuda", "tpu")
    assert_same_logits(np.asarray(program.call(images)), expected)
    for batch in (1, 3, len(images)):
        assert_same_logits(by_onnxruntime(files["onnx"], images[:batch]), expected[:batch])


def test_a_program_takes_batches_of_any_size():
    member = member_of(network_of("plane2"), "plane2", 32)
    images = np.concatenate([photos(32)] * 5)
    program = jax.export.deserialize(bytearray(to_stablehlo(member, {})))
    expected = evaluated(member, images)
    for batch in (1, 2, 20):
        assert_same_logits(np.asarray(program.call(images[:batch])), expected[:batch])


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """A workdir with imported weights of a resnet8 for CIFAR-10, and the network in PyTorch."""
    network = network_of("resnet8", 10)
    folder = tmp_path_factory.mktemp("imported")
    torch.save(network.state_dict(), folder / "net.pth")
    import_checkpoint(folder / "net.pth", "resnet8", folder / "run", mean=[], std=[])
    return folder / "run", network


@pytest.mark.parametrize("kind", ["safetensors", "torch"])
def test_what_was_imported_comes_out_as_it_was(imported, tmp_path, kind):
    workdir, network = imported
    out = tmp_path / {"safetensors": "x.safetensors", "torch": "x.pth"}[kind]
    export_member(workdir, "target", "latest", kind, out)
    expected = state_of(network)
    counters = {name: np.zeros((), np.int64) for name in expected if name.endswith(".num_batches_tracked")}
    assert_identical(read_arrays(out), expected | counters)


def test_the_description_is_beside_the_file_and_in_it(tmp_path):
    save_pool(tmp_path / "run", ["tiny_a", "tiny_b"], eval_crop=0.8)
    for kind in FORMATS:
        returned = export_member(tmp_path / "run", "0", "best", kind, tmp_path / kind)
        assert json.loads((tmp_path / f"{kind}.json").read_text()) == returned
        assert returned["architecture"] == "tiny_a" and returned["member"] == "0_tiny_a" and returned["step"] == 3
        assert returned["class_names"] == ["a", "b", "c"] and (returned["mean"], returned["std"]) == ([0.4], [0.2])
        assert returned["input"]["layout"] == ("NCHW" if kind in ("safetensors", "torch") else "NHWC")
        assert (returned["resize"]["short_side"], returned["resize"]["crop"]) == (10, 8)
        if kind == "safetensors":
            with safetensors.safe_open(tmp_path / kind, "np") as file:
                inside = file.metadata()
            assert inside.pop("format") == "pt"  # what Hugging Face's loaders ask for
        elif kind == "onnx":
            session = onnxruntime.InferenceSession(tmp_path / kind, providers=["CPUExecutionProvider"])
            inside = session.get_modelmeta().custom_metadata_map
        else:
            continue
        assert inside.keys() == returned.keys()
        for key, value in returned.items():
            assert inside[key] == value or json.loads(inside[key]) == value


MISTAKES = [
    (
        {"--member": "tiny_c"},
        "--member='tiny_c' is not known. Accepted: a number, a name or a role, or a part that only",
    ),
    ({"--member": "tiny"}, "--member='tiny' is not one member but 0_tiny_a, 1_tiny_b"),
    ({"--member": "-1"}, "--member=-1: must be a number from 0 to 1, or a name"),
    ({"--checkpoint": "4"}, "--checkpoint='4': there is none of that step. Accepted: latest, best, or one of [3, 8]"),
    ({"--format": "onxx"}, "--format='onxx' is not known. Did you mean onnx?"),
    ({"--workdir": "nowhere"}, "--workdir=nowhere holds no run"),
    ({"--workdir": "empty"}, "--workdir=empty holds a run without a checkpoint"),
    ({"--out": "there"}, "--out=there: there exists; nothing is overwritten"),
    ({"--out": "described"}, "--out=described: described.json exists; nothing is overwritten"),
    ({"--out": ""}, "--out=.: . exists; nothing is overwritten"),
    ({"--out": "no/x"}, "--out=no/x: there is no folder no"),
    ({"--out": "x" * 253}, "cannot be written: File name too long"),
]


def run_export(monkeypatch, options):
    options = {"--workdir": "run", "--format": "safetensors", "--out": "x"} | options
    monkeypatch.setattr(sys, "argv", ["export", *(f"{key}={value}" for key, value in options.items())])
    export.main()


@pytest.mark.parametrize(("options", "text"), MISTAKES)
def test_mistakes_are_one_message(tmp_path, monkeypatch, capsys, options, text):
    monkeypatch.chdir(tmp_path)
    save_pool(tmp_path / "run", ["tiny_a", "tiny_b"])
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "there").write_text("mine")
    (tmp_path / "described.json").write_text("mine")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    with pytest.raises(SystemExit) as caught:
        run_export(monkeypatch, options)
    error = capsys.readouterr().err
    assert caught.value.code == 2 and error.startswith("orc_jax: ") and error.count("\n") == 1 and text in error
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(("kind", "package"), [("torch", "torch"), ("onnx", "onnx"), ("stablehlo", "flatbuffers")])
def test_a_missing_package_is_named(tmp_path, monkeypatch, capsys, kind, package):
    monkeypatch.chdir(tmp_path)
    save_pool(tmp_path / "run", ["tiny_b"])
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit) as caught:
        run_export(monkeypatch, {"--format": kind})
    error = capsys.readouterr().err
    assert caught.value.code == 2 and f"the package {package} is needed" in error and "pip install" in error
    assert ("--format=safetensors" in error) == (kind == "torch")
    assert not Path("x").exists()


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    save_pool(tmp_path / "run", ["tiny_b"])
    opened = Path.open

    def full(path, *args, **options):
        if path.name == "x.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        return opened(path, *args, **options)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        export_member(tmp_path / "run", "0", "latest", "safetensors", tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
