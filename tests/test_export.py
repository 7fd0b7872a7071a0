"""Members taken out of their runs: every format computes the logits of evaluation, and every mistake is one message."""

import errno
import io
import json
import re
import shlex
import subprocess
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
from PIL import Image

from orc_jax import checkpoint, export, pool, predict
from orc_jax.data.augment import normalize
from orc_jax.errors import UserError
from orc_jax.export import FORMATS, describe, export_member
from orc_jax.import_torch import convert, import_checkpoint
from orc_jax.member import Member, load_member
from orc_jax.models import LARGE
from orc_jax.onnx_graph import to_onnx
from orc_jax.torch_file import read_arrays
from tests import torch_models
from tests.helpers import assert_identical
from tests.test_backbones import photos
from tests.test_models import COUNTS

ROOT = Path(__file__).parent.parent
MEAN, STD = (0.5, 0.45, 0.4), (0.25, 0.2, 0.3)
CLASSES = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu")

# One network of each family; the rest run with `-m slow`.
QUICK = {
    "resnet8",
    "wrn_16_1",
    "vgg8",
    "ShuffleV1",
    "ShuffleV2",
    "densenet_40_12",
    "plane8",
    "resnet10",
    "mobilenet_v2",
}
CASES = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in COUNTS]


def network_of(name, classes=7):
    return torch_models.randomize(torch_models.MODELS[name](classes), 0)


def member_of(network, name, size):
    params, batch_stats, classes, shape = convert({k: v.numpy() for k, v in network.state_dict().items()}, name, size)
    return Member(f"0_{name}", name, 7, (params, batch_stats), classes, CLASSES, shape, MEAN, STD, None)


def evaluated(member, images):
    """The logits of uint8 images in an evaluation of the member's pool."""
    name = member.architecture
    single = pool.make_pool(
        [name], num_classes=member.num_classes, image_shape=member.image_shape, dtype="float32", axis_name=None
    )
    stacks = [{name: jax.tree.map(lambda x: x[None], values)} for values in member.weights]
    images = normalize(images, member.mean, member.std)
    return np.asarray(jax.jit(lambda *x: pool.predict(single, *x).logits)(*stacks, images)[0])


def by_pytorch(member, arrays, images):
    network = torch_models.MODELS[member.architecture](member.num_classes)
    network.load_state_dict(arrays, strict=True)
    network.eval()
    inputs = ((images / 255 - np.array(member.mean)) / np.array(member.std)).astype(np.float32)
    with torch.no_grad():
        return network(torch.tensor(inputs).permute(0, 3, 1, 2))[0].numpy()


LOADED = {
    "safetensors": safetensors.torch.load,
    "torch": lambda content: torch.load(io.BytesIO(content), weights_only=True),
}


def by_onnxruntime(file, images):
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"images": images})[0]


def assert_same_logits(actual, expected):
    assert actual.shape == expected.shape and actual.dtype == np.float32
    assert np.linalg.norm(actual - expected) < 1e-4 * np.linalg.norm(expected)


@pytest.mark.parametrize("name", CASES)
def test_every_format_computes_what_evaluation_does(name):
    size = 64 if name in LARGE else 32
    member, images = member_of(network_of(name), name, size), photos(size, len(CLASSES)).images
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
    images = np.concatenate([photos(32, 7).images] * 5)
    program = jax.export.deserialize(bytearray(export.to_stablehlo(member, {})))
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
    expected = {name: value.numpy() for name, value in network.state_dict().items()}
    counters = {name: np.zeros((), np.int64) for name in expected if name.endswith(".num_batches_tracked")}
    assert_identical(read_arrays(out), expected | counters)


def save_pool(workdir, names, **changes):
    """A run of tiny networks for 8x8 grey images, as far as a checkpoint of it goes; returns their arrays."""
    shape = (8, 8, 1)
    described = {"config": {"dataset": "toy"}, "members": names, "num_classes": 3, "class_names": ["a", "b", "c"]}
    described |= {"num_train": 90, "image_shape": list(shape), "mean": [0.4], "std": [0.2], "eval_crop": None}
    networks = pool.make_pool(names, num_classes=3, image_shape=shape, dtype="float32", axis_name=None)
    arrays = jax.device_get(pool.init(networks, 0))
    stacks = {name: {"params": arrays[0][name], "batch_stats": arrays[1][name]} for name in arrays[0]}
    with checkpoint.open_manager(workdir, create=True) as manager:
        for step, top1 in ((3, 0.9), (8, 0.5)):
            checkpoint.save(manager, step, {"stacks": stacks}, described, {checkpoint.SELECTED_BY: top1})
            checkpoint.finish(manager)
    checkpoint.write_description(workdir, described | changes)
    return [[pool.take_member(networks, values, i) for values in arrays] for i in range(len(names))]


