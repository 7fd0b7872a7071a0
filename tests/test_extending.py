"""What a person brings along: the examples of docs/extending.md as they stand, and what is wrong with others."""

import argparse
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from orc_jax import config as configs
from orc_jax import logs, member, models, own, train
from orc_jax.config import validate
from orc_jax.data import sets
from orc_jax.describe import describe
from orc_jax.errors import UserError
from orc_jax.pool import make_network

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "extending.md").read_text()
FLAG = re.compile(r"--config\.([\w.]+)=(\S+)")


@pytest.fixture
def own_modules(tmp_path, monkeypatch):
    """The modules of the page, in the working directory; they and what they register are forgotten afterwards."""
    for name, code in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.DOTALL):
        (tmp_path / name).write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(own, "_allowed", set())
    known = dict(models.MODELS)
    yield tmp_path
    for name in ("my_network", "my_method", "wrong"):  # TFDS registers a builder once and for all
        sys.modules.pop(name, None)
    for name in models.MODELS.keys() - known.keys():
        del models.MODELS[name]


def flags_of(section):
    """The flags that a section of the page gives."""
    text = PAGE.split(f"## {section}\n")[1].split("\n## ")[0]
    return dict(FLAG.findall(text.replace("`", " ")))


def set_flags(config, flags):
    for name, value in flags.items():
        group, _, field = name.rpartition(".")
        target = config[group] if group else config
        target[field] = type(target[field])(value)


def test_own_network_and_method(config, console, tmp_path, toy_set, own_modules):
    set_flags(config, flags_of("Own network") | flags_of("Own method"))
    assert config.method_options == "temperature=2.0,weight=0.5"
    config.num_networks, config.assistants, config.num_epochs = 3, "copies", 4
    train.train(config, tmp_path / "run", console)
    last = logs.read_rows(tmp_path / "run")[-1]
    assert last["train/loss/2_my_network:Small"] < np.log(3)
    train.train(config, tmp_path / "run", console)  # it can be gone on with
    # Another process, that has only the run: what its files name is imported if it is named there, too.
    del models.MODELS["my_network:Small"]
    own._allowed.clear()
    with pytest.raises(UserError, match=r"network='my_network:Small' stands in a file; .* --own my_network:Small"):
        member.load_member(tmp_path / "run", "target", "latest")
    parser = argparse.ArgumentParser()
    member.add_own_argument(parser)
    parser.parse_args(["--own=my_network:Small", "--own=my_method:mean_teacher"])
    assert member.load_member(tmp_path / "run", "target", "latest").architecture == "my_network:Small"


def test_own_folder_and_builder(config, console, tmp_path, own_modules):
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("dark", "light"):
            (tmp_path / "pictures" / split / name).mkdir(parents=True)
            for i in range(8):
                pixels = rng.integers(0, 100, (70, 80, 3), dtype=np.uint8) + 150 * (name == "light")
                Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "pictures" / split / name / f"{i}.jpg")
    config.num_epochs, config.pretrain_epochs, config.method = 1, 0, "independent"
    flags = flags_of("Own data")
    assert flags.pop("dataset") == "my_data:Shapes"
    set_flags(config, flags | {"dataset": "folder"})
    config.stream.num_workers = 0
    train.train(config, tmp_path / "run", console)
    assert "eval/top1/ensemble" in logs.read_rows(tmp_path / "run")[-1]

    set_flags(config, {"dataset": "my_data:Shapes", "data_dir": "prepared", "eval_split": "test"})
    config.num_epochs, config.learning_rate = 8, 0.2
    train.train(config, tmp_path / "builder", console)
    assert logs.read_rows(tmp_path / "builder")[-1]["eval/top1/ensemble"] > 0.9


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"student": "my_networks:Small"}, r"config.student='my_networks:Small': the module .* cannot be imported: No"),
        ({"student": "my_network:Smal"}, r"config.student='my_network:Smal': my_network has no 'Smal'; it has .*Small"),
        ({"student": "wrong:Network"}, r"wrong:Network cannot be built as Model\(num_classes, \*, image_shape"),
        ({"student": "wrong:Logits"}, r"wrong:Logits must return \(logits \[batch, 3\] of float32, features"),
        ({"assistants": "my_network:Smal"}, "config.assistants='my_network:Smal': my_network has no"),
        ({"method": "my_method:mean_teache"}, "config.method='my_method:mean_teache': my_method has no"),
        ({"method": "my_method:mean_teacher", "method_options": "temp=1"}, r"with \{'temp': 1\}: .*'temp'"),
        (
            {"method": "my_method:mean_teacher", "method_options": "weight"},
            "config.method_options='weight': must be na",
        ),
        ({"method": "my_method:mean_teacher", "method_options": "weight=f()"}, r"config.method_options='weight=f\(\)'"),
        (
            {"method_options": "weight=1"},
            "config.method_options='weight=1': must be empty, but for a method of your own",
        ),
        ({"dataset": "my_data:Shape"}, "config.dataset='my_data:Shape': my_data has no 'Shape'"),
        ({"dataset": "my_network:Small"}, "config.dataset='my_network:Small' is not a builder of TFDS"),
    ],
)
def test_mistakes(fields, text, config, console, tmp_path, toy_set, own_modules):
    (own_modules / "wrong.py").write_text(
        "from flax import nnx\n"
        "class Network(nnx.Module):\n    def __init__(self, classes): pass\n"
        "class Logits(nnx.Module):\n    def __init__(self, num_classes, **rest): pass\n"
        "    def __call__(self, images): return images\n"
    )
    config.num_networks, config.assistants, config.pretrain_epochs = 3, "tiny_b", 0
    if fields.get("student", "").startswith("wrong"):
        config.method, config.num_networks = "independent", 1
    config.update(fields)
    with pytest.raises(UserError, match=text):
        train.train(config, tmp_path / "run", console)
    assert not (tmp_path / "run").exists()


