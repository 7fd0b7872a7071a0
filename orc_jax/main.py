"""Trains a pool of networks, or evaluates one from its checkpoint.

python -m orc_jax.main --config configs/cifar100.py
python -m orc_jax.main --config configs/cifar100.py --mode=evaluate --workdir=runs/cifar100_orc
"""

import os
import re
import runpy
import sys
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import config_flags
from rich.console import Console

from orc_jax.errors import UserError, unknown

EMBEDDED_DEFAULT = Path(__file__).parent.parent / "configs" / "digits.py"

CONFIG = config_flags.DEFINE_config_file(
    "config", None, f"The config file; any field can be overridden: --config.seed=1. Default: {EMBEDDED_DEFAULT}."
)
WORKDIR = flags.DEFINE_string("workdir", "", "Where the run is kept. Default: runs/<dataset>_<method>.")
MODE = flags.DEFINE_enum("mode", "train", ["train", "evaluate"], "Train, or evaluate a checkpoint of the workdir.")
CHECKPOINT = flags.DEFINE_string("checkpoint", "latest", "Which one to evaluate: latest, best, or a step.")
CACHE = flags.DEFINE_string(
    "compilation_cache",
    os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "orc_jax"),
    "Folder where compiled programs are kept from run to run; empty: they are not.",
)


def main(argv: list[str]) -> None:
    logging.set_verbosity(logging.ERROR)  # TFDS and Orbax report a lot
    console = Console()
    if len(argv) > 1:
        fail(f"not understood: {' '.join(argv[1:])}. Overrides are written --config.field=value")
    config = CONFIG.value
    workdir = Path(WORKDIR.value or f"runs/{config.dataset}_{config.method}")
    # Imported late, so that --help and mistakes in the flags are answered at once. TensorFlow, which only preparing a
    # data set needs, is kept from reporting on itself and from looking for Google's cloud.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("NO_GCE_CHECK", "true")
    from orc_jax.evaluate import evaluate_checkpoint
    from orc_jax.train import train

    keep_programs()
    try:
        if MODE.value == "train":
            train(config, workdir, console)
        else:
            evaluate_checkpoint(config, workdir, CHECKPOINT.value, console)
    except UserError as error:
        fail(str(error))
    except KeyboardInterrupt:
        fail("interrupted; the same command goes on from the last checkpoint", status=130)


def keep_programs() -> None:
    """Keeps compiled programs on disk, where `--compilation_cache` says, or JAX_COMPILATION_CACHE_DIR if it is set."""
    import jax

    if CACHE.value and not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(Path(CACHE.value).expanduser().absolute()))


def parse(argv: list[str]) -> list[str]:
    """Absl's parser of flags, with the embedded default, and a message instead of a traceback for what is wrong."""
    given = _config_path(argv)
    if given is None:
        # not the default of the flag: that would be checked against the overrides of any other config
        argv = [argv[0], f"--config={EMBEDDED_DEFAULT}", *argv[1:]]
    path = EMBEDDED_DEFAULT if given is None else Path(given.partition(":")[0])
    if not path.is_file():
        fail(f"--config={path}: there is no such file; the repository has some in configs/")
    try:
        return app.parse_flags_with_usage(argv)
    except AttributeError:
        from orc_jax.config import flat

        fields = flat(runpy.run_path(str(path))["get_config"]().to_dict())
        for override in re.findall(r"(?m)^--?config\.([\w.]+)", "\n".join(argv)):
            if override not in fields:
                fail(str(unknown("--config: field", override, fields)))
        raise


def _config_path(argv: list[str]) -> str | None:
    """The value of the last `--config`, written with or without "="."""
    for i in reversed(range(1, len(argv))):
        name, equals, value = argv[i].partition("=")
        if name in ("--config", "-config"):
            return value if equals else "".join(argv[i + 1 : i + 2])
    return None


def fail(message: str, status: int = 2) -> NoReturn:
    print(f"orc_jax: {message}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
