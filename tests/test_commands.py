"""What commands do with errors: one message and an exit status for what needs no traceback."""

import errno
import signal
from pathlib import Path

import jax
import pytest

from orc_jax import commands
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
        (jax.errors.JaxRuntimeError(MEMORY), 2, "orc_jax: the memory of a device does not suffice: RESOURCE_EXHAUSTED"),
    ],
)
def test_one_message(error, status, text, capsys):
    with pytest.raises(SystemExit) as left, commands.reported(Path("runs/x")):
        raise error
    printed = capsys.readouterr().err
    assert left.value.code == status and printed.startswith(text) and printed.count("\n") == 1


def test_a_command_without_a_run_does_not_speak_of_one(capsys):
    for error in (KeyboardInterrupt(), OSError(errno.EIO, "Input/output error", "f")):
        with pytest.raises(SystemExit), commands.reported():
            raise error
    assert capsys.readouterr().err == "orc_jax: interrupted\norc_jax: f: Input/output error\n"


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
