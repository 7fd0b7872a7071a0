"""Starting a new run from the weights of another, in the same workdir (`--resume=weights`)."""

import shutil
from collections.abc import Callable
from pathlib import Path

import jax

from orc_jax import checkpoint, hosts, pretrained
from orc_jax.errors import UserError
from orc_jax.lock import locked
from orc_jax.run import Run, check_resumable
from orc_jax.step import init_state


def start_from_weights(run: Run, workdir: Path, report: Callable[[str], None]) -> None:
    """Puts `run`, at step 0 with the weights of the run in `workdir`, in the place of that run, which moves aside.

    The old run becomes `<workdir>.1` (or `.2` ...), whole. Nothing is done if `run` itself is what lies in `workdir`:
    the same command can be given again to go on.

    Raises:
        UserError: if there is no run in `workdir`, or its networks are not those of `run`.
    """
    if hosts.is_main():
        _start(run, workdir, report)
    hosts.require_equal(workdir.name, "their workdir")  # waits for it


def _start(run: Run, workdir: Path, report: Callable[[str], None]) -> None:
    new = workdir.with_name(workdir.name + ".new")
    if new.exists() and not workdir.exists():
        new.rename(workdir)  # an interruption came between the two moves below
        return
    description = checkpoint.read_description(workdir)
    if description is None:
        raise UserError(f"--resume=weights: --workdir={workdir} holds no run whose weights could be taken")
    try:
        check_resumable(run, description, workdir)
        return
    except UserError:
        pass  # another run, as expected
    with locked(workdir):
        everyone = range(run.setup.pool.size)
        trained = pretrained.load_members(run, workdir, everyone, field=f"--workdir={str(workdir)!r}")
        state = init_state(run.setup, run.method, run.config.seed)
        state = state.replace(stacks=pretrained.insert_members(run, state.stacks, trained))
        shutil.rmtree(new, ignore_errors=True)
        checkpoint.write_description(new, run.description())
        with checkpoint.open_manager(new, create=True) as manager:
            checkpoint.save(manager, int(state.step), jax.device_get(state), run.description())
            checkpoint.finish(manager)
        old = next(p for i in range(1, 10_000) if not (p := workdir.with_name(f"{workdir.name}.{i}")).exists())
        workdir.rename(old)
        new.rename(workdir)
    report(f"the run in {workdir} is now {old}; a new one starts from its weights")
