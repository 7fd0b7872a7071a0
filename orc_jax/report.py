"""Writes a page on a run, or on several: results, learning curves, roles, what the networks do on images, config.

python -m orc_jax.report --workdir runs/cifar100_orc
python -m orc_jax.report --workdir runs/cifar100_orc --workdir runs/cifar100_kd --out runs/comparison

The runs are only read, and may be training.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from absl import logging

from orc_jax import checkpoint, logs
from orc_jax.errors import UserError, require
from orc_jax.member import add_own_argument
from orc_jax.reporting import collect, figures, network_sections, sections
from orc_jax.reporting.collect import Record
from orc_jax.reporting.page import Part, page

PAGE = "report.html"


def report(
    workdirs: Sequence[Path],
    out: Path | None,
    which: str,
    max_examples: int,
    warn: Callable[[str], None],
    data_dir: str | None = None,
) -> Path:
    """Writes the page on the runs in `workdirs`, and its figures as PNG.

    Args:
        workdirs: of the runs; the comparison comes first if there are several.
        out: the folder to write; None is `report/` in the first workdir.
        which: the checkpoint of each run: "latest", "best", or a step.
        max_examples: of the evaluation set that the networks see, at most.
        warn: told what is left out of a data set.
        data_dir: where the data set of the runs lies now; None is where their configs say.

    Returns:
        The page.

    Raises:
        UserError: for bad input.
    """
    require("--max_examples", max_examples, max_examples >= 1, "at least 1")
    records = [collect.read_record(*pair) for pair in zip(workdirs, collect.labels_of(workdirs), strict=True)]
    if data_dir is not None:
        for record in records:
            record.config.data_dir = data_dir
    out = out or workdirs[0] / "report"
    with _writing(out):
        out.mkdir(parents=True, exist_ok=True)
    parts = [_run(record, f"run{i}", which, max_examples, warn) for i, record in enumerate(records, start=1)]
    if len(records) > 1:
        summary = f"{len(records)} runs; a section on each follows."
        parts.insert(0, Part("runs", "Comparison", summary, (), tuple(sections.comparison(records))))
    title = parts[0].title if len(records) == 1 else "Runs: " + ", ".join(record.label for record in records)
    text = page(title, parts, "Written by python -m orc_jax.report.")
    with _writing(out):
        for part in parts:
            for drawn in (one for section in part.sections for one in section.drawn):
                name = drawn.name if len(parts) == 1 else f"{part.name}-{drawn.name}"
                (out / f"{name}.png").write_bytes(figures.as_png(drawn.figure))
        logs.replace_text(out / PAGE, text)
    return out / PAGE


@contextlib.contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"--out={out}: cannot be written: {error}") from error


def _run(record: Record, name: str, which: str, max_examples: int, warn: Callable[[str], None]) -> Part:
    """All sections on one run."""
    of_networks, line = network_sections.of_networks(record, which, max_examples, warn)
    parts = [sections.results(record), sections.learning(record), sections.roles(record), *of_networks]
    parts += [sections.speed(record), sections.configuration(record)]
    config = record.config
    epoch = record.rows[-1]["epoch"] if record.rows else 0
    tiles = [("of epochs are logged", f"{epoch} / {config.num_epochs}")]
    if record.evaluated:
        last, target = record.evaluated[-1], record.pool.member_names[-1]
        best = sections.best_row(record)
        tiles.append(("top-1 of the target student", sections.percent(last[f"eval/top1/{target}"])))
        tiles.append((f"its best, epoch {best['epoch']}", sections.percent(best[f"eval/top1/{target}"])))
        if record.pool.size > 1:
            tiles.append(("top-1 of the ensemble", sections.percent(last["eval/top1/ensemble"])))
    summary = f"{config.method} on {config.dataset}: {', '.join(record.pool.member_names)}; {line}."
    return Part(name, f"Run {record.label}", summary, tuple(tiles), tuple(parts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, action="append", required=True, help="a run; may be given repeatedly")
    parser.add_argument("--out", type=Path, help="the folder to write; default: report/ in the first workdir")
    parser.add_argument("--checkpoint", default="latest", help="latest (default), best, or a step")
    parser.add_argument("--max_examples", type=int, default=10_000, help="of the evaluation set; default: 10000")
    add_own_argument(parser)
    parser.add_argument("--data_dir", help="where the data set is, if no more where config.data_dir says")
    args = parser.parse_args()
    logging.set_verbosity(logging.FATAL)  # Orbax reports a lot, and what fails is raised as well
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("NO_GCE_CHECK", "true")
    try:
        with checkpoint.without_stragglers():
            written = report(args.workdir, args.out, args.checkpoint, args.max_examples, print, args.data_dir)
    except UserError as error:
        print(f"orc_jax: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"written to {written}")


if __name__ == "__main__":
    main()
