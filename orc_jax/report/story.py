"""What a page on a run begins with: what came of it in words, and when, how long, by what and on what it was made."""

import contextlib
import os
import shlex
from collections.abc import Iterable, Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from typing import NamedTuple

from orc_jax import config as configs
from orc_jax import transfer
from orc_jax.data.splits import eval_splits
from orc_jax.errors import UserError
from orc_jax.methods import METHODS
from orc_jax.report.collect import Logged
from orc_jax.report.page import facts, whole
from orc_jax.terminal import duration
from orc_jax.workdir import metrics
from orc_jax.workdir import record as records
from orc_jax.workdir.comparison import Comparison
from orc_jax.workdir.metrics import Row
from orc_jax.workdir.record import FREE_FIELDS, POOL_FIELDS, Record

UNKNOWN = "not recorded: the run is of an earlier version"
TRAINING = ("python -m orc_jax.main ", "orc-jax ")  # what the command of a run begins with that can be given again
# Fields that a student who learns alone, from scratch, does not have or may have otherwise.
NOT_ALONE = {
    *FREE_FIELDS,
    *POOL_FIELDS,
    "method",
    "method_options",
    "pretrain_epochs",
    "init",
    "num_temporary_teachers",
    "seed",
}


class Alone(NamedTuple):
    """A run that has trained the same student alone, with the same data and budget."""

    workdir: Path
    record: Record
    rows: list[Row]


def opening(logged: Logged, workdirs: Sequence[Path]) -> str:
    """The paragraphs and the facts, as HTML. `workdirs` are of the runs on the page, where the baseline may be."""
    paragraphs = [f"<p>{escape(' '.join(_result(logged)))}</p>", *_against_alone(logged, workdirs)]
    return "\n".join([*paragraphs, facts(of_run(logged))])


def in_words(logged: Logged, workdirs: Sequence[Path]) -> str:
    """The same as a text: the student, how good it is, and how much better than alone where that is known."""
    found = _alone_as_far(logged, workdirs) if logged.evaluated else None
    return " ".join([*_result(logged), *([_difference_to(logged, *found)] if found else [])])


def _result(logged: Logged) -> list[str]:
    config, name = logged.resolved.config, logged.names[-1]
    split, *others = eval_splits(config)
    size = len(logged.names)
    pool = (
        f"the last of {size} members that {config.method} trains" if size > 1 else f"trained alone by {config.method}"
    )
    sentences = [f"The target student is {name}, {pool} on {config.dataset}."]
    if not logged.evaluated:
        return [*sentences, "It has not been evaluated yet."]
    last, best = logged.evaluated[-1], metrics.best(logged.rows, name)
    column = metrics.evaluation("top1", name)
    done = last["epoch"] == config.num_epochs
    sentences.append(
        f"After the {'last epoch' if done else 'latest evaluated epoch'}, {last['epoch']} of {config.num_epochs}, its "
        f"top-1 on the split {split!r} is {last[column]:.2%}."
    )
    if metrics.stalled(logged.rows, name, config.patience):
        sentences.append(
            f"It ended there by config.patience={config.patience}: no epoch since its best one was better."
        )
    if best["epoch"] == last["epoch"]:
        sentences.append("That is its best epoch, too.")
    else:
        sentences.append(
            f"Its best epoch was {best['epoch']}, with {best[column]:.2%}: chosen on the same images, so an optimistic "
            "number."
        )
    there = [f"{best[metrics.evaluation('top1', name, other)]:.2%} on {other!r}" for other in others]
    return [*sentences, f"At its best epoch it has {', '.join(there)}."] if there else sentences


def _against_alone(logged: Logged, workdirs: Sequence[Path]) -> list[str]:
    """How much better the student is than alone, or how to find out."""
    if not logged.evaluated:
        return []
    if logged.resolved.config.method == "independent":
        return ["<p>In independent no member learns from another: this is what the student comes to alone.</p>"]
    if found := _alone_as_far(logged, workdirs):
        return [f"<p>{escape(_difference_to(logged, *found))}</p>"]
    unknown = (
        "How much of its top-1 it owes to the pool is unknown: beside this run there is none of the same student alone "
        "with the same budget that has come as far. "
    )
    command = alone_command(logged)
    if command is None:
        fields = "config.method=independent and config.num_networks=1"
        return [f"<p>{unknown}The same fields with {fields} train it, in a workdir beside this one.</p>"]
    return [f"<p>{unknown}This trains it:</p>", f"<pre>{whole(command)}</pre>"]


def _alone_as_far(logged: Logged, workdirs: Sequence[Path]) -> tuple[Alone, Row] | None:
    """A run of the student alone that has come as far, and its row of that epoch. None of a run that is one itself."""
    if logged.resolved.config.method == "independent":
        return None
    epoch, baselines = logged.evaluated[-1]["epoch"], alone_beside(logged, workdirs)
    reached = ((alone, row) for alone in baselines for row in metrics.evaluated(alone.rows) if row["epoch"] == epoch)
    return next(reached, None)


def _difference_to(logged: Logged, alone: Alone, row: Row) -> str:
    ours = logged.evaluated[-1][metrics.evaluation("top1", logged.names[-1])]
    theirs = row[metrics.evaluation("top1", f"0_{alone.record.architectures[0]}")]
    seed = alone.record.config["seed"]
    other = "" if seed == logged.record.config["seed"] else f", with the seed {seed}"
    return (
        f"The same student trained alone, with the same budget, has {theirs:.2%} after epoch {row['epoch']} "
        f"({shown(alone.workdir)}{other}): in the pool it has {difference(ours - theirs)}. One run each: how much of "
        "it is chance, several seeds tell (python -m orc_jax.compare)."
    )


