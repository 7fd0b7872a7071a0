"""What comes before a run: members that are trained already, or trained first, and runs that give their weights."""

import functools
import shutil
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from orc_jax import hosts, parallel, transfer
from orc_jax.errors import UserError
from orc_jax.models import MODELS
from orc_jax.models.network import class_axes, weight_shapes, with_outputs
from orc_jax.pool import Pool, Stacks, StackState, names_of
from orc_jax.run import Run, abstract_state, build, head_shapes
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
        UserError: if the pivot checkpoint does not hold what is needed, or the folder of a stage holds another run; if
            the method cannot bring the members together.
    """
    config, sources = run.config, []
    if run.method.maps:
        abstract_state(run)  # refuses members whose maps do not fit, before any is trained
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
            if stage_run.method.maps:
                abstract_state(stage_run)  # refuses networks whose maps do not fit before any stage is trained
            record.require_resumable(record.read(folder), stage_run.record(), folder)
        sources.append(Source(folder, stage.members, stage_run, stage.name))
    parts = {stack.name: weight_shapes(stack.network)[0] for stack in run.spec.stacks}
    transfer.check_frozen(config.frozen, parts, run.setup.frozen, [*MODELS, *run.resolved.plugins])
    for one, skipped in _starting(run, sources):
        find_starts(one, skipped)
    return sources


def _starting(run: Run, sources: Sequence[Source]) -> list[tuple[Run, set[int]]]:
    """The runs that have not begun, with their members that others have trained by then."""
    trained, runs = set(), []
    for source in sources:
        if source.run and not checkpoint.has_checkpoint(source.folder):
            runs.append((source.run, {i for i, member in enumerate(source.members) if member in trained}))
        trained |= set(source.members)
    return [*runs, (run, trained)]


class Start(NamedTuple):
    """Whose weights a member starts from: a member of the run in `folder`."""

    folder: Path
    record: Record
    member: int


def find_starts(run: Run, skipped: Collection[int] = ()) -> dict[int, Start]:
    """Where the members start that `config.init` names, but for those that are `skipped`.

    Raises:
        UserError: if there is no run with a checkpoint, or no network of their architecture for such images.
    """
    found, here = {}, run.record()
    for member, (folder, which) in run.resolved.starts.items():
        if member in skipped:
            continue
        architecture, field = run.spec.architectures[member], f"config.init={run.config.init!r}: {folder}"
        if (there := record.read(folder)) is None or not checkpoint.has_checkpoint(folder):
            raise UserError(f"{field} holds no run with a checkpoint; accepted is a workdir, or imported weights")
        names = names_of(there.architectures)
        taken = [start.member for start in found.values() if start.folder == folder]
        alike = [i for i, name in enumerate(there.architectures) if name == architecture]
        fitting = [i for i in alike if which in ("", str(i), names[i])]
        if not fitting:
            wanted = f"{architecture}{f', and {which} is none' if which else ''}"
            raise UserError(f"{field}: needed is a trained {wanted}; its pool is {', '.join(names)}")
        record.require_same_images(there, here, field, run.dataset.name, same_classes=False)
        if not there.fits(run.resolved.models[architecture], here.image_shape):
            shapes = f"images of {there.image_shape}, but {run.dataset.name} has {here.image_shape}"
            raise UserError(f"{field}: its {architecture} is for {shapes}")
        found[member] = Start(folder, there, next((i for i in fitting if i not in taken), fitting[0]))
    return found


def load_starts(run: Run, skipped: Collection[int] = ()) -> dict[int, StackState]:
    """The weights that the members of `find_starts` start from: those of the latest checkpoints, as they are evaluated.

    Where there are more or fewer classes, the classifier is not among them. Else outputs are put in order, as by
    `load_members`.
    """
    loaded = {}
    for member, start in find_starts(run, skipped).items():
        name, there, own = run.spec.architectures[member], start.record, run.resolved.plugins
        trained = checkpoint.restore_networks(start.folder, there, "latest", run.sharding, own, architectures=[name])
        state = trained.pool.member(start.member)
        if there.num_classes == run.dataset.num_classes:
            loaded[member] = _in_order(run, there, member, state)
        else:
            classifier = class_axes(run.resolved.models[name], there.num_classes, there.image_shape)
            kept = {parameter: x for parameter, x in state.params.items() if parameter not in classifier}
            loaded[member] = state.replace(params=kept)
    return loaded


def about_starts(run: Run, sources: Sequence[Source]) -> list[str]:
    """What is to be said of members that start from weights, in `run` and in those that come before it."""
    lines = []
    for one, skipped in _starting(run, sources):
        starts = find_starts(one, skipped)
        for member, (folder, there, number) in starts.items():
            theirs, ours = there.num_classes, one.dataset.num_classes
            line = f"{one.spec.member_names[member]} starts from {names_of(there.architectures)[number]} of {folder}"
            new = f", its classifier is new: for {ours} classes, where there were {theirs}" if theirs != ours else ""
            twin = next((i for i in starts if i < member and starts[i] == starts[member]), None)
            same = f", with all weights of {one.spec.member_names[twin]}" if twin is not None and not new else ""
            lines.append(f"note: {line}{new}{same}")
        for start in {start.folder: start for start in starts.values()}.values():
            lines += _notes_on(one, start.folder, start.record)
    return lines


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
        lines += _notes_on(run, source.folder, record.require(source.folder))
    return lines


def _notes_on(run: Run, folder: Path, there: Record) -> list[str]:
    here, lines = run.record(), []
    same = there.num_classes == here.num_classes
    if same and (note := record.assumed_order(there, here.class_names)):
        lines.append(f"{note} ({folder})")
    if there.pixel_range and there.pixel_range != here.pixel_range:
        lines.append(
            f"note: the networks of {folder} have seen images by stream.pixel_range={there.pixel_range}, "
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


def load_heads(source: Source) -> Stacks:
    """The heads that a stage hands on: all that its run has, from its latest checkpoint; none of another run.

    Raises:
        UserError: if the checkpoint cannot be read.
    """
    if source.run is None or not (shapes := head_shapes(source.run)):
        return {}
    here = (source.folder, source.run.record(), "latest", source.run.sharding, source.run.resolved.plugins)
    return checkpoint.restore_networks(*here, shapes, architectures=()).pool.stacks


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
        UserError: if there is no run in `workdir`, or its networks are not those of `run`; if a stage trains more than
            members of it.
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
    if run.config.init:
        raise UserError(f"--resume=weights: takes all weights from {workdir}; accepted is an empty config.init")
    heads = head_shapes(run)
    for source in plan(run, new) if heads else ():
        if source.run and heads.keys() & head_shapes(source.run):
            raise UserError(
                f"--resume=weights: config.method={run.config.method!r} needs more than members, of the stage "
                f"{source.name!r}, which would be left out; accepted is another --workdir, with config.init"
            )
    with locked(workdir):
        trained = load_members(run, workdir, range(run.spec.size), field=f"--workdir={str(workdir)!r}")
        state = parallel.once(functools.partial(init_state, run.setup, run.method))(run.config.seed)
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
