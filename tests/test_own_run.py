"""A run of one's own networks and method, with a stage, options, roles and feedback samples: all it goes through.

Commands that know it by its files alone import what these name only if a person names it, too; nothing remembers it.
"""

import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from orc_jax import config as configs
from orc_jax import export, predict
from orc_jax.data.batches import batch_indices
from orc_jax.deploy.export import export_member
from orc_jax.deploy.member import classifier, load_member
from orc_jax.errors import UserError
from orc_jax.report import __main__ as report
from orc_jax.report import collect, figures
from orc_jax.report.write import write_report
from orc_jax.workdir import checkpoint, metrics, record
from tests import own_modules
from tests.helpers import evaluate, printed, train
from tests.report.reading import read

pytestmark = pytest.mark.usefixtures("toy_set", "mine")
METHODS = """
import functools

import jax.numpy as jnp

from orc_jax.losses import cross_entropy, distillation
from orc_jax.methods.base import Method, Share, Stage, pool_roles, scores
from orc_jax.methods.independent import independent
from orc_jax.roles import hand_back
from orc_jax.verbs import forward, learn


def lead(architectures, *, temperature=4.0, fraction=0.5, stage="independent"):
    '''The member with the lowest loss leads: the others learn from it. The first is trained before.'''

    def iterate(context, pool, batch):
        passed = forward(pool, context.normalize(batch.images))
        told = scores(context, passed.logits, batch.labels)
        leads = jnp.arange(pool.size) == jnp.argmin(told["loss"])
        leader = jnp.where(leads[:, None, None], passed.logits, 0.0).sum(0, keepdims=True)

        def loss(out):
            return cross_entropy(out.logits, batch.labels) + distillation(out.logits, leader, temperature)

        return learn(context, passed, loss), told | {"led": leads.astype(jnp.float32)}

    shares = (Share("led", "Leaders", "Who has led.", adds_up=True),)
    stages = (Stage("first", stage, (0,)),)
    handed = functools.partial(hand_back, fraction=fraction)
    roles = pool_roles(len(architectures), "chief", "hand")
    return Method(iterate, roles, ("loss", "accuracy", "led"), shares, stages=stages, hand_back=handed)


def plain(architectures):
    return independent(architectures)
"""
OWN = ("mine:Big", "mine:Net", "methods:lead")
NAMES = ("0_mine:Big", "1_mine:Net", "2_mine:Net")


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The modules, in the working directory; each test begins without having imported them."""
    with own_modules.lying_in(tmp_path, monkeypatch, mine=own_modules.NETWORKS, methods=METHODS):
        yield


@pytest.fixture
def own(config):
    config.teacher, config.student, config.assistants, config.num_networks = "mine:Big", "mine:Net", "copies", 3
    config.method, config.method_options = "methods:lead", "fraction=0.25,temperature=2.0"
    return config


@pytest.fixture
def run(trained, own, console):
    """The finished run of all tests here, seen by a process that has imported nothing."""
    workdir = trained.with_name("own")
    if not workdir.exists():
        train(own, workdir, console)
    own_modules.forget("mine", "methods")
    return workdir


def test_it_learns_by_its_options(run, own, toy):
    """A stage of another method gets none of them, and is the run that its folder says."""
    rows = metrics.read(run)
    assert [row["epoch"] for row in rows] == [1, 2]
    assert rows[-1]["train/loss/2_mine:Net"] < rows[0]["train/loss/2_mine:Net"]
    np.testing.assert_allclose(sum(rows[-1][f"train/led/{name}"] for name in NAMES), 1.0, rtol=1e-5)
    stage = record.require(run / "first")
    assert stage.architectures == ("mine:Big",)
    assert (stage.config["method"], stage.config["method_options"]) == ("independent", "")
    assert record.require(run).config["method_options"] == own.method_options
    method = configs.resolve(own).method
    assert method.hand_back.keywords == {"fraction": 0.25} and method.roles == ("chief", "hand", "target student")


def test_it_is_resumed_and_evaluated(run, own, console, tmp_path):
    workdir = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(workdir / checkpoint.CHECKPOINTS / "11")
    train(own, workdir, console)
    assert "methods:lead: restored step 5 of 11" in printed(console)
    assert (workdir / metrics.METRICS).read_bytes() == (run / metrics.METRICS).read_bytes()
    evaluate(own, workdir, "latest", console)
    result = json.loads((workdir / "evaluation_11.json").read_text())
    last = metrics.read(workdir)[-1]
    assert [row["name"] for row in result["members"]] == list(NAMES)
    assert [row["top1"] for row in result["members"]] == [last[f"eval/top1/{name}"] for name in NAMES]
    own.method_options = "fraction=0.5,temperature=2.0"
    with pytest.raises(UserError, match=r"config.method_options: 'fraction=0.25,temperature=2.0' there, 'fraction=0.5"):
        train(own, workdir, console)


def test_its_options_may_be_fields(own, console, tmp_path):
    """Of its own group, over which `method_options` holds; they are recorded, and compared when the run goes on."""
    own.lead, own.other = {"temperature": 3.0, "fraction": 0.5}, {"of": "another method"}
    own.num_epochs = own.pretrain_epochs = 1
    own.method_options = "fraction=0.25"
    assert configs.resolve(own).method.hand_back.keywords == {"fraction": 0.25}
    workdir = tmp_path / "run"
    train(own, workdir, console)
    there = record.require(workdir)
    assert there.config["lead"] == there.fields.lead.to_dict() == own.lead.to_dict() and "other" not in there.config
    assert "lead" not in record.require(workdir / "first").config  # which is a run of another method
    train(own, workdir, console)
    assert "restored step 5 of 5" in printed(console)
    assert configs.reopen(there.fields, OWN).config.lead.temperature == 3.0
    own.lead.temperature = 4.0
    with pytest.raises(UserError, match=r"config.lead.temperature: 3.0 there, 4.0 here"):
        train(own, workdir, console)
    own.lead = {"temprature": 4.0}
    with pytest.raises(UserError, match=r"cannot be called as method\(architectures.*'temprature'"):
        train(own, workdir, console)


@pytest.mark.parametrize(
    ("stage", "options", "metric"),
    [("methods:lead", "stage='methods:lead',fraction=0.25", "led"), ("methods:plain", "", "accuracy")],
)
def test_a_stage_may_be_of_a_method_of_ones_own(own, console, tmp_path, stage, options, metric):
    """Of the run's own method it has its options, of another one none."""
    own.method_options = f"stage={stage!r},fraction=0.25"
    own.num_epochs = own.pretrain_epochs = 1
    train(own, tmp_path / "run", console)
    there = record.require(tmp_path / "run" / "first")
    assert (there.config["method"], there.config["method_options"]) == (stage, options)
    assert f"train/{metric}/0_mine:Big" in metrics.read(tmp_path / "run" / "first")[-1]


