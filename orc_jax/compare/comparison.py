"""A comparison from its first run to its table: it goes on where it stopped, and without runs that fail."""

import contextlib
import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict
from rich.console import Console

from orc_jax import commands
from orc_jax.compare.runs import (
    Planned,
    Variant,
    cost,
    entry,
    groups,
    is_finished,
    jobs,
    plan,
    result_of,
    seconds_left,
)
from orc_jax.compare.variants import OF_THE_IMAGES
from orc_jax.config import Resolved
from orc_jax.data import sets
from orc_jax.data.batches import seed_of
from orc_jax.data.splits import eval_splits
from orc_jax.data.types import Dataset
from orc_jax.errors import Interrupted, UserError, require
from orc_jax.fitting import OnEpoch
from orc_jax.report import figures
from orc_jax.report.comparison_page import ALONE, chosen, columns, failures, figure, method_rows, subject
from orc_jax.report.sections import counted
from orc_jax.report.story import hardware, moment
from orc_jax.terminal import Rows, doing, duration, warner
from orc_jax.training import train, train_together
from orc_jax.workdir import comparison, record
from orc_jax.workdir.comparison import Comparison
from orc_jax.workdir.files import locked, replace_text


def compare(
    config: ConfigDict,
    variants: Sequence[Variant],
    seeds: int,
    out: Path,
    console: Console,
    *,
    baseline: str = ALONE,
    published: Mapping[str, str] | None = None,
) -> Comparison:
    """Trains what is not trained yet, and writes the table after every run.

    Args:
        config: what the runs have in common, and whose teacher they share; `config.replicas` of them, if they can
            be, are trained at once; if that is 0, as many as `orc_jax.capacity` says.
        variants: in the order of the table.
        seeds: how many, from `config.seed` on.
        out: for the runs and the table.
        console: where to print.
        baseline: the variant that the others are measured by; "" is none.
        published: of rows the figures that were published.

    Raises:
        UserError: for bad input, before the first run; and at the end if runs have failed.
        Interrupted: if it was asked to stop.
    """
    require("config.replicas", config.replicas, config.replicas >= 0, "at least 0")
    replicas, config = config.replicas, config.copy_and_resolve_references()
    config.replicas = 1
    plans = plan(config, variants, seeds, out)
    dataset_of = reader(console)
    dataset = dataset_of(plans[0].run)  # what is wrong with it is told before anything is written
    if replicas > 1 and seeds > 1:
        require_common_images(plans[0].run.config, dataset, replicas)
    with locked(out):
        table = begun(config, plans, out)._replace(baseline=baseline, published=dict(published or {}))
        table = with_costs(table, plans, dataset_of, console)
        write(out, table)
        broken: dict[Path, str] = {}
        to_come = [i for i, run in enumerate(table.runs) if not run.is_finished]
        for group in groups([plans[i] for i in to_come], dataset_of, replicas):
            numbers = [to_come[i] for i in group]
            names = [f"run {i + 1} of {len(plans)}, {plans[i].name}" for i in numbers]
            left = seconds_left(plans, table)
            estimate = f"; about {duration(left)} left" if left else ""
            warner(console)(f"{'; '.join(names)}{estimate}")
            try:
                errors = attempt([plans[i] for i in numbers], dataset_of, broken, console)
            except Interrupted as stopped:
                raise Interrupted(f"{'; '.join(names)}: {stopped}", stopped.status) from None
            for i, name, error in zip(numbers, names, errors, strict=True):
                if error:
                    warner(console)(f"{name}, has failed: {error}")
                result = table.runs[i]._replace(error=error) if error else result_of(plans[i], out)
                table = table.replaced(i, result)
            table = with_costs(table, plans, dataset_of, console)
            write(out, table)
            console.print(so_far(table))
    warner(console)((out / "compare.md").read_text(encoding="utf-8"))
    if table.failed:
        raise UserError(
            f"{len(table.failed)} of {len(plans)} runs have failed: {failures(table)}. They are marked in {out}; the "
            "same command tries them again"
        )
    return table


