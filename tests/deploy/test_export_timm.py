"""The networks of today taken out of their runs: every format computes the logits of evaluation, as timm does."""

import io

import jax.export
import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.torch
import torch

from orc_jax.deploy.export import FORMATS, describe
from orc_jax.deploy.import_torch import convert
from orc_jax.deploy.member import Member
from orc_jax.models import MODELS
from tests.deploy.members import CLASSES, MEAN, STD, assert_same_logits, evaluated, photos

timm_models = pytest.importorskip("tests.timm_models", reason="timm is not installed", exc_type=ImportError)

QUICK = ("narrow_vit", "narrow_convnext", "narrow_mobilenetv3")
CASES = [
    pytest.param(x, marks=[pytest.mark.slow] * (x not in QUICK)) for x in [*timm_models.NARROW, *timm_models.WHOLE]
]


@pytest.mark.parametrize("name", CASES)
def test_every_format_computes_what_evaluation_does(name, monkeypatch):
    if name in timm_models.NARROW:
        monkeypatch.setitem(MODELS, name, timm_models.NARROW[name][0])
    size, network = timm_models.side(name), timm_models.reference(name, len(CLASSES), timm_models.side(name))
    timm_models.randomize(network, 0)
    arrays = {key: value.numpy() for key, value in network.state_dict().items()}
    params, batch_stats, classes, shape = convert(arrays, name, size)
    about = {"class_names": CLASSES, "image_shape": shape, "mean": MEAN, "std": STD, "crop": None}
    member, images = Member(f"0_{name}", name, MODELS[name], 7, (params, batch_stats), classes, **about), photos(size)
    expected = evaluated(member, images)
    files = {kind: write(member, describe(member, taken)) for kind, (write, taken) in FORMATS.items()}
    inputs = torch.tensor(((images / 255 - np.array(MEAN)) / np.array(STD)).astype(np.float32)).permute(0, 3, 1, 2)
    loads = {"safetensors": safetensors.torch.load, "torch": lambda file: torch.load(io.BytesIO(file))}
    for kind, load in loads.items():
        network.load_state_dict(load(files[kind]), strict=True)
        with torch.no_grad():
            assert_same_logits(network.eval()(inputs)[0].numpy(), expected)
    program = jax.export.deserialize(bytearray(files["stablehlo"]))
    assert_same_logits(np.asarray(program.call(images)), expected)
    onnx.checker.check_model(onnx.load_from_string(files["onnx"]), full_check=True)
    session = onnxruntime.InferenceSession(files["onnx"], providers=["CPUExecutionProvider"])
    for batch in (1, len(images)):
        assert_same_logits(session.run(["logits"], {"images": images[:batch]})[0], expected[:batch])