def difference(share: float) -> str:
    """A difference of accuracies: "1.11 percentage points more"."""
    points = round(100 * share, 2)
    if not points:
        return "just as much"
    return f"{abs(points):.2f} percentage points {'more' if points > 0 else 'less'}"


def shown(path: Path) -> str:
    """A path from the working directory if it is below that, or whole."""
    relative = os.path.relpath(path)
    return str(path.absolute()) if relative.startswith("..") else relative


def alone_beside(logged: Logged, workdirs: Sequence[Path]) -> list[Alone]:
    """Runs of the same student alone with the same data and budget: on the page, beside the run, or in its comparison.

    Those of the same seed come first.
    """
    here, found = logged.record, {}
    for folder in _places(logged.workdir.absolute(), workdirs):
        there = None
        with contextlib.suppress(UserError):  # damaged: none of this run
            there = records.read(folder)
        if there is not None and is_alone(there, here):
            found[folder] = Alone(folder, there, metrics.read(folder))
    return sorted(found.values(), key=lambda alone: alone.record.config["seed"] != here.config["seed"])


def _places(workdir: Path, workdirs: Sequence[Path]) -> Iterable[Path]:
    yield from (path.absolute() for path in workdirs)
    for folder, pattern in ((workdir, "*"), (workdir.parent, "*"), (workdir.parent.parent, f"*/{workdir.name}")):
        yield from sorted(path.parent for path in folder.glob(f"{pattern}/{records.FILE}"))


def is_alone(there: Record, here: Record) -> bool:
    """Whether `there` is a run of the student of `here` alone, with the same data and budget."""
    student = here.architectures[-1:]
    if there.imported is not None or there.config["method"] != "independent" or there.architectures != student:
        return False
    fields, others = configs.flat(here.config), configs.flat(there.config)
    counted = (name for name in fields if name not in NOT_ALONE and name.partition(".")[0] not in METHODS)
    data = ("num_train", "class_names", "image_shape")
    same_data = all(getattr(there, name) == getattr(here, name) for name in data)
    started = [transfer.of_roles(of["init"], ["student"]) for of in (fields, others)]
    return same_data and started[0] == started[1] and all(fields[name] == others.get(name) for name in counted)


def alone_command(logged: Logged) -> str | None:
    """The command of the run, for its student alone; None if it was not started by one that can be given again."""
    command, config = logged.record.command, logged.resolved.config
    if not command.startswith(TRAINING):
        return None
    words = [word for word in shlex.split(command) if not word.startswith("--resume")]
    words += ["--config.method=independent", "--config.num_networks=1"]
    words += [f"--config.{field}=" for field in ("pivot_checkpoint", "method_options") if config[field]]
    if config.init:
        words.append(f"--config.init={transfer.of_roles(config.init, ['student'])}")
    return shlex.join([*words, f"--workdir={logged.workdir.with_name(logged.workdir.name + '_alone')}"])


def of_run(logged: Logged) -> list[tuple[str, str]]:
    """Date, duration, seed, command, version and hardware of a run."""
    stages = [metrics.read(logged.workdir / stage.name, metrics.TIMING) for stage in logged.resolved.method.stages]
    return [
        ("Date", date(logged.timing)),
        ("Duration", _duration(logged.timing, [rows for rows in stages if rows])),
        ("Seed", str(logged.record.config["seed"])),
        *of_record(logged.record),
    ]


def of_record(record: Record | Comparison) -> list[tuple[str, str]]:
    """Command, version and hardware."""
    versions = [f"{name} {record.versions[name]}" for name in ("orc_jax", "jax", "python") if name in record.versions]
    return [
        ("Command", record.command or UNKNOWN),
        ("Version", ", ".join(versions) or UNKNOWN),
        ("Hardware", hardware(record)),
    ]


def devices(record: Record | Comparison) -> str:
    """How many of which kind: "4 x cpu"."""
    kinds = record.devices
    return ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds)) or "devices unknown"


def hardware(record: Record | Comparison) -> str:
    """Devices, and the machine they are in: "4 x cpu; AMD EPYC, 2 cores, 8 GiB, Linux x86_64"."""
    if not record.machine:
        return f"{devices(record)}; the machine was not recorded"
    of = record.machine
    return f"{devices(record)}; {of['processor']}, {of['cores']} cores, {of['memory']}, {of['system']}"


def date(timing: Sequence[Row]) -> str:
    """When the last epoch of a log ended."""
    if not timing:
        return "no epoch has ended yet"
    return moment(timing[-1][metrics.AT]) if metrics.AT in timing[-1] else UNKNOWN


def moment(at: str) -> str:
    """A time of a log, as `2026-11-26 02:05 UTC`."""
    return datetime.fromisoformat(at).strftime("%Y-%m-%d %H:%M UTC")


def _duration(timing: Sequence[Row], stages: Sequence[Sequence[Row]]) -> str:
    if not timing:
        return "no epoch has ended yet"
    own, before = metrics.took(timing), [metrics.took(rows) for rows in stages]
    known = [seconds for seconds in before if seconds is not None]
    if own is None or len(known) < len(before):
        return UNKNOWN
    text = f"{duration(own)}, compilation and evaluations included"
    return text + (f", and {duration(sum(known))} for the stages before" if known else "")