def require_common_images(config: ConfigDict, dataset: Dataset, replicas: int) -> None:
    """Raises `UserError` where runs of several seeds, each with its own order of images, cannot be trained at once."""
    accepted = "accepted is 1, or one order for all seeds, such as config.data_seed=0"
    if config.data_seed < 0 and dataset.is_streamed:
        raise UserError(f"config.replicas={replicas}: the images of {config.dataset} are streamed; {accepted}")
    if config.data_seed < 0 and config.validation_share:
        raise UserError(f"config.replicas={replicas}: each seed holds out another config.validation_share; {accepted}")


def reader(console: Console) -> Callable[[Resolved], Dataset]:
    """A function that reads the set of a run, unless it is the one that was read last."""
    fields = (*OF_THE_IMAGES, "eval_split", "eval_splits", "batch_size", "stream")
    last: dict[str, Dataset] = {}

    def dataset_of(run: Resolved) -> Dataset:
        held_out_by = run.config.validation_share and seed_of(run.config)
        key = repr([held_out_by, *(run.config[field] for field in fields)])
        if key not in last:
            with doing(console, f"reading {run.config.dataset}"):
                dataset = sets.load(run.config, warner(console), run.plugins)
            last.clear()
            last[key] = dataset
        return last[key]

    return dataset_of


def begun(config: ConfigDict, plans: Sequence[Planned], out: Path) -> Comparison:
    """The comparison as it is before anything is trained: with the runs that are finished already."""
    runs = [result_of(one, out) if is_finished(one.run, one.folder) else entry(one, out) for one in plans]
    here = Comparison(
        config=json.loads(config.to_json()),
        runs=tuple(runs),
        costs={},
        command=record.command_line(),
        versions=record.versions(),
        devices=tuple(device.device_kind for device in jax.local_devices()),
        machine=record.machine(),
    )
    there = None
    with contextlib.suppress(UserError):  # damaged: its costs are counted again
        there = comparison.read(out)
    return here._replace(costs=there.costs) if there and there.config == here.config else here


def attempt(
    group: Sequence[Planned],
    dataset_of: Callable[[Resolved], Dataset],
    broken: dict[Path, str],
    console: Console,
    on_epoch: OnEpoch | None = None,
) -> list[str]:
    """Trains a run, or several in one program, and the teachers that they need, unless that is done.

    `broken` has the folders of what has failed so far, with the reasons; `on_epoch` is that of `train`, for the runs.

    Returns:
        Why each has failed, "" if it has not.
    """
    teachers = {folder: run for planned in group for run, folder in jobs(planned)[:-1]}
    _train(teachers, dataset_of, broken, console, None)
    for planned in group:
        if planned.teacher in broken:
            broken[planned.folder] = f"its teacher in {planned.teacher}: {broken[planned.teacher]}"
    _train({planned.folder: planned.run for planned in group}, dataset_of, broken, console, on_epoch)
    return [broken.get(planned.folder, "") for planned in group]


