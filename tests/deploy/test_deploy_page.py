"""docs/deploy.md: its commands run, and its code prepares images and loads files as it says."""

import importlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from orc_jax.deploy.export import PROGRAM_INPUT, describe
from orc_jax.deploy.import_torch import import_checkpoint
from orc_jax.deploy.member import Member, load_member
from orc_jax.models import MODELS
from tests.deploy.members import CLASSES, MEAN, STD, assert_same_logits, evaluated, network_of

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "deploy.md").read_text()


def test_the_page_is_true(tmp_path, monkeypatch, capsys):
    """Its commands run, and its snippets load what they wrote: those of programs without this project."""
    torch.save(network_of("resnet8", 10).state_dict(), tmp_path / "net.pth")
    workdir = tmp_path / "imported"
    import_checkpoint(tmp_path / "net.pth", "resnet8", workdir, mean=[], std=[])
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (50, 70, 3), np.uint8)).resize((140, 100)).save("photo.jpg")
    for line in re.findall(r"(?m)^python -m .*$", PAGE):
        words = shlex.split(line.replace("runs/cifar100_orc", str(workdir)))
        monkeypatch.setattr(sys, "argv", words[2:])
        importlib.import_module(words[2]).main()
    here, prepare, definition, *snippets = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(snippets) == 4 and "def prepare" in prepare and "class ResNet" in definition
    (tmp_path / "prepare.py").write_text(prepare)
    (tmp_path / "resnet.py").write_text(definition)
    member = load_member(workdir, "target", "latest")
    image = member.image(Path("photo.jpg").read_bytes())
    expected = evaluated(member, image[None])
    for snippet in snippets:
        check = "import sys; import numpy; numpy.save('logits.npy', logits); assert 'orc_jax' not in sys.modules"
        code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}]\n{snippet}\n{check}"
        done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert_same_logits(np.load("logits.npy"), expected)
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["classes"][0]["index"] == expected[0].argmax()
    names = {}
    exec(here.replace("runs/cifar100_orc", str(workdir)), names)
    assert_same_logits(names["logits"], expected)
    assert capsys.readouterr().out == f"{expected[0].argmax()}\n"  # imported weights have no names of classes


@pytest.mark.parametrize(("name", "classes"), [("resnet20", 10), ("resnet14x4", 7)])
def test_the_definition_of_the_page_is_that_of_the_networks(name, classes):
    namespace = {}
    exec(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[2], namespace)
    theirs = network_of(name, classes)
    network = namespace["ResNet"]({"architecture": name, "num_classes": classes, "input": {"channels": 3}})
    network.load_state_dict(theirs.state_dict(), strict=True)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(network.eval()(images), theirs.eval()(images)[0])


@pytest.mark.parametrize("crop", [None, 0.875])
@pytest.mark.parametrize("shape", [(50, 70), (70, 50), (8, 8)])
def test_the_page_prepares_images_as_evaluation_does(tmp_path, crop, shape):
    namespace = {}
    exec(re.search(r"```python\n(import numpy.*?)```", PAGE, re.DOTALL)[1], namespace)
    rng = np.random.default_rng(0)
    for channels in (1, 3) if crop is None else (3,):
        about = {"class_names": CLASSES, "image_shape": (8, 8, channels), "mean": MEAN, "std": STD, "crop": crop}
        member = Member("0_plane2", "plane2", MODELS["plane2"], 0, ({}, {}), 7, **about)
        Image.fromarray(rng.integers(0, 256, (*shape, 3), np.uint8)).save(tmp_path / "x.png")
        ours = member.image((tmp_path / "x.png").read_bytes())
        described = describe(member, PROGRAM_INPUT)
        np.testing.assert_array_equal(namespace["prepare"](tmp_path / "x.png", described)[0], ours)
        Image.fromarray(rng.integers(0, 5000, shape, np.uint16)).save(tmp_path / "x.png")
        for seen in (member, member._replace(pixel_range=(0, 4095))):
            described = describe(seen, PROGRAM_INPUT)
            ours = seen.image((tmp_path / "x.png").read_bytes())
            np.testing.assert_array_equal(namespace["prepare"](tmp_path / "x.png", described)[0], ours)
