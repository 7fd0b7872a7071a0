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
from absl import app, flags, logging
from ml_collections import ConfigDict
from rich.console import Console

from orc_jax import checkpoint, logs, main, pretrained
from orc_jax import config as configs
from orc_jax.data import sets
from orc_jax.describe import forward_flops, step_flops
from orc_jax.errors import UserError, require, require_choice
from orc_jax.methods import METHODS
from orc_jax.run import FREE_FIELDS, build
from orc_jax.train import train

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
    logging.set_verbosity(logging.ERROR)
    main.keep_programs()  # seeds of one method have one program
    config = main.CONFIG.value
    workdir = Path(main.WORKDIR.value or f"runs/compare_{config.dataset}")
    try:
        compare(config, NAMES.value, SEEDS.value, workdir, Console())
    except UserError as error:
        main.fail(str(error))
    except KeyboardInterrupt:
        main.fail("interrupted; the same command goes on from the last checkpoint", status=130)


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
    plans = {m: [method_config(config, m, config.seed + i, workdir) for i in range(seeds)] for m in methods}
    for runs in plans.values():
        configs.validate(runs[0], len(jax.local_devices()))
    results = {m: [] for m in plans}
    for i in range(seeds):
        for method, runs in plans.items():
            results[method].append(result_of(runs[i], run_folder(workdir, method, runs[i].seed), console))
    costs = {method: cost(runs[0], run_folder(workdir, method, runs[0].seed)) for method, runs in plans.items()}
    write_markdown(workdir / "compare.md", config, results, costs)
    write_csv(workdir / "compare.csv", config, results)
    plot(workdir / "compare.png", config, results)
    console.print((workdir / "compare.md").read_text(), markup=False, highlight=False, soft_wrap=True)


def run_folder(workdir: Path, method: str, seed: int) -> Path:
    """Where the run of a method and a seed is kept."""
    return workdir / method / f"seed_{seed}"


def method_config(config: ConfigDict, method: str, seed: int, workdir: Path) -> ConfigDict:
    """The config of one run of the comparison."""
    config = config.copy_and_resolve_references()
    config.method, config.seed = method, seed
    config.update(POOLS.get(method, {}))
    if method == "pcl":
        config.teacher = config.student
    stages = configs.build_method(config, configs.members(config)).stages
    config.pivot_checkpoint = str(run_folder(workdir, "pivot", seed)) if stages and config.pretrain_epochs else ""
    return config


def pivot_config(config: ConfigDict) -> ConfigDict:
    """The config that trains the teacher of `config` by itself."""
    config = config.copy_and_resolve_references()
    config.update(method="independent", num_networks=1, student=config.teacher, pivot_checkpoint="")
    config.num_epochs = config.pretrain_epochs
    return config


def result_of(config: ConfigDict, folder: Path, console: Console) -> Result:
    """Trains a run, and the teacher that it needs, unless that is done already."""
    folders = [folder]
    if config.pivot_checkpoint:
        folders.append(Path(config.pivot_checkpoint))
        train_once(pivot_config(config), folders[-1], console)
    train_once(config, folder, console)
    folders += sorted(path.parent for path in folder.glob("*/metrics.jsonl"))  # of its other stages
    target = configs.members(config)
    target = f"eval/top1/{len(target) - 1}_{target[-1]}"
    evaluated = [row for row in logs.read_rows(folder) if target in row]
    return Result(
        last=evaluated[-1][target],
        best=max(row[target] for row in evaluated),
        ensemble=evaluated[-1]["eval/top1/ensemble"],
        seconds=sum(map(seconds_of, folders)),
    )


def train_once(config: ConfigDict, folder: Path, console: Console) -> None:
    """Trains a run unless it is finished."""
    rows, description = logs.read_rows(folder), checkpoint.read_description(folder)
    if rows and description and rows[-1]["epoch"] == config.num_epochs:
        here, there = (configs.flat(json.loads(c)) for c in (config.to_json(), json.dumps(description["config"])))
        if all(there.get(name) == here[name] for name in here.keys() - set(FREE_FIELDS)):
            return
    train(config, folder, console)  # which refuses a folder of another run
    jax.clear_caches()  # hundreds of programs in one process would exhaust the memory maps of Linux


def seconds_of(folder: Path) -> float:
    """Seconds of training of a run, from the speed of its epochs."""
    examples = json.loads((folder / checkpoint.DESCRIPTION).read_text())["num_train"]
    speeds = [row["images_per_second"] for row in logs.read_rows(folder, logs.TIMING) if "images_per_second" in row]
    return sum(examples / speed for speed in speeds)


def cost(config: ConfigDict, folder: Path) -> float:
    """Floating-point operations of a run and all its stages, in forward passes of the target student per example."""
    dataset = sets.load(config, print)
    run = build(config, dataset, jax.local_devices()[:1], configs.members(config))
    runs = [run]
    if config.pivot_checkpoint:
        teacher = pivot_config(config)
        runs.append(build(teacher, dataset, run.devices, configs.members(teacher)))
    runs += [source.run for source in pretrained.plan(run, folder) if source.run]
    total = sum(step_flops(one) * one.num_steps for one in runs)
    student = forward_flops(run)[run.setup.pool.architectures[-1]]
    return total / (run.num_steps * config.batch_size * student)


def percent(values: list[float], sign: str = "") -> str:
    """Mean and sample standard deviation of fractions, in percent."""
    values = 100 * np.array(values)
    return f"{values.mean():{sign}.2f}" + (f" ± {values.std(ddof=1):.2f}" if len(values) > 1 else "")


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
    logs.replace_text(path, text)


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