def test_a_stage_that_cannot_be_trained_is_told_before(own, console, tmp_path):
    for stage, text in (
        ("orc", "less than the 0 networks of the student group"),
        ("orcc", "config.method='orcc' is not known. Did you mean orc"),
        ("methods:none", "stage 'first'='methods:none': methods has no 'none'"),
    ):
        own.method_options = f"stage={stage!r}"
        with pytest.raises(UserError, match=text):
            train(own, tmp_path / "run", console)
    assert not (tmp_path / "run").exists()


def refused_without(call, own):
    """The call with `own` works. Without it, before and after, nothing is imported and the person is told."""
    for what in ((), own, ()):
        if what:
            result = call(what)
            own_modules.forget("mine", "methods")
            continue
        with pytest.raises(UserError, match=r"stands in a file; it is imported only if you name it too: --own m"):
            call(what)
        assert not {"mine", "methods"} & sys.modules.keys()
    return result


def test_a_member_is_taken_home_only_with_trust(run, tmp_path, toy):
    """Its method does not matter there."""
    member = refused_without(lambda own: load_member(run, "0", "latest", own), OWN[:2])
    assert member.model.__name__ == "Big" and member.name == "0_mine:Big"
    logits = np.asarray(classifier(member)(member.weights, toy.test.images))
    top1 = (logits.argmax(-1) == toy.test.labels).mean()
    np.testing.assert_allclose(top1, metrics.read(run)[-1]["eval/top1/0_mine:Big"], rtol=1e-6)
    for kind in ("safetensors", "onnx"):
        out = iter(range(9))
        about = refused_without(
            lambda own, kind=kind, out=out: export_member(
                run, "target", "best", kind, tmp_path / f"{kind}{next(out)}", own
            ),
            OWN[:2],
        )
        assert about["architecture"] == "mine:Net" and (tmp_path / f"{kind}1").exists()
        assert not (tmp_path / f"{kind}0").exists() and not (tmp_path / f"{kind}2").exists()
    with pytest.raises(UserError, match="network='mine:Net' stands in a file"):
        load_member(run, "2", "latest", ["mine:Big"])
    member = load_member(run, "0", "latest", ["mine:Big"])  # the pool has others as well, which are not needed
    np.testing.assert_array_equal(np.asarray(classifier(member)(member.weights, toy.test.images)), logits)


