"""Trains a pool of networks, or evaluates one from its checkpoint.

python -m orc_jax.main --config configs/cifar100.py
python -m orc_jax.main --mode=evaluate --workdir=runs/cifar100_orc --checkpoint=best
"""

import sys
from pathlib import Path

from absl import flags

from orc_jax import commands, flagging
from orc_jax.errors import UserError
from orc_jax.terminal import doing, make_console, warner

FLAGS = flags.FlagValues()


def _define(define, name: str, default, *rest: object) -> None:
    define(name, default, *rest, flag_values=FLAGS)


_define(flags.DEFINE_string, "workdir", None, "Where the run is kept. Default: runs/<dataset>_<method>.")
_define(
    flags.DEFINE_enum,
    "mode",
    "train",
    ["train", "evaluate", "describe"],
    "Train, evaluate a checkpoint, or print what would be trained.",
)
_define(flags.DEFINE_string, "checkpoint", "latest", "Which one to evaluate: latest, best, or a step.")
_define(
    flags.DEFINE_enum,
    "resume",
    "run",
    ["run", "weights"],
    "With a run that is in the workdir: go on with it, or, if its fields are others, start a new one from its weights.",
)
_define(
    flags.DEFINE_multi_string,
    "own",
    [],
    "my_module:Thing, a network, method or data set of your own that the run in the workdir names; once for each.",
)
_define(
    flags.DEFINE_string,
    "coordinator",
    "",
    "For a run in several processes: host:port of the first, or auto under SLURM, on TPU pods, GKE or with MPI.",
)
_define(flags.DEFINE_integer, "num_processes", None, "How many there are, if --coordinator is not auto.")
_define(flags.DEFINE_integer, "process_id", None, "Which of them this is, from 0, if --coordinator is not auto.")
flagging.define_cache(FLAGS)


def main() -> None:
    """The command."""
    commands.quiet()
    console = make_console()
    with commands.reported(several=False), doing(console, "loading JAX"):
        given = flagging.parse(sys.argv, FLAGS, __doc__)
        # Imported late, so that --help and mistakes in the flags are answered at once.
        from orc_jax import hosts
        from orc_jax.config import resolve
        from orc_jax.describe import describe
        from orc_jax.evaluate import evaluate_checkpoint
        from orc_jax.training import train

    config, num_processes, process_id = given.config, FLAGS["num_processes"].value, FLAGS["process_id"].value
    workdir = Path(FLAGS["workdir"].value or f"runs/{config.dataset}_{config.method}")
    coordinator: str = FLAGS["coordinator"].value
    commands.keep_programs(FLAGS["compilation_cache"].value)
    with commands.reported(workdir, several=bool(coordinator)):
        if coordinator:
            with doing(console, f"waiting for the processes of the run at {coordinator}"):
                hosts.join(coordinator, num_processes, process_id)
            console.quiet = not hosts.is_main()
        elif num_processes is not None or process_id is not None:
            raise UserError("--num_processes and --process_id need --coordinator=host:port of the first process")
        for line in (f"config: {given.base}", *given.adapted):
            warner(console)(line)
        resolved = resolve(config, trusted=given.trusted)
        match FLAGS["mode"].value:
            case "train":
                train(resolved, workdir, console, resume=FLAGS["resume"].value)
            case "describe":
                describe(resolved, workdir, console)
            case _:
                evaluate_checkpoint(resolved, workdir, FLAGS["checkpoint"].value, console)


if __name__ == "__main__":
    main()
