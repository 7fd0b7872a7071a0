"""What commands do with errors: one message and an exit status for what needs no traceback."""

import errno
import importlib
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from absl import logging

from orc_jax import commands, terminal
from orc_jax.errors import Interrupted, UserError

MEMORY = "RESOURCE_EXHAUSTED: Out of memory\nand more"


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (UserError("config.seed=-1: must be at least 0"), 2, "orc_jax: config.seed=-1: must be at least 0"),
        (Interrupted("stopped", 128 + signal.SIGTERM), 143, "orc_jax: stopped"),
        (KeyboardInterrupt(), 130, "orc_jax: interrupted; the same command goes on from the last checkpoint"),
        (OSError(errno.ENOSPC, "No space left", "f"), 2, "orc_jax: f: No space left. The checkpoints there are kept"),
        (OSError(errno.EROFS, "Read-only"), 2, "orc_jax: runs/x: Read-only. The checkpoints there are kept"),
        (OSError(errno.EMFILE, "Too many open files", "f"), 2, "orc_jax: f: Too many open files: a process may have "),
        (MemoryError("Unable to allocate 9 TiB"), 2, "orc_jax: the memory of this machine does not suffice: Unable"),
        (RuntimeError("Unable to initialize backend 'x': ..."), 2, "orc_jax: JAX_PLATFORMS=cpu: Unable to initialize"),
        (jax.errors.JaxRuntimeError("INTERNAL: callback: KeyboardInterrupt"), 130, "orc_jax: interrupted"),
        (jax.errors.JaxRuntimeError(MEMORY), 2, "orc_jax: the memory of a device does not suffice: RESOURCE_EXHAUSTED"),
    ],
)
def test_one_message(error, status, text, capsys):
    with pytest.raises(SystemExit) as left, commands.reported(Path("runs/x")):
        raise error
    printed = capsys.readouterr().err
    assert left.value.code == status and printed.startswith(text) and printed.count("\n") == 1


def test_nothing_runs_that_is_not_compiled(monkeypatch, capsys):
    monkeypatch.setenv("JAX_DISABLE_JIT", "1")
    with jax.disable_jit(), pytest.raises(SystemExit) as left, commands.reported():
        pytest.fail("ran")
    assert left.value.code == 2 and capsys.readouterr().err.startswith("orc_jax: JAX_DISABLE_JIT=1: what runs is")


@pytest.mark.parametrize("source", ["gc.callbacks.append(interrupted)", "weakref.finalize(Thing(), interrupted)"])
def test_ctrl_c_while_a_callback_runs(source):
    """Python reports such an error and goes on; JAX has callbacks of the garbage collector, for instance."""
    program = f"""
import gc, weakref
from orc_jax.commands import understood

class Thing: pass

def interrupted(*_): raise KeyboardInterrupt

with understood():
    {source}
    gc.collect()
    print("went on")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "orc_jax: interrupted\n")


def test_all_files_that_the_system_lets_a_process_open(monkeypatch):
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    monkeypatch.setattr(logging, "set_verbosity", lambda level: None)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before[1] - 1, before[1]))
        commands.start()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


PLACES = {
    "main": [
        ["--workdir="],
        ["--mode=evaluate", "--workdir="],
        ["--mode=describe", "--workdir="],
        ["--config.data_dir="],
    ],
    "compare": [["--out="], ["--workdir="]],
    "report": [["--workdir="], ["--workdir=x", "--out="], ["--workdir=x", "--data_dir="]],
    "export": [["--format=onnx", "--out=x", "--workdir="], ["--format=onnx", "--workdir=x", "--out="]],
    "predict": [["x.jpg", "--workdir="], ["--workdir=x", ""]],
    "import_torch": [["--out=x", ""], ["x.pth", "--out="]],
}


@pytest.mark.parametrize("bucket", ["s3://b/x", "gs://b/x"])
@pytest.mark.parametrize(
    ("name", "arguments"), [(name, arguments) for name, all_of in PLACES.items() for arguments in all_of]
)
def test_every_place_is_one_of_this_machine(name, arguments, bucket, monkeypatch, capsys, tmp_path):
    module = importlib.import_module(f"orc_jax.{name}.__main__" if name in ("compare", "report") else f"orc_jax.{name}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["command", *arguments[:-1], arguments[-1] + bucket])
    if hasattr(module, "CACHE"):  # whose folder would be that of the other tests, too
        sys.argv.append("--compilation_cache=")
    for flag in getattr(module, "FLAGS", ()):
        monkeypatch.setattr(module.FLAGS[flag], "value", module.FLAGS[flag].default)
    with pytest.raises(SystemExit) as left:
        module.main()
    printed = capsys.readouterr().err
    assert left.value.code == 2 and f"{bucket}: is not on this machine; accepted is a path" in printed
    assert "Traceback" not in printed and not list(tmp_path.iterdir())


def test_a_command_without_a_run_does_not_speak_of_one(capsys):
    for error in (KeyboardInterrupt(), OSError(errno.EIO, "Input/output error", "f")):
        with pytest.raises(SystemExit), commands.reported():
            raise error
    assert capsys.readouterr().err == "orc_jax: interrupted\norc_jax: f: Input/output error\n"


@pytest.mark.parametrize("buffering", [-1, 1])  # of blocks, of lines
def test_a_reader_that_has_enough_is_no_error(buffering, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", buffering) as output, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", output)
        with pytest.raises(SystemExit) as left, commands.reported():
            print("a line")
    assert left.value.code == 128 + signal.SIGPIPE


def test_a_console_whose_reader_has_enough(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as output, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", output)
        with pytest.raises(SystemExit) as left, commands.reported():
            terminal.make_console().print("a line")
    assert left.value.code == 128 + signal.SIGPIPE


def test_outputs_that_are_closed():
    """What is opened next does not get their numbers."""
    program = (
        "import os; from orc_jax import commands; commands.start(); print('x'); os._exit(os.open('/', os.O_RDONLY))"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command], check=False, timeout=60)
    assert done.returncode > 2


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOENT, "No such file"), ValueError("x"), jax.errors.JaxRuntimeError("y")]
)
def test_what_nobody_can_put_right_keeps_its_traceback(error):
    with pytest.raises(type(error)), commands.reported(Path("runs/x")):
        raise error


def test_shared_arguments():
    parser = commands.parser("text")
    commands.add_member_arguments(parser)
    args = parser.parse_args(["--workdir", "runs/x", "--own", "a:B", "--own=c:D"])
    assert (args.workdir, args.member, args.checkpoint, args.own) == (
        Path("runs/x"),
        "target",
        "latest",
        ["a:B", "c:D"],
    )
    assert parser.parse_args(["--workdir", "runs/x"]).own == []
