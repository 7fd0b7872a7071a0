"""Trains every method with the same budget, and tabulates what becomes of the target student.

python -m orc_jax.compare --config configs/digits.py --methods orc,dgkd,independent --seeds 5

Runs of one seed have in common: the images and their order, the number of epochs, the initial target student, the
initial member of every position, and the pre-trained teacher. The pool is that of the config, with these exceptions:
independent trains the target student alone; switokd and the offline methods the teacher and the target student; pcl,
one and cl_ilr, whose peers are of one architecture, as many copies of the target student. A method of one's own,
`my_module:my_method`, has that of the config, and config.method_options.

Instead of methods, the values of fields, --sweep orc.beta=0.3,0.9, with one teacher for all; or the method of the
config and what becomes of it with one thing changed, --ablate orc.role_change=False; or published rows, each with the
recipe of its paper, --rows kd/resnet56/resnet20, and the figure that was published beside ours.

On a GPU or TPU several runs that one program can train are trained at once, where that pays and fits; --config.replicas
says how many, and 1 that they go one by one (docs/usage.md#replicas).

Everything is kept in --out; the same command goes on where it stopped, and repeats nothing. It writes compare.md,
compare.csv and compare.png, after every run. A run that fails is marked there and the others go on; the exit code is
then 2. The page on it: python -m orc_jax.report --workdir with the folder of --out.
"""

import sys

from absl import flags

from orc_jax import allocator, commands, flagging, places
from orc_jax.errors import UserError
from orc_jax.terminal import doing, make_console, warner

FLAGS = flags.FlagValues()
METHODS = flags.DEFINE_list(
    "methods",
    None,
    "Which methods, in the order of the table: names, of your own my_module:my_method, or the words online (those of a "
    "pool), offline (those of one fixed teacher), all. Default: online,kd.",
    flag_values=FLAGS,
)
SWEEP = flags.DEFINE_multi_string(
    "sweep",
    [],
    "Instead of methods: values of a field, field=value,value; once for each field, and all combinations are trained.",
    flag_values=FLAGS,
)
ABLATE = flags.DEFINE_multi_string(
    "ablate",
    [],
    "Instead of methods: that of the config, and it with each value of a field by itself, field=value; once for each "
    "field. The others are measured by the first.",
    flag_values=FLAGS,
)
ROWS = flags.DEFINE_list(
    "rows",
    None,
    "Instead of methods: published rows, such as kd/resnet56/resnet20, or all that start with kd/ (docs/reproduce.md).",
    flag_values=FLAGS,
)
SEEDS = flags.DEFINE_integer("seeds", 3, "How many seeds, from config.seed on.", flag_values=FLAGS)
OUT = flags.DEFINE_string(
    "out", None, "The folder of the runs and the table. Default: runs/compare_<dataset>.", flag_values=FLAGS
)
WORKDIR = flags.DEFINE_string("workdir", None, "As --out.", flag_values=FLAGS)  # what it was called once
CACHE = flagging.define_cache(FLAGS)
OF_ONE_RUN = ("mode", "checkpoint", "resume", "own", "coordinator", "num_processes", "process_id")  # no use here


def main() -> None:
    """The command."""
    commands.start()
    allocator.keep_pages()
    console = make_console()
    with commands.understood(), doing(console, "loading JAX"):
        flagging.refuse(sys.argv, OF_ONE_RUN, "is for one run; a comparison trains many, and goes on by itself")
        given = flagging.parse(sys.argv, FLAGS, __doc__)
        if OUT.value and WORKDIR.value:
            raise UserError(f"--out={OUT.value} and --workdir={WORKDIR.value}: give --out alone")
        lists = (METHODS.value is not None, SWEEP.value, ABLATE.value, ROWS.value is not None)
        if sum(map(bool, lists)) > 1:
            raise UserError(
                "--methods, --sweep, --ablate, --rows: give one of them; accepted is another command for each"
            )
        # Imported late, so that --help and mistakes in the flags are answered at once.
        from orc_jax.compare import variants
        from orc_jax.compare.comparison import ALONE, compare
        from orc_jax.published import ROWS as published

    with commands.understood():
        kind = "sweep" if SWEEP.value else "ablate" if ABLATE.value else "rows" if ROWS.value else "compare"
        default = f"runs/{kind}" + ("" if ROWS.value else f"_{given.config.dataset}")
        folder = places.workdir("--out", OUT.value or WORKDIR.value or default)
        commands.keep_programs(CACHE.value)  # seeds of one method have one program
    with commands.reported(folder):
        if ROWS.value is not None:
            rows = variants.of_rows(ROWS.value, given.overrides)
            told = {row.name: published[row.name].text for row in rows}
            compare(rows[0].config, rows, SEEDS.value, folder, console, baseline="", published=told)
            return
        for line in (f"config: {given.base}", *given.adapted):
            warner(console)(line)
        if SWEEP.value or ABLATE.value:
            of = variants.of_sweep if SWEEP.value else variants.of_ablation
            swept = of(given.config, SWEEP.value or ABLATE.value)
            compare(given.config, swept, SEEDS.value, folder, console, baseline=swept[0].name)
            return
        chosen = variants.of_methods(given.config, METHODS.value or variants.BY_DEFAULT)
        compare(given.config, chosen, SEEDS.value, folder, console, baseline=ALONE)


if __name__ == "__main__":
    main()
