"""What all commands share: one message instead of a traceback for what a person can put right, and common arguments."""

import argparse
import collections
import contextlib
import errno
import os
import resource
import select
import signal
import sys
from collections.abc import Iterator, Sequence
from logging import CRITICAL, getLogger
from pathlib import Path
from typing import NoReturn

from absl import logging

import orc_jax
from orc_jax.errors import LIMITS, Interrupted, UserError, of_system
from orc_jax.places import place
from orc_jax.terminal import printable

LESS = (
    "Less is needed with --config.remat=True, --config.dtype=bfloat16, a smaller --config.batch_size (or "
    "config.eval_batch_size, in an evaluation), fewer or smaller networks, or more devices"
)
SOON = 0.1  # seconds: what compiles in less is compiled again
# What a full or lost disk makes of a write.
STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE)


def start() -> None:
    """What a command does first: it prints any name, may open as many files as the system lets it, and is quiet.

    That is, TFDS, TensorFlow and Orbax do not report on themselves, nor look for Google's cloud. What fails is raised
    as well. To be called before they are imported. Outputs that were closed are there, and go nowhere.
    """
    _open_outputs()
    printable()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    logging.set_verbosity(logging.FATAL)
    getLogger("asyncio").setLevel(CRITICAL)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("NO_GCE_CHECK", "true")


