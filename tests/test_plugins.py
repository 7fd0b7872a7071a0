"""What a person brings along: the examples of the docs as they stand, and what is wrong with others."""

import re
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from orc_jax import config as configs
from orc_jax import plugins
from orc_jax.errors import UserError
from orc_jax.run import abstract_state
from orc_jax.step import make_train_step
from orc_jax.testing import build_run
from orc_jax.workdir import metrics
from tests import own_modules
from tests.helpers import train

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "extending.md").read_text()
WAY = (ROOT / "docs" / "ways" / "extend.md").read_text()  # has the modules of a network and a method
WRONG = """
from flax import nnx


class Network(nnx.Module):
    def __init__(self, classes):
        pass


class Logits(nnx.Module):
    def __init__(self, num_classes, **rest):
        pass

    def __call__(self, images):
        return images


def nothing(architectures):
    pass
"""
FLAG = re.compile(r"--config\.([\w.]+)=(\S+)")


@pytest.fixture
def page_modules(tmp_path, monkeypatch):
    """The modules of the pages, in the working directory."""
    sources = dict(re.findall(r"```python\n# (my_\w+)\.py\n(.*?)```", PAGE + WAY, re.DOTALL))
    with own_modules.lying_in(tmp_path, monkeypatch, keep=["my_data"], **sources, wrong=WRONG):
        yield tmp_path  # TFDS registers a builder once and for all


def flags_of(section):
    """The flags that a section of the page gives."""
    text = PAGE.split(f"## {section}\n")[1].split("\n## ")[0]
    return dict(FLAG.findall(text.replace("`", " ")))


def set_flags(config, flags):
    for name, value in flags.items():
        group, _, field = name.rpartition(".")
        target = config[group] if group else config
        target[field] = type(target[field])(value)


def test_own_network_and_method(config, page_modules):
    """Which are trained by tests/test_ways.py."""
    set_flags(config, flags_of("Own network") | flags_of("Own method"))
    assert config.method_options == "temperature=2.0,weight=0.5"
    config.num_networks, config.assistants = 3, "copies"
    assert configs.resolve(config).method.roles == ("peer", "peer", "target student")


def test_own_offline_method(config, toy, page_modules):
    set_flags(config, flags_of("Own offline method"))
    assert config.method == "my_pair:hint"
    run = build_run(config, toy, axis_name=None)
    assert run.method.roles == ("teacher", "student", "student", "target student") and run.method.frozen == (0,)
    state = abstract_state(run)
    assert state.stacks["beside tiny_b"].params["to_teacher.kernel"].shape == (2, 8, 8)
    step, rows = make_train_step(run.setup, run.method.iterate), jax.ShapeDtypeStruct((16,), np.int32)
    after = jax.eval_shape(step, state, jax.tree.map(jax.typeof, toy.train), rows)
    assert jax.tree.map(lambda x: x.shape, after) == jax.tree.map(lambda x: x.shape, state)


def test_own_folder_and_builder(config, console, tmp_path, page_modules):
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
    train(config, tmp_path / "run", console)
    assert "eval/top1/ensemble" in metrics.read(tmp_path / "run")[-1]

    set_flags(config, {"dataset": "my_data:Shapes", "data_dir": "prepared", "eval_split": "test"})
    config.num_epochs, config.learning_rate = 8, 0.2
    train(config, tmp_path / "builder", console)
    assert metrics.read(tmp_path / "builder")[-1]["eval/top1/ensemble"] > 0.9


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"student": "my_networks:Small"}, r"config.student='my_networks:Small': the module .* cannot be imported: No"),
        ({"student": "my_network:Smal"}, r"config.student='my_network:Smal': my_network has no 'Smal'; it has .*Small"),
        ({"student": "wrong:Network"}, r"wrong:Network cannot be built as Model\(num_classes, \*, image_shape"),
        ({"student": "wrong:Logits"}, r"wrong:Logits must return \(logits \[batch, 3\] of float32, features"),
        ({"assistants": "my_network:Smal"}, "config.assistants='my_network:Smal': my_network has no"),
        ({"method": "my_method:mean_teache"}, "config.method='my_method:mean_teache': my_method has no"),
        ({"method": "wrong:nothing"}, "config.method='wrong:nothing' has returned a NoneType: must be a Method"),
        ({"method": "my_network:Small"}, r"config.method='my_network:Small' cannot be called as method\(architectures"),
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
def test_mistakes(fields, text, config, console, tmp_path, toy_set, page_modules):
    config.num_networks, config.assistants, config.pretrain_epochs = 3, "tiny_b", 0
    if fields.get("student", "").startswith("wrong"):
        config.method, config.num_networks = "independent", 1
    config.update(fields)
    with pytest.raises(UserError, match=text):
        train(config, tmp_path / "run", console)
    assert not (tmp_path / "run").exists()


