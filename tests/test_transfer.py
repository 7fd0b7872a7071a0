"""Members that start from weights, and parameters that do not learn."""

import importlib
import re
import shlex
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image

from orc_jax import main, pretrained, step, training, transfer
from orc_jax.compare.runs import pivot_run
from orc_jax.compare.variants import of_method
from orc_jax.config import default, resolve
from orc_jax.describe import describe
from orc_jax.errors import UserError
from orc_jax.flagging import parse
from orc_jax.optim import KINDS, optimizer, update
from orc_jax.pool import Pool
from orc_jax.testing import Stepper, assert_identical, build_run, run_steps
from orc_jax.transfer import Weights
from orc_jax.workdir import record
from tests.deploy.members import network_of, save_pool
from tests.helpers import final_state, printed, train

ROOT = Path(__file__).parent.parent
SAMPLE = ROOT.parent / "shared" / "data" / "imagenet_sample"
pytestmark = pytest.mark.usefixtures("toy_set")


def test_who_starts_where():
    of = transfer.sources("teacher=a, student=b/c:2,assistants=d:0_resnet20", 4)
    assistant = Weights(Path("d"), "0_resnet20")
    assert of == {0: Weights(Path("a")), 1: assistant, 2: assistant, 3: Weights(Path("b/c"), "2")}
    assert transfer.sources("student=a:b", 1) == {0: Weights(Path("a:b"))}, "a colon may be part of a folder's name"
    # What a run of some of the members is given: the first is its teacher, the last its student.
    text = "teacher=a,student=c:2,assistants=d"
    assert transfer.of_part(text, 4, [0]) == "student=a"
    assert transfer.of_part(text, 4, [0, 1, 2]) == "teacher=a,assistants=d,student=d"
    assert transfer.of_part(text, 4, [1, 3]) == "teacher=d,student=c:2"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"init": "weights"}, r"config.init='weights': must be role=folder"),
        ({"init": "student=a,student=b"}, r"config.init='student=b': must be role=folder or .*, each once"),
        ({"init": "assistants=a", "num_networks": 2}, r"of a role in this pool: teacher, student"),
        ({"init": "student=s3://a/b"}, r"config.init=s3://a/b: is not on this machine"),
        ({"classifier_lr_multiplier": 0.0}, r"config.classifier_lr_multiplier=0.0: must be greater than 0"),
        (
            {"init": "teacher=a", "method": "pcl", "teacher": "tiny_b", "assistants": "copies"},
            r"config.init='teacher=a': must be one that names student",
        ),
    ],
)
def test_fields_that_are_refused(config, fields, message):
    config.update(fields)
    with pytest.raises(UserError, match=message):
        resolve(config, 1)


@pytest.mark.parametrize(
    ("frozen", "message"),
    [
        ("conv9", r"tiny_a or tiny_b has no part 'conv9'; accepted is backbone .* parts: .*conv1"),
        ("tiny_b=conv9", r"config.frozen='tiny_b=conv9': tiny_b has no part"),
        ("tiny=conv1", r"config.frozen='tiny' is not known. Did you mean tiny_"),
        ("backbone,fc", r"nothing is left of tiny_a that would learn"),
    ],
)
def test_parts_that_are_refused(config, console, tmp_path, frozen, message):
    config.frozen, config.method = frozen, "independent"
    with pytest.raises(UserError, match=message):
        train(config, tmp_path / "run", console)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_parameters_stay_and_the_others_do_not_notice(kind):
    """Bit for bit, whatever their gradients are; the optimizer keeps nothing of them."""
    config = default()
    config.optimizer, config.weight_decay = kind, 0.1
    keys = jax.random.split(jax.random.key(0), 3)
    params = {name: jax.random.normal(key, (2, 4, 3)) for name, key in zip(("a", "b", "c"), keys, strict=True)}
    others = {name: x for name, x in params.items() if name != "b"}
    whole, part = optimizer(config, frozen={"b"}), optimizer(config)
    now, state, expected, kept = params, jax.vmap(whole.init)(params), others, jax.vmap(part.init)(others)
    assert len(jax.tree.leaves(state)) == len(jax.tree.leaves(kept))
    for i in range(2):
        grads = {name: jnp.sin(x + i) for name, x in params.items()}
        now, state = update(whole, now, state, grads | {"b": grads["b"] * jnp.inf}, jnp.float32(0.1))
        of_others = {name: grads[name] for name in others}
        expected, kept = update(part, expected, kept, of_others, jnp.float32(0.1))
    assert np.array_equal(now["b"], params["b"]) and now.keys() == params.keys()
    assert_identical({name: now[name] for name in others}, expected)
    assert not np.array_equal(now["a"], params["a"])


