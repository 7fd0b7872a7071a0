"""Files of PyTorch: of every kind and age, read without it, and nothing in them is run."""

import argparse
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch

from orc_jax.deploy.import_torch import convert
from orc_jax.errors import UserError
from orc_jax.testing import assert_identical
from tests.deploy.members import network_of, read_arrays, state_of


@pytest.fixture(scope="module")
def resnet8():
    return network_of("resnet8", 10)


CONTAINERS = {
    "state dict": lambda net: net.state_dict(),
    "RepDistiller": lambda net: {
        "opt": argparse.Namespace(model="resnet8", lr=0.05, milestones=[150, 180]),
        "model": net.state_dict(),
        "optimizer": torch.optim.SGD(net.parameters(), 0.1, momentum=0.9).state_dict(),
        "epoch": 240,
        "best_acc": torch.tensor(72.34),
    },
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
    expected = state_of(resnet8)
    assert set(arrays) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(arrays[name], value, rtol=1e-3 if container == "half precision" else 0, atol=1e-7)


def test_safetensors_are_read(resnet8, tmp_path):
    from safetensors.torch import save_file

    save_file(resnet8.state_dict(), tmp_path / "x.safetensors")
    assert_identical(read_arrays(tmp_path / "x.safetensors"), state_of(resnet8))
    save_file({k: v.bfloat16() for k, v in resnet8.state_dict().items()}, tmp_path / "b.safetensors")
    params = convert(read_arrays(tmp_path / "b.safetensors"), "resnet8")[0]
    assert all(value.dtype == np.float32 for value in params.values())


def test_reading_does_not_need_pytorch():
    blocked = "import sys; sys.modules['torch'] = None; import orc_jax.deploy.import_torch, orc_jax.main"
    assert subprocess.run([sys.executable, "-c", blocked], check=False).returncode == 0


class Malicious:
    def __reduce__(self):
        return (open, ("owned.txt", "w"))


@pytest.mark.parametrize("new_format", [True, False])
def test_nothing_that_a_file_names_is_run(resnet8, tmp_path, monkeypatch, new_format):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": resnet8.state_dict(), "x": Malicious()}, "x.pth", _use_new_zipfile_serialization=new_format)
    assert set(read_arrays(tmp_path / "x.pth")) == set(state_of(resnet8))
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
    with pytest.raises(UserError, match=r"holds no state dict: it has epoch, args$"):
        read_arrays(tmp_path / "x.pth")
    torch.save(dict.fromkeys("abcdefgh", 3), tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"it has a, b, c, d, e and 3 more$"):
        read_arrays(tmp_path / "x.pth")


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("new_format", [True, False])
def test_tensors_that_are_not_read_may_lie_beside(resnet8, tmp_path, new_format):
    others = [torch.tensor([1, 2, 3]).to(torch.uint16), torch.ones(3).to(torch.float8_e4m3fn)]
    others += [torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, kind) for kind in (torch.qint8, torch.qint32)]
    content = {"before": others[0], "model": resnet8.state_dict(), "others": others}
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=new_format)
    assert_identical(read_arrays(tmp_path / "x.pth"), state_of(resnet8))


@pytest.mark.parametrize("new_format", [True, False])
def test_tensors_that_are_more_than_what_is_stored(resnet8, tmp_path, new_format):
    """Expanded, of the network or beside it, and negated."""
    negated = torch._neg_view(-resnet8.state_dict()["conv1.weight"])  # as the imaginary part of a conjugate is
    weights = resnet8.state_dict() | {"bn1.weight": torch.ones(1).expand(16), "conv1.weight": negated}
    content = {"model": weights, "mask": torch.ones(1).expand(5)}
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=new_format)
    arrays = read_arrays(tmp_path / "x.pth")
    assert_identical(arrays, state_of(resnet8) | {"bn1.weight": np.ones(16, np.float32)})
    np.testing.assert_array_equal(convert(arrays, "resnet8")[0]["bn1.scale"], np.ones(16))


def test_files_of_machines_with_the_first_byte_first(resnet8, tmp_path):
    """What is written there says so, and has the bytes of every number in the other order."""
    weights = {"fc.weight": torch.arange(6.0).reshape(2, 3), "n": torch.tensor([3]), "b": torch.ones(2).bfloat16()}
    torch.save(weights, tmp_path / "x.pth")
    with zipfile.ZipFile(tmp_path / "x.pth") as little, zipfile.ZipFile(tmp_path / "big.pth", "w") as big:
        for name in little.namelist():
            content = little.read(name)
            if name.startswith("x/data/"):
                (size,) = [x.itemsize for x in weights.values() if x.nbytes == len(content)]
                content = np.frombuffer(content, np.uint8).reshape(-1, size)[:, ::-1].tobytes()
            big.writestr(name, b"big" if name == "x/byteorder" else content)
    assert torch.equal(torch.load(tmp_path / "big.pth")["fc.weight"], weights["fc.weight"])
    assert_identical(read_arrays(tmp_path / "big.pth"), read_arrays(tmp_path / "x.pth"))
