"""Writes a page on a run, or on several: results, learning curves, roles, what the networks do on images, config.

python -m orc_jax.report --workdir runs/cifar100_orc
python -m orc_jax.report --workdir runs/cifar100_orc --workdir runs/cifar100_kd --out runs/comparison
python -m orc_jax.report --workdir runs/compare_cifar100    # the folder of orc_jax.compare

The runs are only read, and may be training.
"""

import functools

from orc_jax import cache, commands
from orc_jax.terminal import doing, make_console, warner


def main() -> None:
    commands.start()
    parser = commands.parser(__doc__)
    parser.add_argument(
        "--workdir",
        type=commands.path,
        action="append",
        required=True,
        help="a run, and several if given repeatedly; or a comparison",
    )
    parser.add_argument("--out", type=commands.path, help="the folder to write; default: report/ in the first workdir")
    commands.add_run_arguments(parser)
    parser.add_argument("--max_examples", type=int, default=10_000, help="of the evaluation set; default: 10000")
    parser.add_argument(
        "--data_dir",
        type=lambda text: str(commands.path(text)),
        help="where the data set is, if no more where config.data_dir says",
    )
    args = parser.parse_args()
    console = make_console()
    with commands.understood(), doing(console, "loading JAX"):
        from orc_jax.report.write import in_words, write_report

    commands.keep_programs(str(cache.folder()))
    with commands.reported():
        written = write_report(
            args.workdir,
            args.out,
            args.checkpoint,
            args.max_examples,
            warner(console),
            args.data_dir,
            args.own,
            functools.partial(doing, console),
        )
    for words in in_words(args.workdir, args.own):
        print(words)
    print(f"written to {written}")


if __name__ == "__main__":
    main()
