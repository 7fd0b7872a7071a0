"""Trains a pool of networks, or evaluates one from its checkpoint.

python -m orc_jax.main --config configs/cifar100.py
python -m orc_jax.main --config configs/cifar100.py --mode=evaluate --workdir=runs/cifar100_orc
"""

import os
import re
import runpy
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags
from rich.console import Console

from orc_jax import commands
from orc_jax.errors import UserError, unknown

# The configs that come along lie beside the package in the repository, and inside it once it is installed.
CONFIGS = next(path for path in (Path(__file__).parents[i] / "configs" for i in (1, 0)) if path.is_dir())
EMBEDDED_DEFAULT = CONFIGS / "digits.py"

CONFIG = config_flags.DEFINE_config_file(
    "config", None, f"The config file; any field can be overridden: --config.seed=1. Default: {EMBEDDED_DEFAULT}."
)
WORKDIR = flags.DEFINE_string("workdir", "", "Where the run is kept. Default: runs/<dataset>_<method>.")
MODE = flags.DEFINE_enum(
    "mode", "train", ["train", "evaluate", "describe"], "Train, evaluate a checkpoint, or print what would be trained."
)
CHECKPOINT = flags.DEFINE_string("checkpoint", "latest", "Which one to evaluate: latest, best, or a step.")
RESUME = flags.DEFINE_enum(
    "resume",
    "run",
    ["run", "weights"],
    "With a run that is in the workdir: go on with it, or, if its fields are others, start a new one from its weights.",
)
COORDINATOR = flags.DEFINE_string(
    "coordinator",
    "",
    "For a run in several processes: host:port of the first, or auto under SLURM, on TPU pods, GKE or with MPI.",
)
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many there are, if --coordinator is not auto.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0, if --coordinator is not auto.")
CACHE = flags.DEFINE_string(
    "compilation_cache",
    os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "orc_jax"),
    "Folder where compiled programs are kept from run to run; empty: they are not.",
)


def main(argv: list[str]) -> None:
    commands.quiet()
    console = Console()
    if len(argv) > 1:
        commands.fail(f"not understood: {' '.join(argv[1:])}. Overrides are written --config.field=value")
    workdir = Path(WORKDIR.value or f"runs/{CONFIG.value.dataset}_{CONFIG.value.method}")
    # Imported late, so that --help and mistakes in the flags are answered at once.
    from orc_jax import hosts
    from orc_jax.config import resolve
    from orc_jax.describe import describe
    from orc_jax.evaluate import evaluate_checkpoint
    from orc_jax.train import train

    keep_programs()
    with commands.reported(workdir, several=bool(COORDINATOR.value)):
        if COORDINATOR.value:
            hosts.join(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
            console.quiet = not hosts.is_main()
        elif NUM_PROCESSES.value is not None or PROCESS_ID.value is not None:
            raise UserError("--num_processes and --process_id need --coordinator=host:port of the first process")
        resolved = resolve(CONFIG.value)
        if MODE.value == "train":
            train(resolved, workdir, console, resume=RESUME.value)
        elif MODE.value == "describe":
            describe(resolved, workdir, console)
        else:
            evaluate_checkpoint(resolved, workdir, CHECKPOINT.value, console)


def keep_programs() -> None:
    """Keeps compiled programs on disk, where `--compilation_cache` says, or JAX_COMPILATION_CACHE_DIR if it is set."""
    import jax

    if CACHE.value and not jax.config.values["jax_compilation_cache_dir"]:
        jax.config.update("jax_compilation_cache_dir", str(Path(CACHE.value).expanduser().absolute()))


def parse(argv: list[str]) -> list[str]:
    """Absl's parser of flags, with the embedded default, and a message instead of a traceback for what is wrong."""
    argv = [_shipped(argument) for argument in argv]
    given = _config_path(argv)
    if given is None:
        # not the default of the flag: that would be checked against the overrides of any other config
        argv = [argv[0], f"--config={EMBEDDED_DEFAULT}", *argv[1:]]
    path = EMBEDDED_DEFAULT if given is None else Path(given.partition(":")[0])
    if not path.is_file():
        commands.fail(f"--config={path}: there is no such file; the repository has some in configs/")
    try:
        return app.parse_flags_with_usage(argv)
    except AttributeError:
        from orc_jax.config import flat

        fields = flat(runpy.run_path(str(path))["get_config"]().to_dict())
        for override in re.findall(r"(?m)^--?config\.([\w.]+)", "\n".join(argv)):
            if override not in fields:
                commands.fail(str(unknown("--config: field", override, fields)))
        raise


def _shipped(argument: str) -> str:
    """`--config=configs/cifar100.py`, also where that file is part of the installed package."""
    name = argument.removeprefix("--config=")
    path = CONFIGS / Path(name).name
    return argument.replace(name, str(path)) if name.startswith("configs/") and path.exists() else argument


def _config_path(argv: list[str]) -> str | None:
    """The value of the last `--config`, written with or without "="."""
    for i in reversed(range(1, len(argv))):
        name, equals, value = argv[i].partition("=")
        if name in ("--config", "-config"):
            return value if equals else "".join(argv[i + 1 : i + 2])
    return None


def cli() -> None:
    """The command."""
    app.run(main, flags_parser=parse)


if __name__ == "__main__":
    cli()
