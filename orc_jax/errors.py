"""The one exception for mistakes that a person can put right, and the wording they share."""

import difflib
import errno
import resource
from collections.abc import Iterable


class UserError(Exception):
    """Bad input, with a message that names the field, its value and what would be accepted.

    The commands print the message alone, without a traceback, and exit with status 2.
    """


class Interrupted(Exception):
    """A run that was asked to stop and has saved its state. `orc_jax.main` exits with `status`."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


def unknown(field: str, value: str, accepted: Iterable[str]) -> UserError:
    """The error for a name that is not registered: suggests the nearest ones and lists what there is."""
    names = list(accepted)
    alike = [name for name in names if name.lower() == value.lower()]
    near = alike or difflib.get_close_matches(value, names, n=3)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return UserError(f"{field}={value!r} is not known.{hint} Accepted: {', '.join(names)}.")


LIMITS = (errno.EMFILE, errno.ENFILE)  # too many open files


def of_system(error: OSError) -> str:
    """What the system says of an error, and what helps where its reason is a limit and no file."""
    reason = error.strerror or str(error)
    if error.errno not in LIMITS:
        return reason
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return (
        f"{reason}: a process may have {most} here, and more are needed: set ulimit -n 4096 before the command, or "
        "config.stream.num_workers=0"
    )


def require(field: str, value: object, fine: bool, accepted: str) -> None:
    """Raises the error for a value out of its range unless it is `fine`."""
    if not fine:
        raise UserError(f"{field}={value}: must be {accepted}")


def require_choice(field: str, value: str, accepted: Iterable[str]) -> None:
    """Raises the error for a name that is not among `accepted`."""
    names = list(accepted)
    if value not in names:
        raise unknown(field, value, names)


SHOWN = 5  # names in a message


def first(names: Iterable[str], count: int = SHOWN) -> str:
    """The first of some names, for a message."""
    names = list(names)
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


def plural(count: int, word: str, words: str | None = None) -> str:
    """ "1 file", "2 files"."""
    return f"{count} {word if count == 1 else words or word + 's'}"
