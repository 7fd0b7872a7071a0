"""Trains every method with the same budget, and tabulates what becomes of the target student.

python -m scripts.compare --config configs/digits.py --methods orc,dgkd,independent --seeds 5

Runs of one seed have in common: the images and their order, the number of epochs, the initial target student, the
initial member of every position, and the pre-trained teacher. The pool is that of the config, with these exceptions:
independent trains the target student alone; kd and switokd the teacher and the target student; pcl, whose peers are of
one architecture, as many copies of the target student.

Everything is kept in --workdir; the same command goes on where it stopped, and repeats nothing. It writes compare.md,
compare.csv and compare.png.
"""

import csv
import json
import shlex
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from absl import app, flags
from ml_collections import ConfigDict
from rich.console import Console

from orc_jax import commands, main, pretrained
from orc_jax.config import Resolved, resolve
from orc_jax.data import sets
from orc_jax.describe import forward_flops, step_flops
from orc_jax.errors import require, require_choice
from orc_jax.methods import METHODS
from orc_jax.pool import names_of
from orc_jax.run import build
from orc_jax.training import train
from orc_jax.workdir import metrics, record
from orc_jax.workdir.files import replace_text

NAMES = flags.DEFINE_list("methods", list(METHODS), "Which methods, in the order of the table.")
SEEDS = flags.DEFINE_integer("seeds", 3, "How many seeds, from config.seed on.")

# What differs from the config's pool, by method.
POOLS = {
    "independent": {"num_networks": 1},
    "kd": {"num_networks": 2, "assistants": "ladder"},
    "switokd": {"num_networks": 2, "assistants": "ladder"},
    "pcl": {"assistants": "copies"},  # and the student in place of the teacher
}


class Result(NamedTuple):
    """What one run has come to."""

    last: float  # top-1 of the target student after the last epoch
    best: float  # at its best epoch
    ensemble: float  # of the pool, after the last epoch
    seconds: float  # of training, its stages included; neither compilation nor evaluation


def command(argv: list[str]) -> None:
    """Runs the comparison that the flags describe."""
    del argv
    commands.quiet()
    main.keep_programs()  # seeds of one method have one program
    config = main.CONFIG.value
    workdir = Path(main.WORKDIR.value or f"runs/compare_{config.dataset}")
    with commands.reported(workdir):
        compare(config, NAMES.value, SEEDS.value, workdir, Console())


def compare(config: ConfigDict, methods: Sequence[str], seeds: int, workdir: Path, console: Console) -> None:
    """Trains what is not trained yet, and writes the table.

    Args:
        config: of all runs; its method and pool are replaced where they have to be.
        methods: in the order of the table.
        seeds: how many, from `config.seed` on.
        workdir: for the runs and the table.
        console: where to print.

    Raises:
        UserError: for bad input, before the first run.
    """
    require("--seeds", seeds, seeds >= 1, "at least 1")
    for method in methods:
        require_choice("--methods", method, METHODS)
    plans = {m: [method_run(config, m, config.seed + i, workdir) for i in range(seeds)] for m in methods}
    results = {m: [] for m in plans}
    for i in range(seeds):
        for method, runs in plans.items():
            results[method].append(result_of(runs[i], run_folder(workdir, method, runs[i].config.seed), console))
    costs = {method: cost(runs[0], run_folder(workdir, method, runs[0].config.seed)) for method, runs in plans.items()}
    write_markdown(workdir / "compare.md", config, results, costs)
    write_csv(workdir / "compare.csv", config, results)
    plot(workdir / "compare.png", config, results)
    console.print((workdir / "compare.md").read_text(), markup=False, highlight=False, soft_wrap=True)


def run_folder(workdir: Path, method: str, seed: int) -> Path:
    """Where the run of a method and a seed is kept."""
    return workdir / method / f"seed_{seed}"


def method_run(config: ConfigDict, method: str, seed: int, workdir: Path) -> Resolved:
    """The config of one run of the comparison."""
    config = config.copy_and_resolve_references()
    config.method, config.seed, config.pivot_checkpoint = method, seed, ""
    config.update(POOLS.get(method, {}))
    if method == "pcl":
        config.teacher = config.student
    resolved = resolve(config)
    if resolved.method.stages and config.pretrain_epochs:
        resolved = resolved.replace(pivot_checkpoint=str(run_folder(workdir, "pivot", seed)))
    return resolved


def pivot_run(resolved: Resolved) -> Resolved:
    """The config that trains the pivot teacher of a run by itself."""
    teacher, epochs = resolved.config.teacher, resolved.config.pretrain_epochs
    return resolved.replace(
        method="independent", num_networks=1, student=teacher, num_epochs=epochs, pivot_checkpoint=""
    )


def result_of(run: Resolved, folder: Path, console: Console) -> Result:
    """Trains a run, and the teacher that it needs, unless that is done already."""
    folders = [folder]
    if run.config.pivot_checkpoint:
        folders.append(Path(run.config.pivot_checkpoint))
        train_once(pivot_run(run), folders[-1], console)
    train_once(run, folder, console)
    folders += sorted(path.parent for path in folder.glob(f"*/{metrics.METRICS}"))  # of its other stages
    rows, target = metrics.read(folder), names_of(run.architectures)[-1]
    last, top1 = metrics.evaluated(rows)[-1], metrics.evaluation("top1", target)
    return Result(
        last=last[top1],
        best=metrics.best(rows, target)[top1],
        ensemble=last[metrics.evaluation("top1", metrics.ENSEMBLE)],
        seconds=sum(map(seconds_of, folders)),
    )


