"""Checkpoints by Orbax: the latest and the best of a run, with the record of the run beside the arrays.

Arrays go to disk and come back as NumPy's, so a checkpoint does not know on how many devices or in how many processes
it was made. Each carries a checksum for every array: what was restored is what was saved, or an error says so.
"""

import contextlib
import os
import re
import sys
import time
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Sharding
from orbax.checkpoint.checkpoint_managers import preservation_policy

from orc_jax import hosts, plugins
from orc_jax.errors import UserError
from orc_jax.models.network import Params, weight_shapes
from orc_jax.plugins import Plugins
from orc_jax.pool import Pool, StackState, make_spec
from orc_jax.workdir.paths import LocalPath
from orc_jax.workdir.record import Record, to_json

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
    folder = LocalPath((workdir / CHECKPOINTS).absolute())
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
    manager: ocp.CheckpointManager, step: int, state: Any, record: Record, selected_by: float | None = None
) -> None:
    """Starts saving the state after `step`; returns as soon as it may be donated.

    `selected_by` is the target student's top-1; without it, this checkpoint cannot become the best.

    Raises:
        UserError: if this or the save before it cannot be written.
    """
    state = jax.device_get(state)
    description = to_json(record) | {"checksums": _checksums(state)}
    metrics = None if selected_by is None else {SELECTED_BY: selected_by}
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
    return jax.device_put(state, sharding)


def restore_newest(workdir: Path, like: Any, sharding: Sharding, warn: Callable[[str], None]) -> Any | None:
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
            warn(f"{error} It is kept in {_set_aside(workdir, step)}.")
    return state


def _set_aside(workdir: Path, step: int) -> Path:
    folder = workdir / DAMAGED
    folder.mkdir(exist_ok=True)
    places = (folder / f"{step}{suffix}" for suffix in ("", *(f".{i}" for i in range(1, 10_000))))
    place = next(place for place in places if not place.exists())
    return (workdir / CHECKPOINTS / str(step)).rename(place)


class Trained(NamedTuple):
    """The networks of a run at a checkpoint."""

    record: Record
    step: int
    pool: Pool  # without optimizers


def restore_networks(
    workdir: Path,
    record: Record,
    which: str,
    sharding: Sharding,
    own: Plugins,
    heads: Mapping[str, dict[str, Params]] | None = None,
    architectures: Collection[str] | None = None,
    ema: bool | None = None,
) -> Trained:
    """The networks of the run in `workdir`, which may be training, or imported weights.

    Nothing else of the state is read, so neither the method nor the optimizer of that run matters. `which` is "latest",
    "best" or a step. `own` has the networks that may be a person's own, `heads` the shapes of heads that are asked for.
    The pool is that of the members of some `architectures`, by default of all; the others need not even be known. With
    `ema` they are the averages that the run keeps, without it they are not; None is as the run evaluates them.

    Raises:
        UserError: if there is no such checkpoint or average, and as `restore`.
    """
    ema, there = record.fields.eval_ema if ema is None else ema, record.architectures
    if ema and not record.fields.ema_decay:
        raise UserError(f"{workdir} holds a run that keeps no averages of its members (config.ema_decay=0)")
    members = [i for i, name in enumerate(there) if architectures is None or name in architectures]
    names = [there[i] for i in members]
    shape = {"num_classes": record.num_classes, "image_shape": record.image_shape}
    spec = make_spec(names, plugins.models(names, own), **shape, members=members)
    of_members = {}
    for stack in spec.stacks:
        params, batch_stats = _in_rows(weight_shapes(stack.network), len(stack.members))
        of_members[stack.name] = {"params": params, "batch_stats": batch_stats}
    like = {"averages" if ema else "stacks": of_members}
    like["stacks"] = dict(heads or {}) | like.get("stacks", {})
    while True:
        with open_manager(workdir, create=False) as manager:
            step = find_step(manager, which)
            try:
                restored = restore(manager, step, {kind: of for kind, of in like.items() if of}, sharding)
                arrays = {name: of for kind in restored.values() for name, of in kind.items()}
                break
            except UserError:
                if (workdir / CHECKPOINTS / str(step)).exists():
                    raise  # else training has put a newer one in its place
    stacks = {
        name: StackState(params=of.get("params", {}), batch_stats=of.get("batch_stats", {}), opt_state=())
        for name, of in arrays.items()
    }
    return Trained(record, step, Pool(spec=spec, stacks=stacks))


def _in_rows(shapes: Any, count: int) -> Any:
    """The shapes of a stack of `count` members, of those of one."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype), shapes)


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
    return {name: zlib.crc32(np.ascontiguousarray(leaf).data) for name, leaf in _leaves(tree).items()}


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
        evaluated = [(found[SELECTED_BY], step) for step, found in metrics.items() if found]
        if not evaluated:
            raise UserError(f"--checkpoint=best: none of the checkpoints {steps} has been evaluated yet")
        return max(evaluated)[1]
    if which.isdigit() and int(which) in steps:
        return int(which)
    raise UserError(f"--checkpoint={which!r}: there is none of that step. Accepted: latest, best, or one of {steps}")


def step_of(workdir: Path, which: str) -> int:
    """The step of the checkpoint of `workdir` that `which` means, as `find_step`.

    Raises:
        UserError: if there is none.
    """
    if not (workdir / CHECKPOINTS).exists():
        raise UserError(f"--workdir={workdir} holds a run without a checkpoint")
    with open_manager(workdir, create=False) as manager:
        return find_step(manager, which)


def latest_step(workdir: Path) -> int | None:
    """The step of the latest checkpoint of the run in `workdir`; None if it has none."""
    if not (workdir / CHECKPOINTS).exists():
        return None
    with open_manager(workdir, create=False) as manager:
        return manager.latest_step()


def has_checkpoint(workdir: Path) -> bool:
    """Whether the run in `workdir` has come to its first checkpoint."""
    return latest_step(workdir) is not None
