"""The folders of checkpoints as Orbax takes them: of this machine, and every letter in a name stands for itself."""

import glob
from collections.abc import Iterator

from etils.epath.gpath import PosixGPath


class LocalPath(PosixGPath):
    """A path as Orbax takes it, whose name is no pattern and no address.

    What it is derived from looks for the files in a folder `exp[lr=0.1]` as in one that is called `expl`, so that Orbax
    would not find the arrays that it is to put together; and it takes `/s3/run` for a bucket.
    """

    @property
    def _uri_scheme(self) -> None:
        return None

    def glob(self, pattern: str) -> Iterator["LocalPath"]:
        """The files and folders in this one that match a pattern."""
        for name in glob.glob(pattern, root_dir=self):
            yield self / name
