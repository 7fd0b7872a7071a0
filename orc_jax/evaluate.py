"""Evaluation of a whole pool in one program, during training and from a checkpoint."""

import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from orc_jax import checkpoint, logs, parallel
from orc_jax.config import members, validate
from orc_jax.data import feed, sets
from orc_jax.errors import UserError
from orc_jax.run import Run, build, check_evaluable
from orc_jax.step import Stacks, StackState, make_evaluation_step


def evaluator(run: Run) -> Callable[[Stacks], dict]:
    """A function that evaluates the stacks of `run` on its test set, which it places on the devices once.

    It returns {"examples", "members": [{"name", "role", "top1", "top5", "loss"} ...], "target_student", "ensemble"}:
    top-1 and top-5 as fractions, loss in nats; the ensemble is the members' mean probability. Every example counts
    once.
    """
    data = feed.resident(run.dataset.test, run.devices)
    evaluation_step = parallel.data_parallel(make_evaluation_step(run.setup), run.devices, donate=False)
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
        results = [{"name": name, "role": role(i, len(names)), **rows[i]} for i, name in enumerate(names)]
        return {
            "examples": int(sums.count),
            "members": results,
            "target_student": results[-1],
            "ensemble": rows[-1],
        }

    return evaluate


def role(member: int, num_members: int) -> str:
    """What a member is in its pool."""
    if member == num_members - 1:
        return "target student"
    return "pivot teacher" if member == 0 else "assistant"


def evaluation_table(title: str, result: dict):
    """The result of an evaluation as a table."""
    rows = [
        (row["name"], row["role"], f"{row['top1']:.2%}", f"{row['top5']:.2%}", f"{row['loss']:.4f}")
        for row in [*result["members"], {"name": "ensemble", "role": "all members"} | result["ensemble"]]
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
    validate(config, len(devices))
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
        pool, params, batch_stats = checkpoint.restore_networks(manager, step, description, run.sharding)
    stacks = {stack.name: StackState(params[stack.name], batch_stats[stack.name], ()) for stack in pool.stacks}
    result = {"step": step, "dataset": config.dataset, "split": config.eval_split} | evaluator(run)(stacks)
    title = f"{config.dataset} {config.eval_split}: {result['examples']} examples, checkpoint of step {step} ({which})"
    console.print(evaluation_table(title, result))
    path = workdir / f"evaluation_{step}.json"
    try:
        path.write_text(json.dumps(result, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"--workdir={workdir}: the result cannot be written: {error}") from error
    console.print(f"written to {path}", soft_wrap=True)
