"""Checkpoints by Orbax: the latest and the best of a run, with the description of the run beside the arrays."""

import json
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import Sharding
from orbax.checkpoint.checkpoint_managers import preservation_policy

from orc_jax.errors import UserError
from orc_jax.logs import replace_text
from orc_jax.pool import Params, Pool, init, make_pool

DESCRIPTION = "config.json"  # of a run, in its workdir
DESCRIBED = ("config", "members", "num_classes", "class_names", "num_train", "image_shape", "mean", "std")
SELECTED_BY = "target_top1"  # the metric that "best" refers to


def open_manager(workdir: Path, *, create: bool) -> ocp.CheckpointManager:
    """The manager of the checkpoints of `workdir`, which keeps the two latest and the best. Saves are asynchronous."""
    policy = preservation_policy.AnyPreservationPolicy(
        [
            preservation_policy.LatestN(2),
            preservation_policy.BestN(get_metric_fn=lambda metrics: metrics[SELECTED_BY], n=1),
        ]
    )
    options = ocp.CheckpointManagerOptions(
        create=create,
        read_only=not create,
        preservation_policy=policy,
        best_fn=lambda metrics: metrics[SELECTED_BY],
        best_mode="max",
    )
    return ocp.CheckpointManager(
        (workdir / "checkpoints").absolute(), options=options, item_names=("state", "description")
    )


def save(manager: ocp.CheckpointManager, step: int, state: Any, description: dict, metrics: dict[str, float]) -> None:
    """Starts saving; returns as soon as `state` may be donated."""
    items = ocp.args.Composite(state=ocp.args.StandardSave(state), description=ocp.args.JsonSave(description))
    manager.save(step, args=items, metrics=metrics)


def restore(manager: ocp.CheckpointManager, step: int, like: Any, sharding: Sharding) -> Any:
    """The state saved at `step`, in the structure of `like` (arrays or their shapes), on `sharding`.

    Raises:
        UserError: if the checkpoint cannot be read or holds another structure.
    """
    return _restore(manager, step, ocp.args.StandardRestore(_on(sharding, like)))


def restore_networks(
    manager: ocp.CheckpointManager,
    step: int,
    description: dict,
    sharding: Sharding,
    heads: dict[str, Params] | None = None,
) -> tuple[Pool, dict[str, Params], dict[str, Params]]:
    """The pool of the run that `description` describes, and its stacks' parameters and statistics at `step`.

    Nothing else of the state is read, so neither the method nor the optimizer of that run matters. If parameters of
    `heads` (arrays or their shapes) are asked for, they are among the parameters returned.

    Raises:
        UserError: if the checkpoint cannot be read or holds other networks.
    """
    pool = make_pool(
        description["members"],
        num_classes=description["num_classes"],
        image_shape=tuple(description["image_shape"]),
        dtype="float32",
        axis_name=None,
    )
    params, batch_stats = jax.eval_shape(lambda: init(pool, 0))
    target = {"stacks": {name: {"params": params[name], "batch_stats": batch_stats[name]} for name in params}}
    target["stacks"] |= {name: {"params": value} for name, value in (heads or {}).items()}
    target = _on(sharding, target)
    restore_args = ocp.checkpoint_utils.construct_restore_args(target)
    args = ocp.args.PyTreeRestore(item=target, restore_args=restore_args, partial_restore=True)
    stacks = _restore(manager, step, args)["stacks"]
    params = {name: stack["params"] for name, stack in stacks.items()}
    batch_stats = {name: stacks[name]["batch_stats"] for name in batch_stats}
    return pool, params, batch_stats


def _on(sharding: Sharding, tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def _restore(manager: ocp.CheckpointManager, step: int, args: ocp.args.CheckpointArgs) -> Any:
    try:
        return manager.restore(step, args=ocp.args.Composite(state=args))["state"]
    except Exception as error:  # Orbax raises whatever the storage below it does
        others = sorted(set(manager.all_steps()) - {step})
        raise UserError(
            f"the checkpoint of step {step} in {manager.directory} cannot be restored: it is damaged or of another "
            f"program. Other steps there: {others or 'none'}. ({type(error).__name__}: {str(error)[:300]})"
        ) from error


def find_step(manager: ocp.CheckpointManager, which: str) -> int:
    """The step that `which` means: "latest", "best", or a number.

    Raises:
        UserError: if there is no such checkpoint.
    """
    steps = sorted(manager.all_steps())
    if not steps:
        raise UserError(f"{manager.directory} holds no checkpoint")
    if which == "latest":
        return steps[-1]
    if which == "best":
        return manager.best_step()
    if which.isdigit() and int(which) in steps:
        return int(which)
    raise UserError(f"--checkpoint={which!r}: there is none of that step. Accepted: latest, best, or one of {steps}")


def has_checkpoint(workdir: Path) -> bool:
    """Whether the run in `workdir` has come to its first checkpoint."""
    if not (workdir / "checkpoints").exists():
        return False
    with open_manager(workdir, create=False) as manager:
        return manager.latest_step() is not None


def read_description(workdir: Path) -> dict | None:
    """The description of the run in `workdir`; None if there is no run.

    Raises:
        UserError: if there is one that cannot be read.
    """
    path = workdir / DESCRIPTION
    if not path.exists():
        return None
    try:
        description = json.loads(path.read_text())
        for key in DESCRIBED:
            description[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not the description of a run: {error}") from error
    return description


def write_description(workdir: Path, description: dict) -> None:
    """Writes the description of a run, creating its workdir.

    Raises:
        UserError: if the workdir cannot be written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        replace_text(workdir / DESCRIPTION, json.dumps(description, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"--workdir={workdir}: cannot be written: {error}") from error