def _train(
    runs: Mapping[Path, Resolved],
    dataset_of: Callable[[Resolved], Dataset],
    broken: dict[Path, str],
    console: Console,
    on_epoch: OnEpoch | None,
) -> None:
    """Trains those runs that are not done; the folders of those that fail are put among the `broken`.

    Where the memory of a device does not suffice for several at once, half of them are trained, and then the others.
    """
    todo = [(run, folder) for folder, run in runs.items() if folder not in broken and not is_finished(run, folder)]
    if not todo:
        return
    dataset = dataset_of(todo[0][0])
    try:
        if len(todo) == 1:
            train(*todo[0], console, dataset=dataset, on_epoch=on_epoch)
        else:
            failed = train_together(todo, console, dataset, on_epoch)
            broken |= {folder: " ".join(str(error).split()) for folder, error in failed.items()}
        return
    except UserError as error:
        broken |= {folder: " ".join(str(error).split()) for _, folder in todo}
        return
    except jax.errors.JaxRuntimeError as error:
        told = commands.of_device(error)
        if told is None:
            raise
    finally:
        jax.clear_caches()  # hundreds of programs in one process would exhaust the memory maps of Linux
    message, status = told
    if len(todo) == 1 or status != 2:
        broken |= {folder: message for _, folder in todo}
        return
    warner(console)(f"{len(todo)} at once: {message}. Now half as many are")
    for half in (todo[: len(todo) // 2], todo[len(todo) // 2 :]):  # here, where what has failed holds no memory
        _train({folder: run for run, folder in half}, dataset_of, broken, console, on_epoch)


def with_costs(
    table: Comparison, plans: Sequence[Planned], dataset_of: Callable[[Resolved], Dataset], console: Console
) -> Comparison:
    """With the costs of those methods of which a run is finished."""
    for planned, run in zip(plans, table.runs, strict=True):
        if run.is_finished and run.method not in table.costs:
            with doing(console, f"counting the operations of {run.method}"):
                table = table._replace(costs=table.costs | {run.method: cost(planned, dataset_of(planned.run))})
    return table


def so_far(table: Comparison) -> Rows:
    """What the methods have come to, as narrow as a terminal."""
    rows = []
    for method, (_, last, over, best, *_) in zip(table.methods, method_rows(table), strict=True):
        runs = table.of(method)
        failed = sum(bool(run.error) for run in runs)
        done = f"{sum(run.is_finished for run in runs)} of {len(runs)}" + (f", {failed} failed" if failed else "")
        rows.append((method, done, last, over, best))
    finished = sum(run.is_finished for run in table.runs)
    title = f"{finished} of {len(table.runs)} runs finished; top-1 in percent"
    return Rows(title, ("method", "finished", *columns(table)[1:4]), rows)


def write(out: Path, table: Comparison) -> None:
    """The record, the table, a row for each run, and the plot."""
    comparison.write(out, table)
    replace_text(out / "compare.md", markdown(table))
    fields = ("method", "seed", "last", "best", "ensemble", "seconds", "error")
    with (out / "compare.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*fields, *(f"best_on_{name}" for name in table.other_splits)])
        writer.writerows(
            [*(getattr(run, field) for field in fields), *(run.others.get(name) for name in table.other_splits)]
            for run in table.by_method
        )
    (out / "compare.png").write_bytes(figures.as_png(figure(table)))


def markdown(table: Comparison) -> str:
    """The table, with the command and the machine that made it."""
    heads = columns(table)
    rows = [heads, ["---"] * len(heads), *method_rows(table)]
    lines = "\n".join(f"| {' | '.join(row)} |" for row in rows).replace("| --- ", "|---").replace("|--- |", "|---|")
    ended = max((run.ended for run in table.runs), default="")
    seeds = counted(len({run.seed for run in table.runs}), "seed")
    failed = f"Failed: {failures(table)}.\n\n" if table.failed else ""
    about = (
        f"Target student {subject(table)} {eval_splits(table.config)[0]}." if not table.published else "Published rows."
    )
    over = f"Over {table.baseline}: differences between runs of the same seed. " if table.baseline else ""
    told = (
        "\nPublished: mean ± standard deviation in percent, how certain the figure is (A: the authors' own; B: quoted "
        "by others; C: by a\nsummary, so that its cell is not certain; D: inferred), and the epoch that it is of.\n"
        if table.published
        else ""
    )
    return f"""{about}
Top-1 accuracy in percent, mean ± standard deviation over {seeds}.

{lines}

{failed}{over}Best epoch: {chosen(table)} Ensemble: of all members, last epoch. Cost: floating-point operations of
everything that was trained, stages and teacher included, in forward passes of the target student per training example.
Seconds: of training, likewise.
{told}
`{table.command}`

{hardware(table)}, jax {table.versions["jax"]}{f", {moment(ended)}" if ended else ""}
"""