def test_a_step_of_frozen_parts(config, toy):
    """The norm that is clipped is that of what learns, and a classifier has a rate of its own; others learn all."""
    config.method, config.momentum, config.weight_decay = "independent", 0.0, 0.0
    config.num_networks, config.assistants, config.clip_norm = 2, "", 1e-3
    config.frozen, config.classifier_lr_multiplier = "tiny_b=backbone,tiny_a=conv1", 2.0
    stepper = Stepper(build_run(config, toy))
    start = stepper.init()
    end = run_steps(stepper, 1, start)
    norms = []
    for name, still in (("tiny_a", {"conv1"}), ("tiny_b", {"conv1", "bn1", "conv2"})):
        old, new = start.stacks[name].params, end.stacks[name].params
        assert {key.partition(".")[0] for key in old if np.array_equal(old[key], new[key])} == still
        gradients = {key: (old[key] - new[key]) / (2.0 if key.startswith("fc") else 1.0) for key in old}
        norms.append(float(np.sqrt(sum(np.square(x).sum() for x in gradients.values()))))
        moved = [
            not np.array_equal(x, end.stacks[name].batch_stats[key])
            for key, x in start.stacks[name].batch_stats.items()
        ]
        assert all(moved), "running statistics follow the images"
    np.testing.assert_allclose(norms, config.learning_rate * config.clip_norm, rtol=1e-2)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """A folder with a trained pool for the toy set's images, and a place for it."""
    return tmp_path_factory.mktemp("pool") / "run"


@pytest.fixture
def weights(pool):
    """The arrays of its members: tiny_a, tiny_b, tiny_b."""
    return save_pool(
        pool, ["tiny_a", "tiny_b", "tiny_b"], mean=(0.35,), std=(0.25,), class_names=("bottom", "top", "middle")
    )


def started(run):
    """The initial state of a run, with the weights that it starts from."""
    return step.init_state(run.setup, run.method, run.config.seed, pretrained.load_starts(run))


def test_members_start_from_weights(config, toy, pool, weights):
    """Each from the first of its architecture that no other has taken, or the one that is named."""
    config.method, config.init = "independent", f"teacher={pool},assistants={pool},student={pool}:1_tiny_b"
    run = build_run(config, toy, 4)
    members = Pool(spec=run.spec, stacks=started(run).stacks)  # tiny_a, tiny_b, tiny_a, tiny_b
    for member, number in enumerate((0, 1, 0, 1)):
        params, batch_stats = weights[number]
        ours = members.member(member)
        assert_identical(ours.batch_stats, batch_stats)
        for name, x in params.items():  # outputs in the order of the classes here: top, middle, bottom
            np.testing.assert_array_equal(ours.params[name], x[..., [1, 2, 0]] if name.startswith("fc") else x)
    lines = pretrained.about_starts(run, [])
    assert lines[0] == f"note: 0_tiny_a starts from 0_tiny_a of {pool}"
    assert lines[2] == f"note: 2_tiny_a starts from 0_tiny_a of {pool}, with all weights of 0_tiny_a"
    assert "in another order there" in lines[4] and len(lines) == 5


def test_the_classifier_is_new_where_the_number_of_classes_differs(config, toy, pool, weights):
    config.method, config.init = "independent", f"student={pool}:2"
    run = build_run(config, toy._replace(class_names=(*toy.class_names, "none")), 4)
    state, fresh = started(run).stacks["tiny_b"], step.init_stacks(run.setup, run.method, 0)["tiny_b"]
    for name, x in state.params.items():
        assert np.array_equal(x[0], fresh.params[name][0]), "the assistant of the same architecture is as it was"
        new = name.startswith("fc")
        assert np.array_equal(x[1], fresh.params[name][1] if new else weights[2][0][name]), name
    (line,) = pretrained.about_starts(run, [])
    assert line.endswith(f"2_tiny_b of {pool}, its classifier is new: for 4 classes, where there were 3")


def test_what_holds_no_such_weights(config, toy, pool, weights, tmp_path):
    config.method = "independent"
    for text, message in (
        ("teacher=nowhere", "nowhere holds no run with a checkpoint"),
        (f"student={pool}:0", "needed is a trained tiny_b, and 0 is none; its pool is 0_tiny_a, 1_tiny_b, 2_tiny_b"),
    ):
        config.init = text
        with pytest.raises(UserError, match=message):
            pretrained.plan(build_run(config, toy), tmp_path)
    config.init = f"student={pool}"
    with pytest.raises(UserError, match="normalised with mean, std"):
        pretrained.plan(build_run(config, toy._replace(mean=(0.9,))), tmp_path)


