"""Runs from end to end: trained, interrupted, resumed, evaluated from the checkpoint, and refused."""

import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from orc_jax import checkpoint, config, evaluate, logs, pretrained, step, train
from orc_jax.config import validate
from orc_jax.data import sets
from orc_jax.errors import UserError
from orc_jax.run import build
from tests.helpers import assert_identical, final_state

pytestmark = pytest.mark.usefixtures("toy_set")


def test_what_a_run_leaves_behind(finished):
    description = json.loads((finished / "config.json").read_text())
    assert description["config"]["orc"]["temperature"] == 4.0
    assert description["members"] == ["tiny_a", "tiny_b", "tiny_a", "tiny_b"]
    assert description["versions"]["jax"] == jax.__version__
    rows = logs.read_rows(finished)
    assert [(row["step"], row["epoch"]) for row in rows] == [(5, 1), (11, 2)]  # 90 examples in batches of 16
    assert [row.keys() for row in logs.read_rows(finished, logs.TIMING)][1:] == [{"step", "images_per_second"}]
    last = rows[-1]
    promoted = [last[f"train/promoted/{name}"] for name in ("0_tiny_a", "1_tiny_b", "2_tiny_a", "3_tiny_b")]
    assert promoted[0] == 0 and np.isclose(sum(promoted), 1.0)
    assert {"learning_rate", "eval/top1/3_tiny_b", "eval/loss/ensemble"} <= set(last)
    assert list((finished / "tensorboard").glob("events*"))
    assert [row["epoch"] for row in logs.read_rows(finished / "pivot")] == [1]


def test_evaluation_restores_what_training_saved(finished, config, console, tmp_path, monkeypatch, toy):
    workdir = shutil.copytree(finished, tmp_path / "run")
    evaluate.evaluate_checkpoint(config, workdir, "latest", console)
    result = json.loads((workdir / "evaluation_11.json").read_text())
    last = logs.read_rows(workdir)[-1]
    for row in [*result["members"], {"name": "ensemble"} | result["ensemble"]]:
        for metric in ("top1", "top5", "loss"):
            np.testing.assert_allclose(row[metric], last[f"eval/{metric}/{row['name']}"], rtol=1e-5)
    assert result["target_student"]["name"] == "3_tiny_b" and result["examples"] == 30
    evaluate.evaluate_checkpoint(config, workdir, "5", console)
    evaluate.evaluate_checkpoint(config, workdir, "best", console)
    console.file.flush()
    assert "target student" in (tmp_path / "console.txt").read_text()
    # Normalised as in training, whatever the constants of the set at hand.
    other = toy._replace(mean=(0.9,), std=(0.1,))
    monkeypatch.setattr(sets, "load", lambda config, warn: other)
    evaluate.evaluate_checkpoint(config, workdir, "latest", console)
    assert json.loads((workdir / "evaluation_11.json").read_text()) == result
    with pytest.raises(UserError, match=r"--checkpoint='7'.*Accepted: latest, best, or one of \[5, 11\]"):
        evaluate.evaluate_checkpoint(config, workdir, "7", console)


def test_an_interrupted_run_ends_as_an_uninterrupted_one(finished, config, console, tmp_path, monkeypatch, toy):
    """Interrupted in its first and in its second epoch: identical bit for bit, and the pivot teacher trained once."""
    workdir = tmp_path / "run"
    write = logs.MetricsLog.write

    def interrupt_at(epoch):
        """Interrupts the run (not that of its pivot teacher) after the steps of an epoch, before its checkpoint."""

        def interrupted(log, row, timing):
            if row["epoch"] == epoch and log.workdir == workdir:
                raise KeyboardInterrupt
            write(log, row, timing)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(logs.MetricsLog, "write", interrupted)
            train.train(config, workdir, console)

    interrupt_at(1)
    assert logs.read_rows(workdir) == []
    pivot_files = {p: p.stat().st_mtime_ns for p in (workdir / "pivot" / "checkpoints").rglob("*") if p.is_file()}
    interrupt_at(2)
    assert [row["epoch"] for row in logs.read_rows(workdir)] == [1]
    train.train(config, workdir, console)
    assert pivot_files and pivot_files == {p: p.stat().st_mtime_ns for p in pivot_files}
    assert_identical(final_state(workdir, toy), final_state(finished, toy))
    assert (workdir / logs.METRICS).read_bytes() == (finished / logs.METRICS).read_bytes()