def test_what_a_file_names_is_not_imported(own_modules, config):
    for field, call in (
        ("network", lambda: make_network("my_network:Small", 3, (8, 8, 1), "float32", None)),
        ("config.method", lambda: configs.build_method(config, ["tiny_a"])),
        ("config.dataset", lambda: sets.load(config, print)),
    ):
        config.method, config.dataset = "my_method:mean_teacher", "my_network:Small"
        with pytest.raises(UserError, match=f"{field}='my_.*' stands in a file; it is imported only if you name it"):
            call()
    assert "my_network" not in sys.modules and "my_method" not in sys.modules
    assert own.options("x", "a=1, b='c', d=(0.5, None)") == {"a": 1, "b": "c", "d": (0.5, None)}


def test_describe_tells_what_a_training_would_be(config, console, tmp_path, toy_set):
    describe(config, tmp_path / "run", console)
    console.file.flush()
    text = (tmp_path / "console.txt").read_text()
    assert not (tmp_path / "run").exists()
    for line in (
        "data           90 images of 3 classes, 8x8x1, in memory, 5.6 KiB",
        "steps          5 of 16 images, 1 epochs",  # of the pivot teacher
        "steps          11 of 16 images, 2 epochs",
        "learning rate  0.05, times 0.1 at steps 7, 8, 10",
        "devices        4 x cpu, activations in float32",
    ):
        assert line in text, text
    # By hand: conv1 1*6*9, bn1 2*6, conv2 6*8*9, linear 8*3+3.
    assert re.search(r"0_tiny_a +pivot teacher +525 ", text), text
    config.batch_size = 18
    with pytest.raises(UserError, match="not divisible"):
        describe(config, tmp_path / "run", console)
    validate(configs.default(), 1)


def test_the_notebook(monkeypatch):
    """Its cells, one after the other; the pool learns, as the outputs that are kept in it show."""
    cells = json.loads((ROOT / "docs" / "library.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert len(code) == 6 and all(len(source.splitlines()) < 17 for source in code)
    names = {}
    for source in code:
        exec(source, names)
    assert names["last"]["eval/top1/ensemble"] > 0.9
    assert names["state"].step == 20


def test_arrays_that_do_not_fit():
    images, labels = np.zeros((4, 8, 8, 1), np.uint8), np.zeros(4, int)
    for train_set, text in (
        ((images / 255, labels), r"train images of float64 \[4, 8, 8, 1\]: must be uint8"),
        ((images[..., 0], labels), r"train images of uint8 \[4, 8, 8\]: must be uint8 \[n, height"),
        ((images, labels[:3]), r"train labels of int64 \[3\]: must be 4 integers"),
        ((images, labels / 2), "train labels of float64"),
        ((images, labels + 2), "x has labels 2 to 2, but only 2 classes"),
        ((images[:, :4], labels), r"differ in shape: \[\[4, 8, 1\], \[8, 8, 1\]\]"),
    ):
        with pytest.raises(UserError, match=text):
            sets.from_arrays("x", train_set, (images, labels), ["a", "b"])