def _open_outputs() -> None:
    """Without this a file of the run would get the number of an output that was closed, and what libraries print."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")


def fail(message: str, status: int = 2, *, at_once: bool = False) -> NoReturn:
    """Ends the program with one message; `at_once` also where JAX would wait for other processes."""
    print(f"orc_jax: {message}", file=sys.stderr, flush=True)
    if at_once:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        os._exit(status)
    sys.exit(status)


@contextlib.contextmanager
def _heard(message: str) -> Iterator[None]:
    """A Ctrl-C that comes while a callback or a destructor runs, where Python drops it, ends the program as well."""
    report = sys.unraisablehook

    def hear(unraisable: "sys.UnraisableHookArgs") -> None:
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            fail(message, status=130, at_once=True)
        report(unraisable)

    sys.unraisablehook = hear
    try:
        yield
    finally:
        sys.unraisablehook = report


@contextlib.contextmanager
def understood() -> Iterator[None]:
    """Around what reads the command line: as `reported`, but without importing anything."""
    try:
        with _heard("interrupted"):
            yield
    except UserError as error:
        fail(str(error))
    except KeyboardInterrupt:
        fail("interrupted", status=130)


@contextlib.contextmanager
def reported(workdir: Path | None = None, *, several: bool = False) -> Iterator[None]:
    """Ends the program with one message, and an exit status that is not 0, for what needs no traceback.

    Args:
        workdir: of the run, for messages.
        several: this is one of several processes, which wait for each other.
    """
    import jax  # imported late, so that --help is answered at once

    from orc_jax.workdir.checkpoint import without_stragglers

    if jax.config.values["jax_disable_jit"]:
        fail(f"JAX_DISABLE_JIT={os.environ.get('JAX_DISABLE_JIT', '')}: what runs is compiled; accepted is 0, or none")
    interrupted = "interrupted" + ("; the same command goes on from the last checkpoint" if workdir else "")
    goes_on = ". The checkpoints there are kept; the same command goes on" if workdir else ""
    try:
        with _heard(interrupted), without_stragglers():
            yield
            sys.stdout.flush()
    except BrokenPipeError:
        if not _has_enough():
            raise
        sys.exit(128 + signal.SIGPIPE)
    except UserError as error:
        fail(str(error), at_once=several)
    except Interrupted as error:
        fail(str(error), error.status)
    except KeyboardInterrupt:
        fail(interrupted, status=130)
    except MemoryError as error:
        fail(f"the memory of this machine does not suffice: {error}. {LESS}", at_once=several)
    except OSError as error:
        if error.errno not in (*STORAGE, *LIMITS):
            raise
        fail(f"{error.filename or workdir}: {of_system(error)}{goes_on}", at_once=several)
    except Exception as error:
        told = of_device(error)
        if told is None:
            raise
        fail(*told, at_once=several)


def _has_enough() -> bool:
    """Whether nobody reads the output any more, as behind `| head`; what is left of it is then dropped."""
    output, poll = sys.stdout.fileno(), select.poll()
    poll.register(output, 0)
    if not any(events & select.POLLERR for _, events in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return True


def path(text: str) -> Path:
    """A path that an argument gives, for argparse; see `place`."""
    try:
        return place("", text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("=")) from error


def keep_programs(folder: str) -> None:
    """Keeps compiled programs on disk, in `folder`, or where JAX_COMPILATION_CACHE_DIR says, if it is set."""
    import jax

    if folder and not jax.config.values["jax_compilation_cache_dir"]:
        path = place("--compilation_cache", folder).absolute()
        with contextlib.suppress(OSError):  # where none can be made or written they are not kept
            path.mkdir(parents=True, exist_ok=True)
            if os.access(path, os.W_OK | os.X_OK):
                jax.config.update("jax_compilation_cache_dir", str(path))
                # By default those that took a second; a command has a dozen that take less, and takes seconds for them.
                jax.config.update("jax_persistent_cache_min_compile_time_secs", SOON)


def of_device(error: Exception) -> tuple[str, int] | None:
    """Message and exit status for an error of JAX while it ran a program; None if it needs a traceback."""
    import jax

    if isinstance(error, RuntimeError) and str(error).startswith("Unable to initialize backend"):
        return f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}: {error}", 2
    if not isinstance(error, jax.errors.JaxRuntimeError):
        return None
    text = str(error).splitlines()[0][:300]
    if "KeyboardInterrupt" in str(error):  # within a callback to Python
        return "interrupted", 130
    if "RESOURCE_EXHAUSTED" in text:
        return f"the memory of a device does not suffice: {text}. {LESS}", 2
    if jax.process_count() == 1:
        return None
    return (
        "a step that other processes take part in has failed, so one of them has probably ended. Start all of them "
        f"again to go on from the last checkpoint ({text})"
    ), 1


def parser(description: str | None) -> argparse.ArgumentParser:
    """The parser of a command that is described by the docstring of its module."""
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--version", action="version", version=f"orc_jax {orc_jax.__version__}")
    return result


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that say which checkpoint of a run."""
    parser.add_argument("--checkpoint", default="latest", help="latest (default), best, or a step")
    help = "my_module:Thing, a network, method or data set of your own that the run has and may import; once for each"
    parser.add_argument("--own", action="append", default=[], help=help)


def add_member_arguments(parser: argparse.ArgumentParser, more: str = "") -> None:
    """The arguments that say which member of which run."""
    parser.add_argument("--workdir", type=path, required=True, help="of a run that was trained, or imported weights")
    help = f"a number, a name in the logs (0_resnet56), a role, a part that only one has, or best{more}"
    parser.add_argument("--member", default="target", help=f"{help}; default: target")
    help = "its averages, which the run keeps with config.ema_decay, or not; default: as the run evaluates (eval_ema)"
    parser.add_argument("--ema", action=argparse.BooleanOptionalAction, default=None, help=help)
    add_run_arguments(parser)


def read_class_names(given: Sequence[str]) -> tuple[str, ...]:
    """The names of classes in the order of the network's outputs: as given, or of one file with a name in each line.

    Raises:
        UserError: if a file cannot be read, or a name comes twice.
    """
    names = tuple(given)
    if len(names) == 1:
        try:
            lines = Path(names[0]).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--class_names={names[0]}: cannot be read as a file of names: {error}") from error
        names = tuple(line.strip() for line in lines if line.strip())
    if twice := [name for name, count in collections.Counter(names).items() if count > 1]:
        raise UserError(f"--class_names: {twice[0]!r} comes twice")
    return names
