"""Searches for the values of fields with which the target student comes farthest, by Optuna.

python -m orc_jax.tune --config configs/digits.py --trials 30 --out runs/tune
python -m orc_jax.tune --config configs/digits.py --search orc.beta=0.1:0.9 --search learning_rate=0.01:0.3:log

Without --search it is what the paper of the method leaves open: for ORC beta, T, alpha, |F| and the pivot's rate.

Trials are judged by the first split of config.eval_splits, at the best epoch of the target student; a config with one
split holds a tenth of the training set out for that. A trial ends early where it is worse than the median of those
before it. What the best comes to on the other splits is told at the end.

On a GPU or TPU several trials are trained at once, if they differ in values alone that one program can have several of,
and that pays and fits; --config.replicas says how many, and 1 that they go one by one (docs/usage.md#search).

Everything is kept in --out: study.journal, Optuna's own record, trials.csv, trials.png, and a workdir for each trial.
The same command goes on where it stopped; with more --trials it goes on further.
"""

import sys

from absl import flags

from orc_jax import allocator, commands, flagging, places
from orc_jax.errors import UserError
from orc_jax.terminal import doing, make_console, warner

FLAGS = flags.FlagValues()
SEARCH = flags.DEFINE_multi_string(
    "search",
    [],
    "A field and its range, field=low:high or field=low:high:log, or its choices, field=value,value; once for each.",
    flag_values=FLAGS,
)
TRIALS = flags.DEFINE_integer("trials", 20, "How many trials, those of before included.", flag_values=FLAGS)
OUT = flags.DEFINE_string(
    "out", None, "The folder of the search. Default: runs/tune_<method>_<dataset>.", flag_values=FLAGS
)
CACHE = flagging.define_cache(FLAGS)
OF_ONE_RUN = ("mode", "checkpoint", "resume", "own", "workdir", "coordinator", "num_processes", "process_id")


def main() -> None:
    """The command."""
    commands.start()
    allocator.keep_pages()
    console = make_console()
    with commands.understood(), doing(console, "loading JAX"):
        flagging.refuse(sys.argv, OF_ONE_RUN, "is for one run; a search trains many, and goes on by itself")
        given = flagging.parse(sys.argv, FLAGS, __doc__)
        # Imported late, so that --help and mistakes in the flags are answered at once.
        try:
            from orc_jax.tune import space
            from orc_jax.tune.search import judged, search
        except ModuleNotFoundError as error:
            if error.name != "optuna":
                raise
            raise UserError("a search needs Optuna, which is not installed (pip install optuna)") from None
        config, changed = judged(given.config)
        searched = space.parse(config, SEARCH.value or space.of_method(config.method))
        folder = places.workdir("--out", OUT.value or f"runs/tune_{config.method}_{config.dataset}")
        commands.keep_programs(CACHE.value)  # trials that differ in values of a step have one program
    with commands.reported(folder):
        warn = warner(console)
        for line in (f"config: {given.base}", *given.adapted, *changed):
            warn(line)
        found = search(config, searched, TRIALS.value, folder, console)
        others = "".join(f", on {name} {100 * top1:.2f} %" for name, top1 in found.others.items())
        warn(f"best: {100 * found.top1:.2f} % top-1 at its best epoch{others}, of {found.folder}, with")
        warn(" ".join(f"--config.{name}={value!r}" for name, value in found.values.items()))
        warn("One seed says little: orc-jax-compare trains it, and the config as it was, with several")


if __name__ == "__main__":
    main()
