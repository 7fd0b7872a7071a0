"""What comes before a run: members that are trained already, or trained first, and runs that give their weights."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from orc_jax import hosts
from orc_jax.errors import UserError
from orc_jax.models.network import class_axes, with_outputs
from orc_jax.pool import Pool, StackState
from orc_jax.run import Run, build
from orc_jax.step import init_averages, init_state
from orc_jax.workdir import checkpoint, record
from orc_jax.workdir.files import locked
from orc_jax.workdir.record import Record


class Source(NamedTuple):
    """Where some members come from: the run in `folder`, and what trains it if it is a stage of the run itself."""

    folder: Path
    members: tuple[int, ...]
    run: Run | None
    name: str


def plan(run: Run, workdir: Path) -> list[Source]:
    """Where the members come from that start trained, in the order in which they have to be trained.

    The first stage is that of the pivot teacher. It lasts `config.pretrain_epochs`, none if these are 0, and
    `config.pivot_checkpoint` stands in for it.

    Raises:
        UserError: if the pivot checkpoint does not hold what is needed, or the folder of a stage holds another run.
    """
    config, sources = run.config, []
    for i, stage in enumerate(run.method.stages):
        folder, stage_run = workdir / stage.name, None
        if i == 0 and config.pivot_checkpoint:
            folder = Path(config.pivot_checkpoint)
            find_members(run, folder, stage.members)
        elif i == 0 and not config.pretrain_epochs:
            continue
        else:
            resolved = run.resolved.stage(stage, config.pretrain_epochs if i == 0 else config.num_epochs)
            stage_run = build(resolved, run.dataset, run.devices)
            record.require_resumable(record.read(folder), stage_run.record(), folder)
        sources.append(Source(folder, stage.members, stage_run, stage.name))
    return sources


def find_members(run: Run, source: Path, members: Sequence[int], field: str = "") -> dict[int, int]:
    """Which members of the run in `source` can serve as `members` of `run`: {member here: member there}.

    Each is the first network of its architecture there that does not serve already. `field` is what a message names,
    by default the pivot checkpoint.

    Raises:
        UserError: if there is no run in `source`, or it has no such networks for these data.
    """
    field = field or f"config.pivot_checkpoint={str(source)!r}"
    there, here = record.read(source), run.record()
    if there is None:
        raise UserError(f"{field}: holds no run (no {record.FILE}); accepted is the workdir of a run")
    record.require_same_images(there, here, field, run.dataset.name)
    free = list(enumerate(there.architectures))
    found = {}
    for member in members:
        architecture = here.architectures[member]
        match = next((pair for pair in free if pair[1] == architecture), None)
        if match is None:
            raise UserError(
                f"{field}: needed is a trained {architecture}, but its pool is {', '.join(there.architectures)}"
            )
        if not there.fits(run.resolved.models[architecture], here.image_shape):
            raise UserError(
                f"{field}: its {architecture} is for images of {there.image_shape}, but {run.dataset.name} has "
                f"{here.image_shape}"
            )
        free.remove(match)
        found[member] = match[0]
    return found


def notes(run: Run, sources: Sequence[Source]) -> list[str]:
    """What is to be said of networks trained elsewhere: how their classes and images compare with those here."""
    lines = []
    for source in sources:
        if source.run is not None:
            continue
        there, here = record.require(source.folder), run.record()
        if note := record.assumed_order(there, here.class_names):
            lines.append(f"{note} ({source.folder})")
        if there.pixel_range and there.pixel_range != here.pixel_range:
            lines.append(
                f"note: the networks of {source.folder} have seen images by stream.pixel_range={there.pixel_range}, "
                f"here it is {here.pixel_range}"
            )
    return lines


def load_members(run: Run, source: Path, members: Sequence[int], field: str = "") -> dict[int, StackState]:
    """The weights of `members` of `run`, from the latest checkpoint of the run in `source`: those that it evaluates.

    Their outputs are in the order of the classes here, also if the classes there are the same in another.

    Raises:
        UserError: as `find_members`, and if the checkpoint cannot be read.
    """
    found = find_members(run, source, members, field)
    needed, own = {run.spec.architectures[member] for member in found}, run.resolved.plugins
    there = record.require(source)
    trained = checkpoint.restore_networks(source, there, "latest", run.sharding, own, architectures=needed)
    return {member: _in_order(run, there, member, trained.pool.member(other)) for member, other in found.items()}


def _in_order(run: Run, there: Record, member: int, state: StackState) -> StackState:
    theirs, ours = there.class_names, run.dataset.class_names
    if theirs == ours or sorted(theirs) != sorted(ours):
        return state
    sources, targets = (sorted(range(len(names)), key=names.__getitem__) for names in (theirs, ours))
    order = [source for _, source in sorted(zip(targets, sources, strict=True))]
    model = run.resolved.models[run.spec.architectures[member]]
    params = with_outputs(state.params, class_axes(model, there.num_classes, there.image_shape), order)
    return state.replace(params=jax.device_put(params, run.sharding))


def start_from_weights(run: Run, workdir: Path, warn: Callable[[str], None]) -> None:
    """For `--resume=weights`: a new run starts from the weights of the run in `workdir`, and in its place.

    `run` is put there at step 0. The old run becomes `<workdir>.1` (or `.2` ...), whole. Nothing is done if `run`
    itself is what lies in `workdir`: the same command can be given again to go on.

    Raises:
        UserError: if there is no run in `workdir`, or its networks are not those of `run`.
    """
    if hosts.is_main():
        _start(run, workdir, warn)
    hosts.require_equal(workdir.name, "their workdir")  # waits for it


def _start(run: Run, workdir: Path, warn: Callable[[str], None]) -> None:
    new = workdir.with_name(workdir.name + ".new")
    if new.exists() and not workdir.exists():
        new.rename(workdir)  # an interruption came between the two moves below
        return
    there, here = record.read(workdir), run.record()
    if there is None:
        raise UserError(f"--resume=weights: --workdir={workdir} holds no run whose weights could be taken")
    if not record.differences(there, here):
        return
    with locked(workdir):
        trained = load_members(run, workdir, range(run.spec.size), field=f"--workdir={str(workdir)!r}")
        state = init_state(run.setup, run.method, run.config.seed)
        pool = Pool(spec=run.spec, stacks=state.stacks).with_weights(trained)
        state = state.replace(stacks=pool.stacks, averages=init_averages(run.setup, pool.stacks))
        shutil.rmtree(new, ignore_errors=True)
        record.write(new, here)
        with checkpoint.open_manager(new, create=True) as manager:
            checkpoint.save(manager, int(state.step), jax.device_get(state), here)
            checkpoint.finish(manager)
        old = next(p for i in range(1, 10_000) if not (p := workdir.with_name(f"{workdir.name}.{i}")).exists())
        workdir.rename(old)
        new.rename(workdir)
    warn(f"the run in {workdir} is now {old}; a new one starts from its weights")
