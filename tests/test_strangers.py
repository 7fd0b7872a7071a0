"""What strangers' machines and commands bring: signals to all processes, odd places, old runs, no home."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from orc_jax import cache, library, terminal
from orc_jax.config import default, resolve
from orc_jax.data.folder import in_order
from orc_jax.data.workers import interrupts_blocked
from orc_jax.errors import UserError
from orc_jax.places import place, workdir
from orc_jax.preemption import SIGNALS, watched
from orc_jax.testing import build_run
from orc_jax.workdir import record


@pytest.mark.parametrize("given", ["s3://bucket/run", "gs://bucket/run", "hdfs:/x", "file:///x"])
def test_buckets_are_refused(given):
    with pytest.raises(UserError, match="is not on this machine"):
        place("--workdir", given)


@pytest.mark.parametrize("call", [workdir, lambda field, given: library.train(default(), workdir=given)])
def test_a_workdir_whose_name_is_no_text(call):
    """It is not found out after the first epoch; files to read may have any name."""
    with pytest.raises(UserError, match=r"workdir=caf.*: checkpoints cannot be written there: its name is not in the"):
        call("workdir", os.fsdecode(b"caf\xe9"))
    assert place("--data_dir", os.fsdecode(b"caf\xe9")) == Path(os.fsdecode(b"caf\xe9"))


def test_a_workdir_with_a_backslash():
    """TensorStore would write to the folder b in a."""
    with pytest.raises(UserError, match=r"workdir=a\\b: checkpoints cannot be written there: .* a backslash"):
        workdir("workdir", "a\\b")


def test_places_that_cannot_be_reached(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    for given, reason in ((tmp_path / ("n" * 300), "File name too long"), (tmp_path / "loop", "Too many levels")):
        with pytest.raises(UserError, match=f"--workdir={given}: {reason}"):
            place("--workdir", given)


def test_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"^--workdir=a\\0b: "):
        place("--workdir", "a\0b")
    assert place("--workdir", "~/run") == tmp_path / "run"
    assert place("--workdir", "exp[lr=0.1]/C:x") == Path("exp[lr=0.1]/C:x")


def test_the_home_folder_in_fields(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = default()
    config.data_dir, config.pivot_checkpoint, config.label_file = "~/data", "~/runs/teacher", "labels~"
    resolved = resolve(config, 1).config
    assert (resolved.data_dir, resolved.label_file) == (str(tmp_path / "data"), "labels~")
    assert resolved.pivot_checkpoint == str(tmp_path / "runs/teacher") and config.data_dir == "~/data"


def test_places_of_a_program(toy):
    config = default()
    for call in (lambda: library.load("gs://b/run"), lambda: library.train(config, workdir="s3://b/run")):
        with pytest.raises(UserError, match=r"workdir=..://b/run: is not on this machine"):
            call()


def test_text_of_a_person_is_printed_as_it_is(capsys):
    terminal.make_console().print("results in exp[lr=0.1]/[/kd]/:smile:", soft_wrap=True)
    assert "results in exp[lr=0.1]/[/kd]/:smile:" in capsys.readouterr().out


def test_names_that_the_output_cannot_encode():
    program = "from orc_jax.terminal import make_console; make_console().print('caf\\xe9 \\u732b \\udcff')"
    ascii_alone = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, env=ascii_alone, check=False)
    assert done.returncode == 0 and b"caf" in done.stdout, done.stderr


def test_no_home(monkeypatch):
    for name in ("ORC_JAX_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def unknown():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", unknown)
    assert cache.folder().name == f"orc_jax_{os.getuid()}"


@pytest.mark.parametrize("seed", [2**31, 2**32 - 1, 1_700_000_000_000, -1])
def test_seeds_out_of_range(seed):
    config = default()
    config.seed = seed
    with pytest.raises(UserError, match=r"config\.seed=.*: must be from 0 to 2147483647"):
        resolve(config)


def test_numbers_are_ordered_as_numbers():
    assert in_order(["0", "1", "10", "2"]) == ("0", "1", "2", "10")
    assert in_order(["00", "01", "10", "2"]) == ("00", "01", "2", "10")
    assert in_order(["1", "10", "2", "a"]) == ("1", "10", "2", "a")


def test_processes_that_decode_do_not_hear_what_asks_a_run_to_leave():
    with interrupts_blocked():
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    for number in SIGNALS:
        child.send_signal(number)
    child.communicate(b"\n", timeout=60)
    assert child.returncode == 0


def test_what_nohup_ignores_is_no_wish_to_leave():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with watched(print) as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.requested()
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("toy_set")
def test_a_run_goes_on_with_other_options_of_methods_that_it_does_not_use(config, toy, tmp_path):
    one = build_run(config, toy).record()
    config.pcl.ema_decay = 0.5
    assert record.differences(one, build_run(config, toy).record()) == []
    config.orc.beta = 0.75
    assert record.differences(one, build_run(config, toy).record()) == ["  config.orc.beta: 0.5 there, 0.75 here"]


@pytest.mark.usefixtures("toy_set")
def test_a_run_goes_on_without_images_that_were_damaged(config, toy, tmp_path):
    one, lines = build_run(config, toy).record(), []
    fewer = one._replace(num_train=one.num_train - 2)
    assert record.differences(one, fewer) == [f"  num_train: {one.num_train} there, {one.num_train - 2} here"]
    config.stream.skip_corrupt = True
    here = build_run(config, toy).record()
    record.require_resumable(one, here, tmp_path, lines.append)
    assert lines == []
    record.require_resumable(one, here._replace(num_train=one.num_train - 2), tmp_path, lines.append)
    assert lines == ["2 of 90 training images are left out from here on, so their order is another than before"]
