"""Members that a method takes as already trained, above all the pivot teacher: from a checkpoint, or trained first."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from orc_jax import checkpoint
from orc_jax.errors import UserError
from orc_jax.methods.base import Stage
from orc_jax.pool import Params, put, select, take, take_member
from orc_jax.run import Run, build, check_resumable, fits
from orc_jax.step import Stacks


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
            stage_run = _stage_run(run, stage, config.pretrain_epochs if i == 0 else config.num_epochs)
            check_resumable(stage_run, checkpoint.read_description(folder), folder)
        sources.append(Source(folder, stage.members, stage_run, stage.name))
    return sources


def _stage_run(run: Run, stage: Stage, num_epochs: int) -> Run:
    architectures = [run.setup.pool.architectures[member] for member in stage.members]
    config = run.config.copy_and_resolve_references()
    config.method, config.num_epochs, config.pivot_checkpoint = stage.method, num_epochs, ""
    config.teacher, config.student, config.num_networks = architectures[0], architectures[-1], len(architectures)
    config.assistants = ",".join(architectures[1:-1])
    return build(config, run.dataset, run.devices, architectures)


def find_members(run: Run, source: Path, members: Sequence[int], field: str = "") -> dict[int, int]:
    """Which members of the run in `source` can serve as `members` of `run`: {member here: member there}.

    Each is the first network of its architecture there that does not serve already. `field` is what a message names,
    by default the pivot checkpoint.

    Raises:
        UserError: if there is no run in `source`, or it has no such networks for these data.
    """
    field = field or f"config.pivot_checkpoint={str(source)!r}"
    description = checkpoint.read_description(source)
    if description is None:
        raise UserError(f"{field}: holds no run (no {checkpoint.DESCRIPTION}); accepted is the workdir of a run")
    there, here = description["image_shape"], run.dataset.image_shape
    classes = description["num_classes"]
    if there[-1] != here[-1] or classes != run.dataset.num_classes:
        raise UserError(
            f"{field}: its networks are for {there[-1]} channels and {classes} classes, but {run.dataset.name} has "
            f"{here[-1]} and {run.dataset.num_classes}"
        )
    constants = ([description["mean"], description["std"]], [list(run.setup.mean), list(run.setup.std)])
    if not np.allclose(*constants, atol=0.01):
        raise UserError(
            f"{field}: its images were normalised with mean, std {constants[0]}, but here they are with "
            f"{constants[1]}; config.mean and config.std can be set"
        )
    free = list(enumerate(description["members"]))
    found = {}
    for member in members:
        architecture = run.setup.pool.architectures[member]
        match = next((pair for pair in free if pair[1] == architecture), None)
        if match is None:
            raise UserError(
                f"{field}: needed is a trained {architecture}, but its pool is {', '.join(description['members'])}"
            )
        if not fits(description, architecture, run.dataset.image_shape):
            raise UserError(f"{field}: its {architecture} is for images of {there}, but {run.dataset.name} has {here}")
        free.remove(match)
        found[member] = match[0]
    return found


def load_members(run: Run, source: Path, members: Sequence[int], field: str = "") -> dict[int, tuple[Params, Params]]:
    """(params, batch_stats) of `members` of `run`, from the latest checkpoint of the run in `source`.

    Raises:
        UserError: as `find_members`, and if the checkpoint cannot be read.
    """
    found = find_members(run, source, members, field)
    with checkpoint.open_manager(source, create=False) as manager:
        step = checkpoint.find_step(manager, "latest")
        pool, *values = checkpoint.restore_networks(manager, step, checkpoint.read_description(source), run.sharding)
    return {member: tuple(take_member(pool, value, other) for value in values) for member, other in found.items()}


def insert_members(run: Run, stacks: Stacks, members: dict[int, tuple[Params, Params]]) -> Stacks:
    """`stacks` with the parameters and statistics of some members replaced; their optimizer starts anew."""
    for member, (params, batch_stats) in members.items():
        selected = select(run.setup.pool, [member])
        ((name, stack),) = take(selected, stacks).items()
        params, batch_stats = jax.tree.map(lambda x: x[None], (params, batch_stats))
        stacks = put(selected, stacks, {name: stack.replace(params=params, batch_stats=batch_stats)})
    return stacks
