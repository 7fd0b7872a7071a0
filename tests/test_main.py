"""The command as a person gives it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from orc_jax.workdir import metrics
from tests import flags

ROOT = Path(__file__).parent.parent


def command(*arguments, cache="", xla_flags="", folder=ROOT):
    """Runs the command as a person would: without the flags that make tests compile fast and compute slowly."""
    environment = os.environ | {"XLA_FLAGS": xla_flags}
    arguments = [sys.executable, "-m", "orc_jax.main", f"--compilation_cache={cache}", *arguments]
    return subprocess.run(arguments, capture_output=True, text=True, cwd=folder, env=environment)


@pytest.mark.slow  # as does the notebook, with smaller networks
def test_it_learns(tmp_path):
    """The command: ORC with three ResNet-8 on the handwritten digits, from scratch, well above 90 % in ten epochs."""
    fields = "teacher=resnet8 num_networks=3 num_epochs=10 pretrain_epochs=0 warmup_epochs=1 eval_every_epochs=10"
    fields = [f"--config.{field}" for field in [*fields.split(), "orc.pivot_lr_multiplier=1.0"]]
    done = command("--config", "configs/digits.py", f"--workdir={tmp_path / 'run'}", *fields)
    assert done.returncode == 0, done.stderr
    (last,) = metrics.evaluated(metrics.read(tmp_path / "run"))
    assert last["eval/top1/2_resnet8"] > 0.9
    assert last["eval/top1/0_resnet8"] > 0.9


@pytest.mark.slow
def test_programs_are_kept_from_run_to_run(tmp_path, monkeypatch):
    """A second run of the same kind, with another seed and in another folder, has nothing to add."""
    # jax keeps what took a second to compile; which programs did depends on the machine, so here it keeps all
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    fields = "method=independent num_networks=1 student=plane2 examples_per_class=6 batch_size=32 num_epochs=1"
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
        (["--mode=evaluate"], "--workdir=nowhere holds no run"),
        (["--config.student=ResNet8"], "config.student='ResNet8' is not known. Did you mean resnet8?"),
        (["--config.teacher=resnet21"], "config.teacher='resnet21' is not known. Did you mean resnet"),
    ],
)
def test_the_command_answers_mistakes_with_one_message(arguments, text):
    done = command("--workdir=nowhere", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("orc_jax: ") and text in done.stderr and "Traceback" not in done.stderr


def test_a_run_is_evaluated_by_its_workdir_alone(tmp_path):
    """What is given on top is looked at before anything is read."""
    fields = "method=independent num_networks=1 student=plane2 batch_size=32 num_epochs=1 warmup_epochs=0 mean=(0.5,)"
    fields += " examples_per_class=12"
    workdir = f"--workdir={tmp_path / 'run'}"
    quick = {"cache": tmp_path / "cache", "xla_flags": flags.QUICK}
    done = command(workdir, *[f"--config.{field}" for field in [*fields.split(), "std=(0.25,)"]], **quick)
    assert done.returncode == 0 and "config: configs/digits.py, as no --config was given" in done.stdout, done.stderr
    for arguments in ([], ["--checkpoint=best", "--config.eval_batch_size=64"]):
        done = command(workdir, "--mode=evaluate", *arguments, **quick)
        assert done.returncode == 0 and f"config: that of the run in {tmp_path / 'run'}" in done.stdout, done.stderr
        assert "0_plane2" in done.stdout and "360 examples" in done.stdout
    wrong = {"student=plane4": "config.student: 'plane2' there, 'plane4' here", "seed=x": "must be a whole number"}
    for argument, text in [*((f"--config.{field}", text) for field, text in wrong.items()), ("--checkpoint=7", "[3]")]:
        done = command(workdir, "--mode=evaluate", argument, "--config.data_dir=/nowhere", **quick)
        assert done.returncode == 2 and text in done.stderr, done.stderr


def test_where_a_run_is_kept(tmp_path, monkeypatch):
    """By default in a folder that is called by the set and the method, in the working directory."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    done = command("--config=configs/digits.py", "--config.method=kd", "--mode=evaluate", folder=tmp_path)
    assert done.returncode == 2 and "--workdir=runs/digits_kd holds no run" in done.stderr
    assert not list(tmp_path.iterdir())
