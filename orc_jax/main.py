"""Trains a pool of networks, or evaluates one from its checkpoint.

python -m orc_jax.main --config configs/cifar100.py
python -m orc_jax.main --mode=evaluate --workdir=runs/cifar100_orc --checkpoint=best
"""

import sys
from collections.abc import Mapping
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from orc_jax import allocator, commands, flagging, places
from orc_jax.errors import UserError, require
from orc_jax.terminal import doing, make_console, warner

FLAGS = flags.FlagValues()
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where the run is kept. Default: runs/<dataset>_<method>.", flag_values=FLAGS
)
MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "evaluate", "describe", "preview"],
    "Train, evaluate a checkpoint, print what would be trained, or write a picture of what the networks would see.",
    flag_values=FLAGS,
)
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "latest", "Which one to evaluate: latest, best, or a step.", flag_values=FLAGS
)
RESUME = flags.DEFINE_enum(
    "resume",
    "run",
    ["run", "weights"],
    "With a run that is in the workdir: go on with it, or, if its fields are others, start a new one from its weights.",
    flag_values=FLAGS,
)
OWN = flags.DEFINE_multi_string(
    "own",
    [],
    "my_module:Thing, a network, method or data set of your own that the run in the workdir names; once for each.",
    flag_values=FLAGS,
)
COORDINATOR = flags.DEFINE_string(
    "coordinator",
    "",
    "For a run in several processes: host:port of the first, or auto under SLURM, on TPU pods, GKE or with MPI.",
    flag_values=FLAGS,
)
NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "How many there are, if --coordinator is not auto.", flag_values=FLAGS
)
PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "Which of them this is, from 0, if --coordinator is not auto.", flag_values=FLAGS
)
CACHE = flagging.define_cache(FLAGS)


def main() -> None:
    """The command."""
    commands.start()
    allocator.keep_pages()
    console = make_console()
    with commands.understood(), doing(console, "loading JAX"):
        given = flagging.parse(sys.argv, FLAGS, __doc__, lists=True)
        # Imported late, so that --help and mistakes in the flags are answered at once.
        from orc_jax import hosts
        from orc_jax.config import resolve
        from orc_jax.describe import describe
        from orc_jax.evaluate import evaluate_checkpoint
        from orc_jax.samples import preview
        from orc_jax.training import train
        from orc_jax.workdir import comparison

    config = given.config
    with commands.understood():
        workdir = places.workdir("--workdir", WORKDIR.value or f"runs/{config.dataset}_{config.method}")
        commands.keep_programs(CACHE.value)
    with commands.reported(workdir, several=bool(COORDINATOR.value)):
        if COORDINATOR.value:
            with doing(console, f"waiting for the processes of the run at {COORDINATOR.value}"):
                hosts.join(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
            console.quiet = not hosts.is_main()
        elif NUM_PROCESSES.value is not None or PROCESS_ID.value is not None:
            raise UserError("--num_processes and --process_id need --coordinator=host:port of the first process")
        if config.replicas not in (0, 1) or given.lists:
            several(config, given.lists, workdir)
        if MODE.value == "evaluate" and (there := comparison.read(workdir)):
            from orc_jax.compare import replicas  # with matplotlib, which a single run does not need

            replicas.evaluate(there, workdir, given.overrides, OWN.value, CHECKPOINT.value, console)
            return
        for line in (f"config: {given.base}", *given.adapted):
            warner(console)(line)
        if MODE.value == "train" and (config.replicas > 1 or given.lists):
            from orc_jax.compare import replicas

            replicas.train(config, given.lists, workdir, console)
            return
        count, config.replicas = config.replicas or 1, 1
        resolved = resolve(config, trusted=given.trusted)
        if MODE.value == "train":
            train(resolved, workdir, console, resume=RESUME.value)
        elif MODE.value == "describe":
            describe(resolved, workdir, console, replicas=count)
        elif MODE.value == "preview":
            preview(resolved, workdir, console)
        else:
            evaluate_checkpoint(resolved, workdir, CHECKPOINT.value, console)


def several(config: ConfigDict, lists: Mapping[str, str], workdir: Path) -> None:
    """Raises `UserError` for what replicas cannot be given."""
    require("config.replicas", config.replicas, config.replicas >= 0, "at least 0")
    if COORDINATOR.value or RESUME.value != "run":
        raise UserError(f"config.replicas={config.replicas}: not with --coordinator or --resume=weights")
    for name, text in lists.items():
        if config.replicas < 2 or MODE.value != "train":
            count = len(text.split(","))
            accepted = f"--config.replicas={count} --mode=train"
            raise UserError(f"--config.{name}={text}: several values are for replicas: {accepted}")
    if MODE.value == "train" and (workdir / "config.json").exists():
        raise UserError(f"config.replicas={config.replicas}: --workdir={workdir} holds a single run; give another")


if __name__ == "__main__":
    main()
