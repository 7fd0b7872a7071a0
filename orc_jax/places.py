"""Files and folders as people give them: of this machine, or of a file system that it sees."""

import errno
import re
import sys
from pathlib import Path

from orc_jax.errors import UserError

ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")  # s3://bucket, gs://bucket, and what pathlib makes of them
UNREACHABLE = (errno.EACCES, errno.ENAMETOOLONG, errno.ELOOP)  # it cannot even be told whether there is something


def place(field: str, given: str | Path) -> Path:
    """The path that `field` gives; `~` is the home folder.

    Raises:
        UserError: for a bucket, for what is no path, and for a place of which it cannot be told what is there.
    """
    if ADDRESS.match(str(given)):
        raise UserError(
            f"{field}={given}: is not on this machine; accepted is a path, to which a bucket may be mounted "
            "(gcsfuse, s3fs)"
        )
    try:
        path = Path(given).expanduser()
        path.stat()
    except (RuntimeError, ValueError) as error:  # no home folder is known; a null byte
        shown = str(given).replace("\0", "\\0")
        raise UserError(f"{field}={shown}: {error}") from error
    except OSError as error:
        if error.errno in UNREACHABLE:
            raise UserError(f"{field}={given}: {error.strerror}") from error
    return path


def plain(text: str) -> str:
    """What `text` is called as part of the name of a file: a dot for all that such names should not have."""
    return re.sub(r"[^\w.=-]+", ".", text)


def workdir(field: str, given: str | Path) -> Path:
    """The same for a folder that checkpoints are written to: its name has to be text, without backslashes.

    Raises:
        UserError: as `place`, and for a name with bytes that are no text, or which TensorStore takes for a separator.
    """
    path = place(field, given)
    name = str(path.absolute())
    if any("\ud800" <= letter <= "\udfff" for letter in name):
        raise UserError(
            f"{field}={given}: checkpoints cannot be written there: its name is not in the encoding of names here, "
            f"{sys.getfilesystemencoding()}; accepted is another name, or where it is UTF-8, LC_ALL=C.UTF-8"
        )
    if "\\" in name:
        raise UserError(
            f"{field}={given}: checkpoints cannot be written there: {name} has a backslash in it; accepted is another "
            "name"
        )
    return path