@pytest.fixture
def photos(tmp_path):
    """A folder of pictures of many sizes, in three classes told apart by their colour."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 10), ("val", 4)):
        for channel, name in enumerate(("blue", "green", "red")):
            (tmp_path / "photos" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 100, (*rng.integers(12, 30, 2), 3), dtype=np.uint8)
                pixels[..., channel] += 120
                Image.fromarray(pixels).save(tmp_path / "photos" / split / name / f"{i}.png")
    return tmp_path / "photos"


def test_a_streamed_run_resumes_as_if_it_had_not_been_interrupted(config, console, tmp_path, photos, monkeypatch):
    """In the middle of an epoch of the data (30 images in batches of 8), and with another number of workers."""
    config.dataset, config.data_dir, config.eval_split = "folder", str(photos), "val"
    config.teacher, config.assistants, config.student, config.num_networks = "tiny_a", "", "tiny_b", 2
    config.method, config.flip, config.num_epochs, config.batch_size = "kdcl", True, 4, 8  # two views of each image
    config.stream.update(image_size=8, num_workers=0)
    train.train(config, tmp_path / "whole", console)
    write = logs.MetricsLog.write

    def interrupted(log, row, timing):
        if row["epoch"] == 3:
            raise KeyboardInterrupt
        write(log, row, timing)

    config.checkpoint_every_steps = 2  # the last in the middle of an epoch
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(logs.MetricsLog, "write", interrupted)
        train.train(config, tmp_path / "run", console)
    assert [row["step"] for row in logs.read_rows(tmp_path / "run")] == [3, 7]
    config.stream.num_workers = 1
    train.train(config, tmp_path / "run", console)
    console.file.flush()
    assert "restored step 10 of 15" in (tmp_path / "console.txt").read_text()
    dataset = sets.load(config, print)
    assert_identical(final_state(tmp_path / "run", dataset), final_state(tmp_path / "whole", dataset))
    metrics = [(tmp_path / run / logs.METRICS).read_bytes() for run in ("run", "whole")]
    assert metrics[0] == metrics[1]

    evaluate.evaluate_checkpoint(config, tmp_path / "run", "latest", console)
    result = json.loads((tmp_path / "run" / "evaluation_15.json").read_text())
    last = logs.read_rows(tmp_path / "run")[-1]
    assert result["examples"] == 12 and result["target_student"]["top1"] == last["eval/top1/1_tiny_b"]
    (photos / "train" / "red" / "0.png").unlink()
    with pytest.raises(UserError, match=r"(?s)holds another run:.*num_train: 30 there, 29 here"):
        train.train(config, tmp_path / "run", console)
    (photos / "train" / "green").rename(photos / "train" / "grass")
    (photos / "val" / "green").rename(photos / "val" / "grass")
    with pytest.raises(UserError, match=r"(?s)holds another run:.*class_names: 'green' there, 'grass' here"):
        evaluate.evaluate_checkpoint(config, tmp_path / "run", "latest", console)


def test_the_pivot_teacher_of_another_run_is_used(finished, config, console, tmp_path, toy):
    config.pivot_checkpoint = str(finished / "pivot")
    run = build_for(config)
    loaded = pretrained.load_members(run, finished / "pivot", [0])
    stacks = pretrained.insert_members(run, step.init_stacks(run.setup, run.method, 0), loaded)
    theirs = final_state(finished / "pivot", toy).stacks["tiny_a"]
    assert_identical(jax.tree.map(lambda x: x[0], stacks["tiny_a"].params), jax.tree.map(lambda x: x[0], theirs.params))
    fresh = step.init_stacks(run.setup, run.method, 0)
    assert_identical(stacks["tiny_b"], fresh["tiny_b"])
    assert not np.array_equal(stacks["tiny_a"].params["fc.bias"][0], fresh["tiny_a"].params["fc.bias"][0])
    np.testing.assert_array_equal(stacks["tiny_a"].params["fc.bias"][1], fresh["tiny_a"].params["fc.bias"][1])
    # The same run as the one that trained the pivot teacher itself.
    train.train(config, tmp_path / "second", console)
    assert not (tmp_path / "second" / "pivot").exists()
    assert_identical(final_state(tmp_path / "second", toy), final_state(finished, toy))


def test_a_finished_run_is_left_as_it_is_and_needs_no_pivot_teacher(finished, config, console, tmp_path):
    workdir = shutil.copytree(finished, tmp_path / "run")
    rows = logs.read_rows(workdir)
    shutil.rmtree(workdir / "pivot")
    config.pivot_checkpoint = "gone"
    train.train(config, workdir, console)
    assert logs.read_rows(workdir) == rows


def change(**fields):
    def apply(config):
        for name, value in fields.items():
            target = next((group for group in (config.orc, config.stream) if name in group), config)
            target[name] = value

    return apply


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"method": "orcc"}, "config.method='orcc' is not known. Did you mean orc"),
        ({"teacher": "resnet57"}, "config.teacher='resnet57' is not known. Did you mean resnet"),
        ({"student": "vgg"}, "config.student='vgg' is not known"),
        ({"num_networks": 0}, "config.num_networks=0: must be at least 1"),
        ({"num_networks": 1, "assistants": ""}, "config.num_networks=1 would have to be at least 3"),
        ({"num_networks": 2, "assistants": ""}, "config.num_networks=2 would have to be at least 3"),
        ({"num_temporary_teachers": 3}, "must be less than the 3 networks of the student group"),
        ({"num_networks": 6}, "config.assistants='tiny_b,tiny_a' names 2 networks, but.*leaves 4"),
        ({"assistants": "tiny_b,resnt8"}, "config.assistants='resnt8' is not known. Did you mean resnet8"),
        ({"batch_size": 18}, "config.batch_size=18 is not divisible by the 4 devices of this run: 16 would be"),
        ({"batch_size": 0}, "config.batch_size=0: must be greater than 0"),
        ({"learning_rate": -1.0}, "config.learning_rate=-1.0"),
        ({"learning_rate": float("inf")}, "config.learning_rate=inf: must be a finite number"),
        ({"log_to": "tensorbord"}, "config.log_to='tensorbord' is not known. Did you mean tensorboard"),
        ({"log_to": "wandb"}, "config.log_to='wandb': the package wandb is not installed"),
        ({"lr_schedule": "stepp"}, "config.lr_schedule='stepp' is not known. Did you mean step"),
        ({"lr_boundaries": (150.0, 180.0)}, "config.lr_boundaries=.*fractions between 0 and 1"),
        ({"lr_multipliers": "tiny_b=fast"}, "config.lr_multipliers='tiny_b=fast': must be name=positive number"),
        ({"crop_area": (0.5, 0.1)}, r"config.stream.crop_area=\(0.5, 0.1\): must be \(smallest, largest\)"),
        ({"image_size": 0}, "config.stream.image_size=0: must be greater than 0"),
        ({"eval_crop": 1.5}, "config.stream.eval_crop=1.5: must be in"),
        ({"num_workers": -2}, "config.stream.num_workers=-2: must be -1 or more"),
        ({"dtype": "float16"}, "config.dtype='float16' is not known.*Accepted: float32, bfloat16"),
        ({"warmup_epochs": 1.5}, "config.warmup_epochs=1.5: must be less than 1.25, where.*config.num_epochs=2"),
        ({"warmup_epochs": 0.7}, "config.warmup_epochs=0.7: must be less than 0.625, where.*config.pretrain_epochs=1"),
        ({"role_change": False, "pretrain_epochs": 0}, "never learn"),
        ({"pivot_checkpoint": "nowhere"}, "config.pivot_checkpoint='nowhere': holds no run"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(fields, text, config, console, tmp_path):
    change(**fields)(config)
    with pytest.raises(UserError, match=f"(?s){text}"):
        train.train(config, tmp_path / "run", console)
    assert not (tmp_path / "run").exists()


def test_a_pivot_checkpoint_of_other_networks_is_refused(finished, config, console, tmp_path, monkeypatch, toy):
    config.pivot_checkpoint, config.teacher = str(finished / "pivot"), "tiny_b"
    with pytest.raises(UserError, match="needed is a trained tiny_b, but its pool is tiny_a"):
        train.train(config, tmp_path / "run", console)
    config.teacher = "tiny_a"
    with monkeypatch.context() as patch, pytest.raises(UserError, match="normalised with mean, std"):
        patch.setattr(sets, "load", lambda config, warn: toy._replace(mean=(0.5,)))
        train.train(config, tmp_path / "run", console)
    config.dataset = "digits"
    with pytest.raises(UserError, match="1 channels and 3 classes, but digits has 1 and 10"):
        train.train(config, tmp_path / "run", console)
    assert not (tmp_path / "run").exists()


def test_a_workdir_of_another_run_is_refused(finished, config, console, tmp_path):
    workdir = shutil.copytree(finished, tmp_path / "run")
    before = sorted((p, p.stat().st_mtime_ns) for p in workdir.rglob("*"))
    config.learning_rate, config.orc.beta = 0.2, 0.9
    config.log_every_steps = 7  # harmless
    with pytest.raises(
        UserError,
        match=r"(?s)config.learning_rate: 0.05 there, 0.2 here.*orc.beta: 0.5 there, 0.9 here.*another --workdir",
    ):
        train.train(config, workdir, console)
    # For an evaluation the learning rate does not matter; the pool does.
    config.train_split = "elsewhere"
    evaluate.check_evaluable(build_for(config), checkpoint.read_description(workdir), workdir)
    config.num_networks, config.assistants = 3, "tiny_a"
    with pytest.raises(UserError, match=r"(?s)config.num_networks: 4 there, 3 here.*pool: tiny_a, tiny_b, tiny_a"):
        evaluate.evaluate_checkpoint(config, workdir, "latest", console)
    assert before == sorted((p, p.stat().st_mtime_ns) for p in workdir.rglob("*"))


def build_for(run_config):
    return build(run_config, sets.load(run_config, print), jax.local_devices(), config.members(run_config))


def test_missing_and_damaged_checkpoints(finished, config, console, tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        evaluate.evaluate_checkpoint(config, tmp_path / "nowhere", "latest", console)
    assert not (tmp_path / "nowhere").exists()
    workdir = shutil.copytree(finished, tmp_path / "run")
    for path in (workdir / "checkpoints" / "11" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises(UserError, match=r"checkpoint of step 11 in .* cannot be restored.*Other steps there: \[5\]"):
        evaluate.evaluate_checkpoint(config, workdir, "latest", console)
    (workdir / "config.json").write_text("{")
    with pytest.raises(UserError, match="is not the description of a run"):
        evaluate.evaluate_checkpoint(config, workdir, "latest", console)


def test_warm_up_is_not_checked_against_a_pretraining_that_does_not_happen(config):
    config.warmup_epochs, config.pivot_checkpoint = 0.7, "anywhere"
    validate(config, 1)


def test_a_diverging_member_stops_the_run(config, console, tmp_path):
    config.learning_rate, config.pretrain_epochs = 1e30, 0
    with pytest.raises(
        UserError,
        match=r"tiny.* has diverged: from step \d+ its loss or its weights are not finite. The last good.* none",
    ):
        train.train(config, tmp_path / "run", console)


def command(*arguments, cache="", xla_flags=""):
    """Runs the command as a person would: without the flags that make tests compile fast and compute slowly."""
    environment = os.environ | {"XLA_FLAGS": xla_flags}
    arguments = [sys.executable, "-m", "orc_jax.main", f"--compilation_cache={cache}", *arguments]
    return subprocess.run(arguments, capture_output=True, text=True, cwd=Path(__file__).parent.parent, env=environment)


def test_it_learns(tmp_path):
    """The command: ORC with three ResNet-8 on the handwritten digits, from scratch, well above 90 % in ten epochs."""
    fields = "teacher=resnet8 num_networks=3 num_epochs=10 pretrain_epochs=0 warmup_epochs=1 eval_every_epochs=10"
    fields = [f"--config.{field}" for field in [*fields.split(), "orc.pivot_lr_multiplier=1.0"]]
    done = command("--config", "configs/digits.py", f"--workdir={tmp_path / 'run'}", *fields)
    assert done.returncode == 0, done.stderr
    (last,) = [row for row in logs.read_rows(tmp_path / "run") if "eval/top1/ensemble" in row]
    assert last["eval/top1/2_resnet8"] > 0.9
    assert last["eval/top1/0_resnet8"] > 0.9


def test_programs_are_kept_from_run_to_run(tmp_path, monkeypatch):
    """A second run of the same kind, with another seed and in another folder, has nothing to add."""
    # jax keeps what took a second to compile; which programs did depends on the machine, so here it keeps all
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    fields = "method=independent num_networks=1 student=resnet8 examples_per_class=6 batch_size=32 num_epochs=1"
    fields = [f"--config.{field}" for field in [*fields.split(), "warmup_epochs=0"]]
    kept = []
    for seed in (0, 1):
        arguments = (*fields, f"--config.seed={seed}", f"--workdir={tmp_path / str(seed)}")
        done = command(*arguments, cache=tmp_path / "cache", xla_flags=os.environ["XLA_FLAGS"])
        assert done.returncode == 0, done.stderr
        kept.append(sorted(path.name for path in (tmp_path / "cache").iterdir() if path.name.endswith("-cache")))
    assert kept[0] and kept[1] == kept[0]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--config.num_netwrks=5"], "field='num_netwrks' is not known. Did you mean num_networks?"),
        (["--config", "configs/digits.py", "--config.orc.temperatur=3"], "Did you mean orc.temperature"),
        (["--config=nowhere.py"], "--config=nowhere.py: there is no such file"),
        (["--config.teacher=resnet21"], "config.teacher='resnet21' is not known. Did you mean resnet"),
    ],
)
def test_the_command_answers_mistakes_with_one_message(arguments, text):
    done = command("--workdir=nowhere", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("orc_jax: ") and text in done.stderr and "Traceback" not in done.stderr


def test_trackers_are_equal(config, console, tmp_path, monkeypatch):
    """What TensorBoard gets, Weights & Biases gets too; a run that goes on is the same run there."""
    calls = []

    class FakeRun:
        def log(self, scalars, step):
            calls.append((step, scalars))

        def finish(self):
            calls.append("finished")

    def init(**options):
        calls.append(options)
        return FakeRun()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init, __spec__=object()))
    config.method, config.num_networks, config.assistants, config.log_to = "independent", 2, "", "tensorboard, wandb"
    written = []
    monkeypatch.setattr(logs.TensorBoard, "write", lambda self, scalars, step: written.append((step, scalars)))
    config.num_epochs = 1
    train.train(config, tmp_path / "run", console)
    opened, row, end = calls
    assert [row] == written and end == "finished"
    assert (
        row[0] == 5 and {"epoch", "train/loss/0_tiny_a", "eval/top1/1_tiny_b"} <= set(row[1]) and "step" not in row[1]
    )
    assert opened["config"]["orc"]["beta"] == 0.5 and opened["resume"] == "allow" and opened["name"] == "run"
    calls.clear()
    log = logs.MetricsLog(tmp_path / "run", 5, config)
    log.close()
    assert calls[0]["id"] == opened["id"]
    config.log_to = ""
    assert logs.MetricsLog(tmp_path / "run", 5, config).trackers == []
