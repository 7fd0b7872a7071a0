"""Files that are no checkpoint are told by what they are; files of weights by what they hold, not by their name."""

import io
import itertools
import json
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
import torch

from orc_jax.deploy.torch_file import read_state_dicts
from orc_jax.deploy.torch_kinds import foreign, is_safetensors
from orc_jax.errors import UserError
from tests.deploy.members import network_of


def npz():
    file = io.BytesIO()
    np.savez(file, a=np.zeros(3))
    return file.getvalue()


def zipped(*names):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return file.getvalue()


def tarred():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("net.pth"))
    return file.getvalue()


INDEX = json.dumps({"weight_map": {"a": "model-2.safetensors", "b": "model-1.safetensors"}})
FILES = {
    "empty": (b"", "an empty file"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a Git LFS pointer.*: git lfs pull"),
    "page": (b"\n <!DOCTYPE html><html></html>", "a web page, not the file itself: download it again"),
    "page in capitals": (b"<HTML><BODY>", "a web page"),
    "error of a store": (b'<?xml version="1.0"?><Error>AccessDenied</Error>', "a web page"),
    "index": (INDEX.encode(), "an index of shards: the weights are in model-1.safetensors, model-2.safetensors"),
    "JSON": (b'{"error": "no such file"}', "text in JSON, not weights"),
    "text": (b"hello\n", "text, not weights: 'hello'"),
    "pickle": (pickle.dumps({"a": 1}), "a pickle that torch.save has not written"),
    "Keras": (b"\x89HDF\r\n\x1a\n" + bytes(99), "an HDF5 file, as Keras writes them"),
    "npz": (npz(), r"NumPy arrays \(.npz\)"),
    "npy": (b"\x93NUMPY" + bytes(99), "a NumPy array"),
    "gzip": (b"\x1f\x8b" + bytes(99), "compressed by gzip: unpack it first"),
    "zip": (zipped("net/net.pth"), r"a zip archive: unpack it first.*\(it has net/net.pth\)"),
    "half a zip": (zipped("net/data.pkl")[:-40], "an archive without its end, as of a checkpoint that was cut off"),
    "zeros": (bytes(5000), "a file of zeros: its download or copy has failed"),
    "tar": (tarred(), "a tar archive: unpack it first"),
    "exported program": (zipped("net/models/model.json", "net/version"), "an exported program of PyTorch"),
}


@pytest.mark.parametrize("kind", FILES)
def test_what_is_no_checkpoint(kind, tmp_path):
    content, text = FILES[kind]
    (tmp_path / "net.pth").write_bytes(content)
    with pytest.raises(UserError, match=f"net.pth cannot be read as a PyTorch checkpoint or safetensors: it is {text}"):
        read_state_dicts(tmp_path / "net.pth")


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_a_torchscript_program(tmp_path):
    torch.jit.trace(torch.nn.Linear(2, 3), torch.zeros(1, 2)).save(tmp_path / "net.pt")
    with pytest.raises(
        UserError, match=r"it is a TorchScript program: save its weights.* torch.jit.load\(\"net.pt\"\)"
    ):
        read_state_dicts(tmp_path / "net.pt")


@pytest.mark.parametrize("new_format", [True, False])
def test_a_checkpoint_is_not_taken_for_something_else(tmp_path, new_format):
    torch.save({"a.b": torch.zeros(3)}, tmp_path / "net.pth", _use_new_zipfile_serialization=new_format)
    assert foreign(tmp_path / "net.pth") is None and not is_safetensors(tmp_path / "net.pth")


@pytest.mark.parametrize("name", ["model.bin", "model.pth", "model", "model.safetensors"])
def test_the_name_of_a_file_does_not_matter(tmp_path, name):
    from safetensors.torch import save_file

    save_file({"a.b": torch.arange(3.0)}, tmp_path / name)
    np.testing.assert_array_equal(read_state_dicts(tmp_path / name)[""]["a.b"], [0, 1, 2])
    torch.save({"a.b": torch.arange(3.0)}, tmp_path / name)
    np.testing.assert_array_equal(read_state_dicts(tmp_path / name)[""]["a.b"], [0, 1, 2])


def test_tensors_that_are_no_plain_arrays_are_refused(tmp_path):
    from safetensors.torch import save_file

    weights = network_of("resnet8", 10).state_dict()
    text = r"it is of tensors that are sparse, .*, such as conv1.weight: save it in full"
    eighths = weights["conv1.weight"].to(torch.float8_e4m3fn)
    for other in (weights["conv1.weight"].to_sparse(), eighths):
        torch.save({"model": weights | {"conv1.weight": other}}, tmp_path / "net.pth")
        with pytest.raises(UserError, match=text):
            read_state_dicts(tmp_path / "net.pth")
    save_file(weights | {"conv1.weight": eighths}, tmp_path / "net.safetensors")
    with pytest.raises(UserError, match=text):
        read_state_dicts(tmp_path / "net.safetensors")
    for plain in (torch.float64, torch.float16, torch.bfloat16):
        save_file({name: value.to(plain) for name, value in weights.items()}, tmp_path / "net.safetensors")
        found = read_state_dicts(tmp_path / "net.safetensors")[""]["conv1.weight"]
        np.testing.assert_allclose(np.float32(found), weights["conv1.weight"].numpy(), atol=1e-2)


def test_whole_modules_and_numpy_arrays_are_refused_with_their_reason(tmp_path):
    network = network_of("resnet8", 10)
    contents = (network, {"model": network, "epoch": 3}, [network])
    for content, new_format in itertools.product(contents, (True, False)):
        torch.save(content, tmp_path / "net.pth", _use_new_zipfile_serialization=new_format)
        with pytest.raises(UserError, match=r"is a whole module \(tests.torch_residual.ResNet\).*save its state_dict"):
            read_state_dicts(tmp_path / "net.pth")
    arrays = {name: value.numpy() for name, value in network.state_dict().items()}
    for content in (arrays, {"model": arrays}):
        torch.save(content, tmp_path / "net.pth")
        with pytest.raises(
            UserError, match=r"holds NumPy arrays, not tensors: save them by safetensors.numpy.save_file"
        ):
            read_state_dicts(tmp_path / "net.pth")


def test_the_reason_is_the_same_with_other_tensors_beside(tmp_path):
    """States of optimizers and generators are tensors, but no network."""
    network = network_of("resnet8", 10)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    network(torch.zeros(2, 3, 32, 32))[0].sum().backward()
    optimizer.step()
    arrays = {name: value.numpy() for name, value in network.state_dict().items()}
    meta = {name: value.to("meta") for name, value in network.state_dict().items()}
    nameless = "an optimizer's state only, and no weights by the names of layers, such as conv1.weight"
    contents = [
        ({"net": network}, r"is a whole module \(tests.torch_residual.ResNet\)"),
        ({"state_dict": arrays}, "holds NumPy arrays, not tensors"),
        ({"state_dict": meta}, "holds tensors without values, such as conv1.weight"),
        ({"epoch": 3}, f"holds {nameless}"),
    ]
    for content, text in contents:
        torch.save(content | {"optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}, tmp_path / "net.pth")
        with pytest.raises(UserError, match=text):
            read_state_dicts(tmp_path / "net.pth")
    for content, text in ((optimizer.state_dict(), nameless), (meta, "without values, such as conv1.weight")):
        torch.save(content, tmp_path / "net.pth")
        with pytest.raises(UserError, match=text):
            read_state_dicts(tmp_path / "net.pth")