def train_once(run: Resolved, folder: Path, console: Console) -> None:
    """Trains a run unless it is finished."""
    rows, there = metrics.read(folder), record.read(folder)
    if rows and there and rows[-1]["epoch"] == run.config.num_epochs:
        here = there._replace(config=json.loads(run.config.to_json()), architectures=run.architectures)
        if not record.differences(there, here):
            return
    train(run, folder, console)  # which refuses a folder of another run
    jax.clear_caches()  # hundreds of programs in one process would exhaust the memory maps of Linux


def seconds_of(folder: Path) -> float:
    """Seconds of training of a run, from the speed of its epochs."""
    examples = record.require(folder).num_train
    speeds = [row[metrics.SPEED] for row in metrics.read(folder, metrics.TIMING) if metrics.SPEED in row]
    return sum(examples / speed for speed in speeds)


def cost(resolved: Resolved, folder: Path) -> float:
    """Floating-point operations of a run and all its stages, in forward passes of the target student per example."""
    config = resolved.config
    dataset = sets.load(config, print, resolved.plugins)
    run = build(resolved, dataset, jax.local_devices()[:1])
    runs = [run]
    if config.pivot_checkpoint:
        runs.append(build(pivot_run(resolved), dataset, run.devices))
    runs += [source.run for source in pretrained.plan(run, folder) if source.run]
    total = sum(step_flops(one) * one.num_steps for one in runs)
    student = forward_flops(run)[run.spec.architectures[-1]]
    return total / (run.num_steps * config.batch_size * student)


def percent(values: list[float], sign: str = "") -> str:
    """Mean and sample standard deviation of fractions, in percent."""
    points = 100 * np.array(values)
    return f"{points.mean():{sign}.2f}" + (f" ± {points.std(ddof=1):.2f}" if len(points) > 1 else "")


def write_markdown(path: Path, config: ConfigDict, results: dict[str, list[Result]], costs: dict[str, float]) -> None:
    """The table, with the command and the machine that made it."""
    baseline = results.get("independent")
    lines = [
        "| method | last epoch | over independent | best epoch | ensemble | cost | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for method, runs in results.items():
        over = ""
        if baseline and method != "independent":
            over = percent([a.last - b.last for a, b in zip(runs, baseline, strict=True)], "+")
        last, best, ensemble = (
            percent([getattr(run, field) for run in runs]) for field in ("last", "best", "ensemble")
        )
        seconds = np.mean([run.seconds for run in runs])
        lines.append(f"| {method} | {last} | {over} | {best} | {ensemble} | {costs[method]:.1f} | {seconds:.0f} |")
    command = shlex.join(["python", "-m", "scripts.compare", *sys.argv[1:]])
    device = f"{len(jax.local_devices())} x {jax.local_devices()[0].device_kind}"
    count = len(next(iter(results.values())))
    text = f"""Target student {config.student} on {config.dataset} {config.eval_split}.
Top-1 accuracy in percent, mean ± standard deviation over {count} seeds.

{chr(10).join(lines)}

Over independent: differences between runs of the same seed. Best epoch: chosen on the same split, so optimistic.
Ensemble: of all members, last epoch. Cost: floating-point operations of everything that was trained, stages and teacher
included, in forward passes of the target student per training example. Seconds: of training, likewise.

`{command}`

{device}, jax {jax.__version__}, {date.today().isoformat()}
"""
    replace_text(path, text)


def write_csv(path: Path, config: ConfigDict, results: dict[str, list[Result]]) -> None:
    """One row per run."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["method", "seed", *Result._fields])
        for method, runs in results.items():
            writer.writerows([method, config.seed + i, *run] for i, run in enumerate(runs))


def plot(path: Path, config: ConfigDict, results: dict[str, list[Result]]) -> None:
    """Every run's last epoch as a dot, with mean and standard deviation, and the mean of the best epochs as a ring."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 0.8 + 0.4 * len(results)), layout="constrained")
    for y, runs in enumerate(results.values()):
        last, best = (100 * np.array([getattr(run, field) for run in runs]) for field in ("last", "best"))
        spread = last.std(ddof=1) if len(last) > 1 else 0.0
        axes.plot(last, [y] * len(last), ".", color="0.6", label=None if y else "one run, last epoch")
        label = None if y else "mean ± standard deviation"
        axes.errorbar(last.mean(), y, xerr=spread, fmt="o", color="C0", capsize=3, label=label)
        axes.plot(best.mean(), y, "o", markerfacecolor="none", color="C1", label=None if y else "mean of best epochs")
    axes.set_yticks(range(len(results)), results)
    axes.invert_yaxis()
    axes.set_xlabel(f"top-1 accuracy of the target student ({config.student}), {config.dataset}, %")
    axes.grid(axis="x", color="0.9")
    figure.legend(loc="outside lower center", ncols=3, fontsize="small", frameon=False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


if __name__ == "__main__":
    app.run(command, flags_parser=main.parse)