def test_the_commands_ask_for_trust(run, tmp_path, monkeypatch, capsys, toy):
    Image.fromarray(toy.test.images[0, ..., 0]).save(tmp_path / "x.png")
    own = [f"--own={name}" for name in OWN]
    commands = {
        export: ["--workdir", str(run), "--format", "safetensors", "--out", str(tmp_path / "x{}")],
        predict: ["--workdir", str(run), str(tmp_path / "x.png")],
        report: ["--workdir", str(run), "--out", str(tmp_path / "report"), "--max_examples", "4"],
    }
    monkeypatch.setattr(figures, "as_png", lambda figure: b"")
    monkeypatch.setattr(figures, "as_svg", lambda figure, name, description: f'<svg id="{name}"></svg>')
    for command, arguments in commands.items():
        for i, what in enumerate(([], own, [])):
            monkeypatch.setattr(sys, "argv", ["x", *(argument.format(i) for argument in arguments), *what])
            if what:
                command.main()
                assert capsys.readouterr().out
                own_modules.forget("mine", "methods")
                continue
            with pytest.raises(SystemExit) as caught:
                command.main()
            error = capsys.readouterr().err
            assert caught.value.code == 2 and error.count("\n") == 1 and "name it too: --own mine:" in error
            assert not {"mine", "methods"} & sys.modules.keys()


def test_the_report_shows_what_the_method_has(run, own, tmp_path, monkeypatch, toy):
    """Its roles, and the samples that its own function hands back; the report knows no method by name."""
    monkeypatch.setattr(figures, "as_png", lambda figure: b"")
    monkeypatch.setattr(figures, "as_svg", lambda figure, name, description: f'<svg id="{name}"></svg>')

    def write(own):
        return write_report([run], tmp_path / "report", "5", 100, pytest.fail, own=own)

    with pytest.raises(UserError, match=r"config.method='methods:lead' stands in a file"):
        write(OWN[:2])
    own_modules.forget("mine")
    shown = read(refused_without(write, OWN))
    assert {"Roles over time", "Feedback samples", "Pivot teacher on hard samples"} <= set(shown.titles)
    assert "Who has led. From train/led of the log." in shown.text
    means = [np.mean([row[f"train/led/{name}"] for row in metrics.read(run)]) for name in NAMES]
    assert all(f"{100 * mean:.1f} %" in shown.cells for mean in means[1:])
    logged = collect.read(run, "run", OWN)
    networks = collect.restore(logged, toy, "5")
    handed = collect.feedback(networks)
    assert handed.students == (1, 2) and handed.shares.sum() == 4  # a quarter of 16
    assert [str(n) for n in handed.shares] == [shown.cells[shown.cells.index(f"{x:.4f}") + 1] for x in handed.losses]
    np.testing.assert_array_equal(handed.images, toy.train.images[batch_indices(own.seed, 5, 16, 90)])
    rows = metrics.read(run / "first")
    assert f"first/ has come to epoch {rows[-1]['epoch']}" in read_without_log(run, tmp_path).text


def read_without_log(run, tmp_path):
    """The report of the run while its stage alone is finished."""
    workdir = shutil.copytree(run, tmp_path / "early")
    shutil.rmtree(workdir / checkpoint.CHECKPOINTS)
    (workdir / metrics.METRICS).write_text("")
    return read(write_report([workdir], None, "latest", 100, pytest.fail, own=OWN))
