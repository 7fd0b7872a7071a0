"""Checkpoints by Orbax: the latest and the best of a run, with the description of the run beside the arrays.

Arrays go to disk and come back as NumPy's, so a checkpoint does not know on how many devices or in how many processes
it was made. Each carries a checksum for every array: what was restored is what was saved, or an error says so.
"""

import contextlib
import json
import os
import re
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Sharding
from orbax.checkpoint.checkpoint_managers import preservation_policy

from orc_jax import hosts
from orc_jax.errors import UserError
from orc_jax.logs import replace_text
from orc_jax.pool import Params, Pool, init, make_pool

DESCRIPTION = "config.json"  # of a run, in its workdir
DESCRIBED = ("config", "members", "num_classes", "class_names", "num_train", "image_shape", "mean", "std")
SELECTED_BY = "target_top1"  # the metric that "best" refers to
CHECKPOINTS = "checkpoints"
DAMAGED = "damaged"  # where checkpoints go that cannot be restored


def open_manager(workdir: Path, *, create: bool) -> ocp.CheckpointManager:
    """The manager of the checkpoints of `workdir`, which keeps the two latest and the best. Saves are asynchronous.

    Each process has a manager of its own; only that of the first may save, if it is opened to `create` checkpoints.
    """
    policy = preservation_policy.AnyPreservationPolicy(
        [
            preservation_policy.LatestN(2),
            preservation_policy.BestN(
                get_metric_fn=lambda metrics: metrics[SELECTED_BY], n=1, keep_checkpoints_without_metrics=False
            ),
        ]
    )
    folder = (workdir / CHECKPOINTS).absolute()
    if create:
        if hosts.is_main():
            folder.mkdir(parents=True, exist_ok=True)
        hosts.require_equal(folder.name, "their workdir")  # waits for the folder
        create = hosts.is_main()
    process = jax.process_index()
    options = ocp.CheckpointManagerOptions(
        create=False,
        read_only=not create,
        cleanup_tmp_directories=create,  # of saves that were interrupted
        lightweight_initialize=not create,  # or a damaged checkpoint would keep the others from being read
        preservation_policy=policy,
        best_fn=lambda metrics: metrics[SELECTED_BY],
        best_mode="max",
        multiprocessing_options=ocp.options.MultiprocessingOptions(
            primary_host=process, active_processes={process}, barrier_sync_key_prefix=f"process{process}"
        ),
    )
    return ocp.CheckpointManager(folder, options=options, item_names=("state", "description"))


def save(
    manager: ocp.CheckpointManager, step: int, state: Any, description: dict, metrics: dict[str, float] | None = None
) -> None:
    """Starts saving; returns as soon as `state` may be donated. Without `metrics` it cannot become the best.

    Raises:
        UserError: if this or the save before it cannot be written.
    """
    state = jax.device_get(state)
    description = description | {"checksums": _checksums(state)}
    items = ocp.args.Composite(state=ocp.args.PyTreeSave(state), description=ocp.args.JsonSave(description))
    try:
        manager.save(step, args=items, metrics=metrics)
    except Exception as error:  # Orbax raises whatever the storage below it does
        raise _not_written(manager, error) from error


def finish(manager: ocp.CheckpointManager) -> None:
    """Waits until what `save` has started is on disk.

    Raises:
        UserError: if it cannot be written.
    """
    try:
        manager.wait_until_finished()
    except Exception as error:
        raise _not_written(manager, error) from error


def _not_written(manager: ocp.CheckpointManager, error: Exception) -> UserError:
    kept = sorted(path.name for path in Path(manager.directory).iterdir() if path.name.isdigit())
    return UserError(
        f"a checkpoint cannot be written to {manager.directory}: {_short(error)}. Complete there: "
        f"{', '.join(kept) or 'none'}. Once there is room, the same command goes on from the latest"
    )


def restore(manager: ocp.CheckpointManager, step: int, like: Any, sharding: Sharding) -> Any:
    """The state saved at `step`, in the structure of `like` (arrays or their shapes), on `sharding`.

    Raises:
        UserError: if the checkpoint cannot be read, holds another structure, or other values than were saved.
    """
    return jax.device_put(_restore(manager, step, like), sharding)


def restore_newest(workdir: Path, like: Any, sharding: Sharding, report: Callable[[str], None]) -> Any | None:
    """The newest state in `workdir` that can be restored, as by `restore`; None if there is no checkpoint at all.

    Damaged ones are reported and moved to `damaged/` in the workdir.

    Raises:
        UserError: if there are checkpoints and none can be restored. Nothing has been moved then.
    """
    if not (workdir / CHECKPOINTS).exists():
        return None
    errors, state = {}, None
    with open_manager(workdir, create=False) as manager:
        for step in sorted(manager.all_steps(), reverse=True):
            try:
                _metrics(manager, step)
                state = restore(manager, step, like, sharding) if state is None else state
            except UserError as error:
                errors[step] = error
    hosts.require_equal(list(errors), "the damaged checkpoints")
    if errors and state is None:
        steps = ", ".join(map(str, errors))
        raise UserError(
            f"{manager.directory} holds checkpoints of steps {steps}, and none can be restored. Nothing was changed; "
            f"another --workdir starts anew. Of the newest: {next(iter(errors.values()))}"
        )
    for step, error in errors.items():
        if hosts.is_main():
            report(f"{error} It is kept in {_set_aside(workdir, step)}.")
    return state


