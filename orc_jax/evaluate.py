"""Evaluation of a whole pool in one program, during training and from a checkpoint."""

import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from orc_jax import checkpoint, hosts, logs, parallel
from orc_jax.config import members, validate
from orc_jax.data import feed, sets
from orc_jax.errors import UserError
from orc_jax.pool import Params
from orc_jax.run import Run, abstract_state, build, check_evaluable
from orc_jax.step import Stacks, StackState, make_evaluation_step


def evaluator(run: Run) -> Callable[[Stacks], dict]:
    """A function that evaluates the stacks of `run` on its test set, which it places on the devices once.

    It returns {"examples", "members": [{"name", "role", "top1", "top5", "loss"} ...], "target_student", "ensemble"}:
    top-1 and top-5 as fractions, loss in nats; the ensemble is the method's own, or the members' mean probability. A
    pool of equal networks has "mean" as well, the mean of the members' figures. Every example counts once.
    """
    data = feed.resident(run.dataset.test, run.devices)
    evaluation_step = parallel.DataParallel(
        make_evaluation_step(run.setup, run.method.ensemble), run.devices, donate=False
    )
    names = run.setup.pool.member_names

    def evaluate(stacks: Stacks) -> dict:
        parts = []
        with feed.evaluation(run.dataset, run.config, run.devices) as batches:
            for batch in batches:
                parts.append(evaluation_step(stacks, data, batch))
        sums = jax.tree.map(lambda *x: np.sum(np.array(x, np.float64), axis=0), *jax.device_get(parts))
        rows = [
            {"top1": float(top1), "top5": float(top5), "loss": float(loss)}
            for top1, top5, loss in np.stack([sums.top1, sums.top5, sums.loss], axis=1) / sums.count
        ]
        results = [{"name": name, "role": run.method.roles[i], **rows[i]} for i, name in enumerate(names)]
        summary = {"examples": int(sums.count), "members": results, "target_student": results[-1], "ensemble": rows[-1]}
        if len(names) > 1 and len(run.setup.pool.stacks) == 1:
            summary["mean"] = {metric: float(np.mean([row[metric] for row in rows[:-1]])) for metric in rows[0]}
        return summary

    return evaluate


def evaluation_table(title: str, result: dict) -> Table:
    """The result of an evaluation as a table."""
    joint = [{"name": name, "role": "all members"} | result[name] for name in ("mean", "ensemble") if name in result]
    rows = [
        (row["name"], row["role"], f"{row['top1']:.2%}", f"{row['top5']:.2%}", f"{row['loss']:.4f}")
        for row in [*result["members"], *joint]
    ]
    return logs.table(title, ("member", "role", "top-1", "top-5", "loss"), rows)


def evaluate_checkpoint(config: ConfigDict, workdir: Path, which: str, console: Console) -> None:
    """Restores a checkpoint of `workdir`, evaluates it, prints the result, and writes it as JSON.

    Args:
        config: the pool and the data; must be those of the checkpoint.
        workdir: of the run that was trained.
        which: "latest", "best" or a step.
        console: where to print.

    Raises:
        UserError: if there is no such checkpoint, or it is one of another pool.
    """
    devices = jax.local_devices()
    validate(config, jax.device_count())
    description = checkpoint.read_description(workdir)
    if description is None:
        raise UserError(f"--workdir={workdir} holds no run: there is no {checkpoint.DESCRIPTION} in it")
    # normalised as in training, also where the constants were computed from a training split that is not this one
    constants = {field: tuple(description[field]) for field in ("mean", "std")}
    dataset = sets.load(config, logs.warn(console))._replace(**constants)
    run = build(config, dataset, devices, members(config))
    check_evaluable(run, description, workdir)
    with checkpoint.open_manager(workdir, create=False) as manager:
        step = checkpoint.find_step(manager, which)
        _, params, batch_stats = checkpoint.restore_networks(manager, step, description, run.sharding, heads(run))
    stacks = {name: StackState(params[name], batch_stats.get(name, {}), ()) for name in params}
    result = {"step": step, "dataset": config.dataset, "split": config.eval_split} | evaluator(run)(stacks)
    title = f"{config.dataset} {config.eval_split}: {result['examples']} examples, checkpoint of step {step} ({which})"
    console.print(evaluation_table(title, result))
    if not hosts.is_main():
        return
    path = workdir / f"evaluation_{step}.json"
    try:
        path.write_text(json.dumps(result, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"--workdir={workdir}: the result cannot be written: {error}") from error
    console.print(f"written to {path}", soft_wrap=True)


def heads(run: Run) -> dict[str, Params]:
    """The parameters that the method's own ensemble needs besides the members'."""
    if not run.method.ensemble:
        return {}
    stacks = abstract_state(run).stacks
    return {name: stack.params for name, stack in stacks.items() if name not in run.setup.pool.architectures}
