"""The page on a run or on several, put together from its sections and written with its figures."""

from collections.abc import Callable, Sequence
from pathlib import Path

from orc_jax.errors import UserError, require
from orc_jax.report import collect, comparison_page, figures, network_sections, sections, story
from orc_jax.report.collect import Logged
from orc_jax.report.network_sections import Doing, quietly
from orc_jax.report.page import Part, page
from orc_jax.workdir import comparison, metrics, record
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
    doing: Doing = quietly,
) -> Path:
    """Writes the page on the runs in `workdirs`, and its figures as PNG; returns the page's path.

    Args:
        workdirs: of the runs; the comparison comes first if there are several. Or one folder of `orc_jax.compare`.
        out: the folder to write; None is `report/` in the first workdir.
        which: the checkpoint of each run: "latest", "best", or a step.
        max_examples: of the evaluation set that the networks see, at most.
        warn: told what is left out of a data set.
        data_dir, own: as of `orc_jax.report.collect.read`.
        doing: around what takes its time, told what it is.

    Raises:
        UserError: for bad input.
    """
    require("--max_examples", max_examples, max_examples >= 1, "at least 1")
    out = out or workdirs[0] / "report"
    compared = [folder for folder in workdirs if _is_comparison(folder)]  # of `orc_jax.compare`
    if compared:
        return _write(out, [_comparison(compared[0], workdirs)])
    labels = collect.labels_of(workdirs)
    runs = [collect.read(*pair, own, data_dir) for pair in zip(workdirs, labels, strict=True)]
    with writing(f"--out={out}"):
        out.mkdir(parents=True, exist_ok=True)  # before what takes its time
    openings = [story.opening(run, workdirs) for run in runs]
    parts = [
        _run(run, f"run{i}", which, max_examples, warn, doing)._replace(opening=opening)
        for i, (run, opening) in enumerate(zip(runs, openings, strict=True), start=1)
    ]
    if len(runs) > 1:
        summary = f"{len(runs)} runs; a section on each follows."
        parts.insert(0, Part("runs", "Comparison", summary, (), tuple(sections.comparison(runs))))
    with doing("drawing the figures"):
        return _write(out, parts, "Runs: " + ", ".join(labels) if len(runs) > 1 else "")


def in_words(workdirs: Sequence[Path], own: Sequence[str] = ()) -> list[str]:
    """What the page says first on each run, as text; nothing on the folder of a comparison."""
    if any(map(_is_comparison, workdirs)):
        return []
    return [story.in_words(collect.read(workdir, workdir.name, own), workdirs) for workdir in workdirs]


def _write(out: Path, parts: Sequence[Part], title: str = "") -> Path:
    """Writes the page, which is called like its only part unless it has a title, and its figures."""
    text = page(title or parts[0].title, parts, "Written by python -m orc_jax.report.")
    with writing(f"--out={out}"):
        out.mkdir(parents=True, exist_ok=True)
        for part in parts:
            for drawn in (one for section in part.sections for one in section.drawn):
                name = drawn.name if len(parts) == 1 else f"{part.name}-{drawn.name}"
                (out / f"{name}.png").write_bytes(figures.as_png(drawn.figure))
            for file, content in (one for section in part.sections for one in section.files):
                replace_text(out / (file if len(parts) == 1 else f"{part.name}-{file}"), content)
        replace_text(out / PAGE, text)
    return out / PAGE


def _is_comparison(folder: Path) -> bool:
    if (folder / record.FILE).exists():
        return False
    known, table = (folder / comparison.FILE).exists(), (folder / "compare.csv").exists()
    if table and not known:
        raise UserError(
            f"--workdir={folder} holds a comparison of an earlier version, without {comparison.FILE}: its command, "
            "given again, writes that and trains nothing twice"
        )
    return known


def _comparison(folder: Path, workdirs: Sequence[Path]) -> Part:
    if len(workdirs) > 1:
        raise UserError(f"--workdir={folder} holds a comparison, which has a page of its own: give it alone")
    there = comparison.read(folder)
    assert there is not None
    return comparison_page.part(folder, there)


def _run(run: Logged, name: str, which: str, max_examples: int, warn: Callable[[str], None], doing: Doing) -> Part:
    """All sections on one run."""
    of_networks, line = network_sections.of_networks(run, which, max_examples, warn, doing)
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
