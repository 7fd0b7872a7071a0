"""The page on a run or on several, put together from its sections and written with its figures."""

from collections.abc import Callable, Sequence
from pathlib import Path

from orc_jax.errors import require
from orc_jax.report import collect, figures, network_sections, sections
from orc_jax.report.collect import Logged
from orc_jax.report.page import Part, page
from orc_jax.workdir import metrics
from orc_jax.workdir.files import replace_text, writing

PAGE = "report.html"


def write_report(
    workdirs: Sequence[Path],
    out: Path | None,
    which: str,
    max_examples: int,
    warn: Callable[[str], None],
    data_dir: str | None = None,
    own: Sequence[str] = (),
) -> Path:
    """Writes the page on the runs in `workdirs`, and its figures as PNG; returns the page's path.

    Args:
        workdirs: of the runs; the comparison comes first if there are several.
        out: the folder to write; None is `report/` in the first workdir.
        which: the checkpoint of each run: "latest", "best", or a step.
        max_examples: of the evaluation set that the networks see, at most.
        warn: told what is left out of a data set.
        data_dir, own: as of `orc_jax.report.collect.read`.

    Raises:
        UserError: for bad input.
    """
    require("--max_examples", max_examples, max_examples >= 1, "at least 1")
    labels = collect.labels_of(workdirs)
    runs = [collect.read(*pair, own, data_dir) for pair in zip(workdirs, labels, strict=True)]
    out = out or workdirs[0] / "report"
    with writing(f"--out={out}"):
        out.mkdir(parents=True, exist_ok=True)
    parts = [_run(run, f"run{i}", which, max_examples, warn) for i, run in enumerate(runs, start=1)]
    if len(runs) > 1:
        summary = f"{len(runs)} runs; a section on each follows."
        parts.insert(0, Part("runs", "Comparison", summary, (), tuple(sections.comparison(runs))))
    title = parts[0].title if len(runs) == 1 else "Runs: " + ", ".join(run.label for run in runs)
    text = page(title, parts, "Written by python -m orc_jax.report.")
    with writing(f"--out={out}"):
        for part in parts:
            for drawn in (one for section in part.sections for one in section.drawn):
                name = drawn.name if len(parts) == 1 else f"{part.name}-{drawn.name}"
                (out / f"{name}.png").write_bytes(figures.as_png(drawn.figure))
        replace_text(out / PAGE, text)
    return out / PAGE


def _run(run: Logged, name: str, which: str, max_examples: int, warn: Callable[[str], None]) -> Part:
    """All sections on one run."""
    of_networks, line = network_sections.of_networks(run, which, max_examples, warn)
    parts = [sections.results(run), sections.learning(run), sections.roles(run), *of_networks]
    parts += [sections.speed(run), sections.configuration(run)]
    config, names = run.resolved.config, run.names
    epoch = run.rows[-1]["epoch"] if run.rows else 0
    tiles = [("of epochs are logged", f"{epoch} / {config.num_epochs}")]
    if run.evaluated:
        last, best, target = run.evaluated[-1], metrics.best(run.rows, names[-1]), names[-1]
        top1 = lambda row, name: sections.percent(row[metrics.evaluation("top1", name)])  # noqa: E731
        tiles.append(("top-1 of the target student", top1(last, target)))
        tiles.append((f"its best, epoch {best['epoch']}", top1(best, target)))
        if len(names) > 1:
            tiles.append(("top-1 of the ensemble", top1(last, metrics.ENSEMBLE)))
    summary = f"{config.method} on {config.dataset}: {', '.join(names)}; {line}."
    return Part(name, f"Run {run.label}", summary, tuple(tiles), tuple(parts))