def test_what_a_file_names_is_imported_only_if_a_person_names_it(config, page_modules):
    """Nothing remembers that it was: not even what `resolve` has imported may be named by a file alone."""
    config.teacher = config.student = "tiny_a"
    changes = {
        "teacher": {"teacher": "my_network:Small"},
        "student": {"student": "my_network:Small"},
        "assistants": {"assistants": "tiny_b, my_network:Small"},
        "lr_multipliers": {"lr_multipliers": "tiny_a=0.5,my_network:Small=2"},
        "method": {"method": "my_method:mean_teacher"},
        "dataset": {"dataset": "my_network:Small"},
    }
    for field, change in changes.items():
        one = config.copy_and_resolve_references()
        one.update(change)
        (name,) = set(re.findall(r"my_\w+:\w+", str(change)))
        for _ in range(2):
            text = f"config.{field}='{name}' stands in a file; it is imported only if you name it too: --own {name}"
            with pytest.raises(UserError, match=text):
                configs.reopen(one, trusted=["my_network:Other", "my_method"])
            assert name.partition(":")[0] not in sys.modules
            assert configs.reopen(one, trusted=[name]).plugins.keys() == {name}
            assert configs.resolve(one).plugins.keys() == {name}
            own_modules.forget("my_network", "my_method")


def test_names_are_looked_up(page_modules):
    """Those without a colon are left to others; a module may lie in a package, and the working directory may change."""
    assert plugins.load([("x", "resnet56"), ("x", "")]) == {}
    (page_modules / "deeper").mkdir()
    (page_modules / "deeper" / "__init__.py").write_text("")
    (page_modules / "deeper" / "things.py").write_text("thing, other = 3, 4")
    found = plugins.load([("x", "deeper.things:thing"), ("y", "deeper.things:other"), ("z", "deeper.things:thing")])
    assert found == {"deeper.things:thing": 3, "deeper.things:other": 4}
    own_modules.forget("deeper", "deeper.things")
    for name in (":thing", "deeper.things:"):
        with pytest.raises(UserError, match=f"x='{name}': "):
            plugins.load([("x", name)])


def test_models_that_a_file_names():
    net = object()
    known = plugins.models(["resnet8", "mine:Net", "resnet8"], {"mine:Net": net, "mine:Other": 3})
    assert known.keys() == {"resnet8", "mine:Net"} and known["mine:Net"] is net
    with pytest.raises(UserError, match=r"network='mine:Net' stands in a file; .* --own mine:Net"):
        plugins.models(["resnet8", "mine:Net"], {})
    with pytest.raises(UserError, match="network='resnet9' is not known here"):
        plugins.models(["resnet9"], {"mine:Net": net})


def test_options():
    assert plugins.options("x", "a=1, b='c', d=(0.5, None)") == {"a": 1, "b": "c", "d": (0.5, None)}
    assert plugins.options("x", "") == {}
    for text in ("1", "a=b", "a=1 b=2", "a=1)", "**{}", "a=__import__('os')", "a=1, a=2"):
        with pytest.raises(UserError, match=r"^x=.*: must be name=value,name=value: "):
            plugins.options("x", text)
