"""The files of a workdir: replaced in one move, by one run at a time."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from orc_jax import hosts
from orc_jax.errors import UserError


@contextlib.contextmanager
def writing(what: str) -> Iterator[None]:
    """Turns the error of a write into `UserError`; `what` is written, by flag and path."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{what}: cannot be written: {error.strerror or error}") from error


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Keeps other runs out of `workdir`, which is created. The lock ends with the process, however that ends.

    Raises:
        UserError: if another live run uses the workdir, or it cannot be written.
    """
    if not hosts.is_main():
        yield
        return
    with writing(f"--workdir={workdir}"):
        workdir.mkdir(parents=True, exist_ok=True)
        file = (workdir / "lock").open("a+")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"--workdir={workdir} is in use by another run, {file.read().strip() or 'unknown'}. Wait for it, stop "
                "it, or give another --workdir"
            ) from None
        except OSError:
            pass  # a file system that knows no locks
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def replace_text(path: Path, text: str) -> None:
    """Writes `text` to `path` in one move: a process killed on the way leaves the old file. In UTF-8, on any machine.

    Names of files that are no text are written with escapes.
    """
    new = path.with_name(path.name + ".new")
    new.write_text(text, encoding="utf-8", errors="backslashreplace")
    new.replace(path)
