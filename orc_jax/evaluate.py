"""Evaluation of a whole pool in one program, during training and from a checkpoint."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from orc_jax import display, hosts, parallel, places, terminal
from orc_jax.config import Resolved
from orc_jax.data import feed, sets
from orc_jax.data.splits import eval_splits
from orc_jax.data.types import Images, Records
from orc_jax.models.network import Params
from orc_jax.pool import Stacks
from orc_jax.run import Run, build, head_shapes
from orc_jax.step import Evaluation, TrainState, each_of, make_evaluation_step, make_observation_step
from orc_jax.terminal import doing
from orc_jax.workdir import checkpoint, metrics, record
from orc_jax.workdir.files import writing
from orc_jax.workdir.metrics import Row


def evaluator(run: Run) -> Callable[[Stacks], dict[str, Any]]:
    """A function that evaluates the stacks of `run` on its test set, which is placed on devices once.

    It returns {"examples", "members": [{"name", "role", "top1", "top5", "loss"} ...], "target_student", "ensemble"}:
    top-1 and top-5 as fractions, loss in nats; the ensemble is the method's own, or the members' mean probability. A
    pool of equal networks has "mean" as well, the mean of the members' figures. Every example counts once.
    """
    evaluate, _ = _evaluators(run)
    return lambda stacks: evaluate(stacks)[0]


Evaluate = Callable[[Stacks], list[dict[str, Any]]]  # stacks of runs, stacked if there are several -> a result for each


def _evaluators(run: Run, replicas: int = 1) -> tuple[Evaluate, dict[str, Evaluate]]:
    """Of the test set of `run`, and of its other splits by their names; those of one shape share one program."""
    step = make_evaluation_step(run.setup, run.method)
    evaluation_step = parallel.DataParallel(_over_replicas(step, replicas), run.devices, donate=False)

    def of(examples: Images | Records) -> Evaluate:
        dataset, data = run.dataset._replace(test=examples), feed.resident(examples, run.devices)

        def evaluate(stacks: Stacks) -> list[dict[str, Any]]:
            parts = []
            with feed.evaluation(dataset, run.config, run.devices) as batches:
                for batch in batches:
                    parts.append(evaluation_step(stacks, data, batch))
                    jax.block_until_ready(parts[-feed.AHEAD :][0])  # or the batches of a streamed set would pile up
            sums = jax.tree.map(lambda *x: np.sum(np.array(x, np.float64), axis=0), *jax.device_get(parts))
            return [_result(run, each) for each in each_of(sums, replicas)]

        return evaluate

    return of(run.dataset.test), {name: of(examples) for name, examples in run.dataset.others}


def _over_replicas(step: Callable, replicas: int) -> Callable:
    return step if replicas == 1 else jax.vmap(step, in_axes=(0, None, None))


def _result(run: Run, sums: Evaluation) -> dict[str, Any]:
    names = run.spec.member_names
    rows = [
        {"top1": float(top1), "top5": float(top5), "loss": float(loss)}
        for top1, top5, loss in np.stack([sums.top1, sums.top5, sums.loss], axis=1) / sums.count
    ]
    results = [{"name": name, "role": run.method.roles[i], **rows[i]} for i, name in enumerate(names)]
    summary = {"examples": int(sums.count), "members": results, "target_student": results[-1], "ensemble": rows[-1]}
    if len(names) > 1 and len(run.spec.stacks) == 1:
        summary["mean"] = {metric: float(np.mean([row[metric] for row in rows[:-1]])) for metric in rows[0]}
    return summary


def evaluation(
    runs: Sequence[Run],
) -> Callable[[Stacks, Sequence[list[Row]], int], tuple[list[dict[str, Any]], list[Row]]]:
    """A function that evaluates the stacks of runs: (stacks, rows so far of each, epoch) -> results, columns of rows.

    The results are those of the split which selects the best checkpoint. Other splits have columns where the target
    student is the best so far, and the last time.
    """
    run, target = runs[0], runs[0].spec.member_names[-1]
    first, others = _evaluators(run, len(runs))

    def evaluate(stacks: Stacks, histories: Sequence[list[Row]], epoch: int) -> tuple[list[dict[str, Any]], list[Row]]:
        results = first(stacks)
        rows = [metrics.of_evaluation(result) for result in results]
        wanted = [
            epoch == run.config.num_epochs
            or metrics.is_best(history, result, target)
            or metrics.stalled([*history, {"epoch": epoch} | columns], target, run.config.patience)
            for history, result, columns in zip(histories, results, rows, strict=True)
        ]
        if any(wanted):
            for name, other in others.items():
                for i, result in enumerate(other(stacks)):
                    rows[i] |= metrics.of_evaluation(result, name) if wanted[i] else {}
        return results, rows

    return evaluate


def renewer(run: Run, replicas: int = 1) -> Callable[[TrainState], TrainState]:
    """A function that renews what the method of `run` has found out on its held-out examples (see `HeldOut`)."""
    held_out, dataset = run.method.held_out, run.dataset._replace(test=run.dataset.held_out)
    assert held_out is not None
    data = feed.resident(dataset.test, run.devices)
    step = make_observation_step(run.setup, held_out.observe)
    observe = parallel.DataParallel(_over_replicas(step, replicas), run.devices, donate=False)

    def renewed(state: TrainState) -> TrainState:
        with feed.evaluation(dataset, run.config, run.devices) as batches:
            parts = jax.device_get([observe(state.stacks, data, batch) for batch in batches])
        sums = jax.tree.map(lambda *x: np.sum(np.array(x), axis=0), *parts)
        found = [held_out.renew(of) for of in each_of(sums, replicas)]
        of_all = found[0] if replicas == 1 else jax.tree.map(lambda *x: np.stack(x), *found)
        return state.replace(stacks=state.stacks | jax.device_put(of_all, run.sharding))

    return renewed


def evaluate_checkpoint(resolved: Resolved, workdir: Path, which: str, console: Console) -> dict[str, Any]:
    """Evaluates the checkpoint `which` ("latest", "best" or a step) of `workdir`; prints and writes the result.

    Raises:
        UserError: if there is no such checkpoint, or its pool and data are not those of the config.
    """
    config, there = resolved.config, record.require(workdir)
    checkpoint.step_of(workdir, which)
    here = there._replace(config=json.loads(config.to_json()), architectures=resolved.architectures)
    record.require_evaluable(there, here, resolved.models, workdir)  # before anything is read
    with doing(console, f"reading {config.dataset}"):
        dataset = sets.load(
            config, terminal.warner(console), resolved.plugins, trains=False, class_names=there.class_names
        )
    # Nothing is trained here, so of the training set, which need not be there, nothing is held out.
    resolved = resolved._replace(method=resolved.method._replace(held_out=None))
    # normalised as in training, also where the constants were computed from another training split
    whole = there.seen_whole(dataset.whole)
    run = build(resolved, dataset._replace(mean=there.mean, std=there.std, whole=whole), jax.local_devices())
    record.require_evaluable(there, run.record(), resolved.models, workdir)
    if note := record.assumed_order(there, dataset.class_names):
        terminal.warner(console)(note)
    with doing(console, "reading the checkpoint"):
        own, ema = resolved.plugins, config.eval_ema
        trained = checkpoint.restore_networks(workdir, there, which, run.sharding, own, heads(run), ema=ema)
    split, *_ = eval_splits(config)
    result = {"step": trained.step, "dataset": config.dataset, "split": split}
    with doing(console, "evaluating"):
        evaluate, of_others = _evaluators(run)
        result |= evaluate(trained.pool.stacks)[0]
        others = {name: other(trained.pool.stacks)[0] for name, other in of_others.items()}
    console.print(display.evaluation_table(result, which))
    for name, other in others.items():
        console.print(display.evaluation_table(result | {"split": name} | other, which))
    result |= {"others": others} if others else {}
    if hosts.is_main():
        also = "" if there.imported else _other_than(there.fields, config)
        path = workdir / f"evaluation_{trained.step}{also}.json"
        with writing(f"--workdir={workdir}: the result"):
            path.write_text(json.dumps(result, indent=2) + "\n")
        console.print(f"written to {path}", soft_wrap=True)
    return result


def _other_than(own: ConfigDict, config: ConfigDict) -> str:
    """For the name of a file: what an evaluation is of, where that is not what a run's `own` are of."""
    parts = []
    here, there = (Path(of.data_dir).expanduser().absolute() for of in (config, own))
    if config.dataset in sets.FILES and here != there:
        parts.append(here.name)
    if eval_splits(config) != eval_splits(own) or parts:
        parts += eval_splits(config)
    if config.eval_ema != own.eval_ema:
        parts.append("averages" if config.eval_ema else "members")
    return "".join("_" + places.plain(part.replace(":", "-")).strip(".") for part in parts)


def heads(run: Run) -> dict[str, dict[str, Params]]:
    """Parameters and statistics, if there are any, that an evaluation by the method needs besides the members'."""
    if not (run.method.ensemble or run.method.answers):
        return {}
    return head_shapes(run)
