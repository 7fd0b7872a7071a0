"""The record of a comparison of methods: its runs and what they have come to, in `compare.json` of its folder."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from orc_jax.errors import UserError
from orc_jax.workdir.files import replace_text

FILE = "compare.json"


class Compared(NamedTuple):
    """One run of a comparison. It is to come, has failed (`error`), or is finished and has results."""

    method: str
    seed: int
    folder: str  # of the run, from that of the comparison
    target: str  # what the log of the run calls the target student
    error: str = ""
    last: float | None = None  # top-1 of the target student after the last epoch
    best: float | None = None  # at its best epoch
    ensemble: float | None = None  # of the pool, after the last epoch
    seconds: float | None = None  # of training, its stages and teacher included; neither compilation nor evaluation
    took: float | None = None  # by the clock, without the teacher that all methods share; None: not measured
    ended: str = ""  # when, as in the log; "": not recorded
    others: dict[str, float] = {}  # noqa: RUF012, never changed; top-1 on further splits, by name, at the best epoch

    @property
    def is_finished(self) -> bool:
        return self.last is not None


class Comparison(NamedTuple):
    """Runs that have in common all that their methods leave them."""

    # As given: method, seed and pool, or what was swept, are those of the runs; of published rows it is the first.
    config: dict[str, Any]
    runs: tuple[Compared, ...]
    costs: dict[str, float]  # by method: operations, in forward passes of the target student per training example
    command: str
    versions: dict[str, str]
    devices: tuple[str, ...]
    machine: dict[str, str] | None
    baseline: str = "independent"  # what the others are measured by; "" is nothing
    published: dict[str, str] = {}  # noqa: RUF012, never changed; by row: the figure that was published

    @property
    def methods(self) -> list[str]:
        """In the order of the table."""
        return list(dict.fromkeys(run.method for run in self.runs))

    def of(self, method: str) -> list[Compared]:
        """The runs of a method."""
        return [run for run in self.runs if run.method == method]

    @property
    def by_method(self) -> list[Compared]:
        """The runs, method by method."""
        return [run for method in self.methods for run in self.of(method)]

    @property
    def other_splits(self) -> list[str]:
        """Those that have no part in the choice of the best epoch, as far as runs are finished."""
        return list(dict.fromkeys(name for run in self.runs for name in run.others))

    @property
    def failed(self) -> list[Compared]:
        return [run for run in self.runs if run.error]

    def replaced(self, i: int, run: Compared) -> "Comparison":
        """The same with another run in the place of run `i`."""
        return self._replace(runs=(*self.runs[:i], run, *self.runs[i + 1 :]))


def write(folder: Path, comparison: Comparison) -> None:
    """Writes the record."""
    description = comparison._asdict() | {"runs": [run._asdict() for run in comparison.runs]}
    replace_text(folder / FILE, json.dumps(description, indent=2) + "\n")


def of_replica(folder: Path, member: str) -> tuple[Path, str]:
    """The folder of the run that a member is of, and the member: of a comparison `student@2`, or `student@kd/seed_2`.

    Raises:
        UserError: if a comparison has no such run, or the member names none.
    """
    name, at, which = member.partition("@")
    if (there := read(folder)) is None:
        if at:
            raise UserError(f"--member={member}: --workdir={folder} holds no replicas, so accepted is {name}")
        return folder, member
    found = [run for run in there.runs if which in (str(run.seed), run.folder)]
    if not at or len(found) != 1:
        seeds = ", ".join(run.folder for run in there.runs)
        raise UserError(f"--member={member}: {folder} holds several runs; accepted is {name}@ and a seed, or {seeds}")
    return folder / found[0].folder, name


def read(folder: Path) -> Comparison | None:
    """The record of the comparison in `folder`; None if there is none.

    Raises:
        UserError: if there is one that cannot be read.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        description = json.loads(path.read_text())
        runs = tuple(Compared(**run) for run in description["runs"])
        return Comparison(**description | {"runs": runs, "devices": tuple(description["devices"])})
    except Exception as error:  # anything can be wrong with a file
        raise UserError(f"{path} is not the record of a comparison: {error}") from error