def test_any_member_and_checkpoint_of_a_pool(tmp_path):
    arrays = save_pool(tmp_path / "run", ["tiny_a", "tiny_b", "tiny_a"])
    for which, position in {"target": 2, "0": 0, "1": 1, "2": 2, "0_tiny_a": 0, "1_tiny_b": 1, "2_tiny_a": 2}.items():
        member = load_member(tmp_path / "run", which, "best")
        assert member.name == f"{position}_{member.architecture}" and member.step == 3
        assert_identical(list(member.weights), arrays[position])
    assert load_member(tmp_path / "run", "target", "latest").step == 8
    assert load_member(tmp_path / "run", "target", "3").class_names == ("a", "b", "c")


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


def test_an_operation_that_is_not_translated_is_named():
    def cumulative(images):
        return jax.lax.cumsum(images.astype(np.float32)).sum((1, 2))

    with pytest.raises(UserError, match=r"^--format=onnx: .* not translated: cumsum$"):
        to_onnx(cumulative, (8, 8, 3), {"architecture": "x"})


MISTAKES = [
    ({"--member": "tiny_b"}, "--member='tiny_b' is not known. Did you mean 1_tiny_b"),
    ({"--member": "-1"}, "Accepted: target, 0, 1, 0_tiny_a, 1_tiny_b."),
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


def test_the_page_on_deployment_is_true(imported, tmp_path, monkeypatch, capsys):
    """Its commands run, and its snippets load what they wrote: those of programs without this project."""
    workdir, _ = imported
    page = (ROOT / "docs" / "deploy.md").read_text()
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (50, 70, 3), np.uint8)).resize((140, 100)).save("photo.jpg")
    for line in re.findall(r"(?m)^python -m .*$", page):
        words = shlex.split(line.replace("runs/cifar100_orc", str(workdir)))
        monkeypatch.setattr(sys, "argv", words[2:])
        {"orc_jax.export": export, "orc_jax.predict": predict}[words[2]].main()
    first, *snippets = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(snippets) == 4 and "def prepare" in first
    (tmp_path / "prepare.py").write_text(first)
    member = load_member(workdir, "target", "latest")
    image = member.image(Path("photo.jpg").read_bytes())
    expected = evaluated(member, image[None])
    for snippet in snippets:
        ours = "tests.torch_models" in snippet
        check = "import sys; import numpy; numpy.save('logits.npy', logits); assert 'orc_jax' not in sys.modules"
        paths = [str(tmp_path), *[str(ROOT)] * ours]
        code = f"import sys; sys.path[:0] = {paths}\n{snippet}\n{check}"
        done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert_same_logits(np.load("logits.npy"), expected)
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["classes"][0]["index"] == expected[0].argmax()


@pytest.mark.parametrize("crop", [None, 0.875])
@pytest.mark.parametrize("shape", [(50, 70), (70, 50), (8, 8)])
def test_the_page_prepares_images_as_evaluation_does(tmp_path, crop, shape):
    page = (ROOT / "docs" / "deploy.md").read_text()
    namespace = {}
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], namespace)
    rng = np.random.default_rng(0)
    for channels in (1, 3) if crop is None else (3,):
        member = Member("0_x", "x", 0, ({}, {}), 7, CLASSES, (8, 8, channels), MEAN, STD, crop)
        Image.fromarray(rng.integers(0, 256, (*shape, 3), np.uint8)).save(tmp_path / "x.png")
        ours = member.image((tmp_path / "x.png").read_bytes())
        about = describe(member, export.PROGRAM_INPUT)
        np.testing.assert_array_equal(namespace["prepare"](tmp_path / "x.png", about)[0], ours)
