"""Which output is which class, of weights that do not say so."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from orc_jax import evaluate
from orc_jax.commands import read_class_names
from orc_jax.config import default, resolve
from orc_jax.deploy.import_torch import import_checkpoint
from orc_jax.deploy.member import load_member
from orc_jax.errors import UserError
from orc_jax.testing import assert_identical
from tests.deploy.members import network_of

NUMBERS = [str(i) for i in range(12)]
AS_TEXT = sorted(NUMBERS)  # as torchvision's ImageFolder has them


def imported(tmp_path, name, class_names=()):
    torch.save(network_of("resnet8", 12).state_dict(), tmp_path / "net.pth")
    options = {"mean": [0.5] * 3, "std": [0.25] * 3, "class_names": class_names}
    return import_checkpoint(tmp_path / "net.pth", "resnet8", tmp_path / name, **options)


def test_names_are_given_by_themselves_or_in_a_file(tmp_path):
    assert read_class_names([]) == () and read_class_names(["a", "b c"]) == ("a", "b c")
    (tmp_path / "names.txt").write_text("ant\n  big cat \n\ndog\n")
    assert read_class_names([str(tmp_path / "names.txt")]) == ("ant", "big cat", "dog")
    with pytest.raises(UserError, match="--class_names: 'a' comes twice"):
        read_class_names(["a", "b", "a"])
    (tmp_path / "names.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"--class_names=.*names.txt: cannot be read as a file of names"):
        read_class_names([str(tmp_path / "names.txt")])


def test_outputs_are_put_in_the_order_of_their_numbers(tmp_path):
    """And of classes that are called otherwise not."""
    imported(tmp_path, "plain")
    imported(tmp_path, "others", [*"dcba987654321"][:12])
    plain, others = (load_member(tmp_path / name, "0", "latest") for name in ("plain", "others"))
    assert_identical(plain.weights, others.weights)
    assert imported(tmp_path, "numbers", AS_TEXT).class_names == tuple(NUMBERS)
    params = load_member(tmp_path / "numbers", "0", "latest").weights[0]
    order = [AS_TEXT.index(name) for name in NUMBERS]
    for name, value in plain.weights[0].items():
        np.testing.assert_array_equal(params[name], value[..., order] if name.startswith("fc") else value)


def test_another_number_of_names_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"has 12 classes, but --class_names names 2"):
        imported(tmp_path, "out", ["a", "b"])
    assert not (tmp_path / "out").exists()


def test_numbered_folders_are_evaluated_rightly(tmp_path, console):
    """A network that was trained in the order of text, on folders 0 to 11: by names right, without them it is said."""
    network = network_of("resnet8", 12).eval()
    rng = np.random.default_rng(0)
    right = 0
    for i in range(24):
        image = rng.integers(0, 256, (32, 32, 3), np.uint8)
        inputs = torch.tensor((image / 255 - 0.5) / 0.25, dtype=torch.float32).permute(2, 0, 1)[None]
        with torch.no_grad():
            label = AS_TEXT[int(network(inputs)[0].argmax())] if i % 4 else NUMBERS[i % 12]
            right += label == AS_TEXT[int(network(inputs)[0].argmax())]
        for split in ("train", "val"):
            (tmp_path / "photos" / split / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "photos" / "val" / label / f"{i}.png")
    for name in NUMBERS:
        (tmp_path / "photos" / "train" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "photos" / "train" / name / "0.png")
    config = default()
    config.dataset, config.data_dir, config.eval_split = "folder", str(tmp_path / "photos"), "val"
    config.method, config.student, config.num_networks, config.eval_batch_size = "independent", "resnet8", 1, 8
    config.stream.image_size, config.stream.eval_crop, config.stream.num_workers = 32, 1.0, 0
    assert imported(tmp_path, "named", AS_TEXT).class_names == tuple(NUMBERS)
    evaluate.evaluate_checkpoint(resolve(config), tmp_path / "named", "latest", console)
    result = json.loads((tmp_path / "named" / "evaluation_0.json").read_text())
    assert np.isclose(result["target_student"]["top1"], right / 24) and right >= 18
    imported(tmp_path, "unnamed")
    with console.capture() as capture:
        evaluate.evaluate_checkpoint(resolve(config), tmp_path / "unnamed", "latest", console)
    said = " ".join(capture.get().split())
    assert "order of the data set: 0, 1, 2, 3 ..." in said and "of text, 0, 1, 10, 11 ...: import it again with" in said
