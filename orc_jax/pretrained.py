"""Members that a method takes as already trained, above all the pivot teacher: from a checkpoint, or trained first."""

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from orc_jax import checkpoint
from orc_jax.errors import UserError
from orc_jax.pool import Params, put, select, take, take_member
from orc_jax.run import Run, build, fits
from orc_jax.step import Stacks


def pretraining_run(run: Run) -> Run:
    """The run that trains the pre-trained members of `run`, each for itself, for `config.pretrain_epochs`."""
    config = run.config.copy_and_resolve_references()
    config.method = "independent"
    config.num_epochs = config.pretrain_epochs
    architectures = [run.setup.pool.architectures[member] for member in run.method.pretrained]
    return build(config, run.dataset, run.devices, architectures)


def find_members(run: Run, source: Path, members: Sequence[int]) -> dict[int, int]:
    """Which members of the run in `source` can serve as `members` of `run`: {member here: member there}.

    Each is the first network of its architecture there that does not serve already.

    Raises:
        UserError: if there is no run in `source`, or it has no such networks for these data.
    """
    field = f"config.pivot_checkpoint={str(source)!r}"
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


def load_members(run: Run, source: Path, members: Sequence[int]) -> dict[int, tuple[Params, Params]]:
    """(params, batch_stats) of `members` of `run`, from the latest checkpoint of the run in `source`.

    Raises:
        UserError: as `find_members`, and if the checkpoint cannot be read.
    """
    found = find_members(run, source, members)
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