def _set_aside(workdir: Path, step: int) -> Path:
    folder = workdir / DAMAGED
    folder.mkdir(exist_ok=True)
    places = (folder / f"{step}{suffix}" for suffix in ("", *(f".{i}" for i in range(1, 10_000))))
    place = next(place for place in places if not place.exists())
    return (workdir / CHECKPOINTS / str(step)).rename(place)


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
        UserError: as `restore`.
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
    stacks = restore(manager, step, target, sharding)["stacks"]
    params = {name: stack["params"] for name, stack in stacks.items()}
    batch_stats = {name: stacks[name]["batch_stats"] for name in batch_stats}
    return pool, params, batch_stats


def _restore(manager: ocp.CheckpointManager, step: int, like: Any) -> Any:
    """What of the checkpoint is in `like`, as NumPy arrays."""
    arrays = jax.tree.map(lambda x: ocp.RestoreArgs(restore_type=np.ndarray), like)
    args = ocp.args.Composite(
        state=ocp.args.PyTreeRestore(item=like, restore_args=arrays, partial_restore=True),
        description=ocp.args.JsonRestore(),
    )
    try:
        with without_stragglers():
            restored = manager.restore(step, args=args)
        state, checksums = restored["state"], restored["description"]["checksums"]
        expected, shapes = _leaves(like), {name: x.shape for name, x in _leaves(state).items()}
        for name, x in expected.items():
            if shapes.get(name) != x.shape:
                raise ValueError(f"{name} is {shapes.get(name)}, expected was {x.shape}")
        differing = [name for name, value in _checksums(state).items() if checksums[name] != value]
        if differing:
            raise ValueError(f"{len(differing)} arrays are not what was saved, among them {differing[0]}")
    except Exception as error:  # Orbax raises whatever the storage below it does
        raise _damaged(manager, step, error) from error
    return state


def _metrics(manager: ocp.CheckpointManager, step: int) -> dict[str, float] | None:
    """The metrics of the checkpoint; None if it was not made by an evaluation."""
    try:
        metrics = manager.metrics(step)
        return metrics and {SELECTED_BY: float(metrics[SELECTED_BY])}
    except Exception as error:
        raise _damaged(manager, step, error) from error


def _damaged(manager: ocp.CheckpointManager, step: int, error: Exception) -> UserError:
    others = sorted(set(manager.all_steps()) - {step})
    return UserError(
        f"the checkpoint of step {step} in {manager.directory} cannot be restored: it is damaged or of another "
        f"program. Other steps there: {others or 'none'}. ({_short(error)})"
    )


@contextlib.contextmanager
def without_stragglers() -> Iterator[None]:
    """When one read or write fails, the others' results find a closed event loop; Python would report each of them."""
    report = sys.unraisablehook

    def leave_out(unraisable) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            report(unraisable)

    sys.unraisablehook = leave_out
    try:
        yield
    except Exception:
        time.sleep(0.5)  # while they come in
        raise
    finally:
        sys.unraisablehook = report


def _leaves(tree: Any) -> dict[str, Any]:
    """Leaves by their paths, which are the same whether containers are dicts or have attributes."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _checksums(tree: Any) -> dict[str, int]:
    return {name: zlib.crc32(np.ascontiguousarray(leaf)) for name, leaf in _leaves(tree).items()}


def _short(error: Exception) -> str:
    if code := re.search(r"os_error_code='(\d+)'", str(error)):
        return os.strerror(int(code[1]))
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


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
        metrics = {step: _metrics(manager, step) for step in steps}
        evaluated = [step for step in steps if metrics[step]]
        if not evaluated:
            raise UserError(f"--checkpoint=best: none of the checkpoints {steps} has been evaluated yet")
        return max(evaluated, key=lambda step: (metrics[step][SELECTED_BY], step))
    if which.isdigit() and int(which) in steps:
        return int(which)
    raise UserError(f"--checkpoint={which!r}: there is none of that step. Accepted: latest, best, or one of {steps}")


def has_checkpoint(workdir: Path) -> bool:
    """Whether the run in `workdir` has come to its first checkpoint."""
    if not (workdir / CHECKPOINTS).exists():
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
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is not the description of a run: {error}") from error
    return description


def write_description(workdir: Path, description: dict) -> None:
    """Writes the description of a run, creating its workdir. Only the first process writes.

    Raises:
        UserError: if the workdir cannot be written.
    """
    if not hosts.is_main():
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        replace_text(workdir / DESCRIPTION, json.dumps(description, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"--workdir={workdir}: cannot be written: {error}") from error