def test_a_pivot_teacher_starts_its_training_from_weights(config, console, toy, pool, weights, tmp_path):
    """At this learning rate weights stay what they were. Once the run is under way the weights need not be there."""
    folder = shutil.copytree(pool, tmp_path / "weights")
    config.learning_rate, config.num_networks, config.assistants, config.log_to = 1e-30, 2, "", ""
    config.method, config.init = "kd", f"teacher={folder},student={folder}:2"
    describe(resolve(config), tmp_path / "run", console)
    assert f"0_tiny_a starts from 0_tiny_a of {folder} note: the classes" in printed(console)
    train(config, tmp_path / "run", console)
    for where, name, number in (("run/pivot", "tiny_a", 0), ("run", "tiny_a", 0), ("run", "tiny_b", 2)):
        params = final_state(tmp_path / where, toy).stacks[name].params
        np.testing.assert_array_equal(params["conv1.kernel"][0], weights[number][0]["conv1.kernel"])
    assert record.require(tmp_path / "run" / "pivot").config["init"] == f"student={folder}"
    shutil.rmtree(folder)
    train(config, tmp_path / "run", console)
    config.init = ""
    with pytest.raises(UserError, match=r"config.init: 'teacher=.*there, '' here"):
        train(config, tmp_path / "run", console)


def test_in_a_comparison_each_pool_takes_what_it_has(config):
    config.init = "teacher=a,assistants=b,student=c"
    assert of_method(config, "independent").init == of_method(config, "pcl").init == "student=c"
    assert of_method(config, "orc").init == config.init
    assert pivot_run(resolve(config, 1)).config.init == "student=a"


def fine_tuning(folder, changes, monkeypatch, console):
    """Runs the commands of the documented recipe in `folder`, with what is made smaller; returns what was predicted."""
    text = (ROOT / "docs" / "usage.md").read_text().split("## Fine-tune")[1]
    block = re.search(r"```bash\n(.*?)```", text, re.DOTALL)[1]
    assert block.count("\n") == 5
    for large, small in changes.items():
        assert large in block, large
        block = block.replace(large, small)
    monkeypatch.chdir(folder)
    for line in re.sub(r"\\\n", "", block).splitlines():
        words = shlex.split(line)[2:]
        monkeypatch.setattr(sys, "argv", words)
        if words[0] == "orc_jax.main":
            given = parse(words, main.FLAGS, "")
            training.train(resolve(given.config), Path(main.WORKDIR.value), console)
        else:
            importlib.import_module(words[0]).main()


@pytest.mark.parametrize(
    "of_imagenet", [False, pytest.param(True, marks=pytest.mark.skipif(not SAMPLE.is_dir(), reason="needs the sample"))]
)
def test_weights_are_fine_tuned_on_a_folder_of_ones_own(of_imagenet, tmp_path, monkeypatch, console, capsys):
    """As usage.md has it; the network is a small one, and knows ten classes."""
    torch.save(network_of("plane2", 10).state_dict(), tmp_path / "resnet18.pth")
    rng = np.random.default_rng(0)
    photos = iter(sorted(SAMPLE.glob("train/*/*.JPEG")))
    for split, count in (("train", 8), ("val", 4)):
        for channel, name in enumerate(("blue", "green", "red")):
            (tmp_path / "photos" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 100, (40, 40, 3), dtype=np.uint8)
                pixels[..., channel] += 120
                image = Image.open(next(photos)) if of_imagenet else Image.fromarray(pixels)
                image.convert("RGB").save(tmp_path / "photos" / split / name / f"{i}.png")
    Image.fromarray(pixels).save(tmp_path / "new.jpg")
    small = {"--model resnet18": "--model plane2 --image_size 32 --mean 0.485 0.456 0.406 --std 0.229 0.224 0.225"}
    small["configs/folder.py "] = f"{ROOT}/configs/folder.py:32 --config.stream.num_workers=0 --config.log_to= "
    small["--config.num_epochs=20"] = "--config.num_epochs=2 --config.batch_size=8 --config.student=plane2"
    fine_tuning(tmp_path, small, monkeypatch, console)
    assert "its classifier is new: for 3 classes, where there were 10" in printed(console)
    assert record.require(tmp_path / "runs" / "tuned").class_names == ("blue", "green", "red")
    assert re.search(r"new\.jpg\n *[\d.]+%  (blue|green|red)", capsys.readouterr().out)
