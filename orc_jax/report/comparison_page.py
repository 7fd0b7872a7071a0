"""The page on a comparison of methods, from its record and the logs of its runs: no network and no image is read."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from orc_jax import terminal
from orc_jax.data.splits import eval_splits
from orc_jax.report import figures, sections, story
from orc_jax.report.page import Drawn, Part, Section, facts, table
from orc_jax.workdir import metrics
from orc_jax.workdir.comparison import Compared, Comparison

ALONE = "independent"


def columns(comparison: Comparison) -> list[str]:
    """The heads of the table."""
    over = [f"over {comparison.baseline}"] if comparison.baseline else ["over"]
    told = ["published"] if comparison.published else []
    others = [f"{name} at best" for name in comparison.other_splits]
    return ["method", "last epoch", *over, "best epoch", *others, "ensemble", "cost", "seconds", *told]


def chosen(comparison: Comparison) -> str:
    """How the best epoch was chosen."""
    if not comparison.other_splits:
        return "chosen on the same split, so\noptimistic."
    return f"chosen on {eval_splits(comparison.config)[0]};\n{', '.join(comparison.other_splits)} had no part in it."


def subject(comparison: Comparison) -> str:
    """What the runs are about."""
    if comparison.published:
        return "published rows"
    return f"{comparison.config['student']} on {comparison.config['dataset']}"


def percent(values: Sequence[float], sign: str = "") -> str:
    """Mean and sample standard deviation of fractions, in percent."""
    points = 100 * np.array(values)
    return f"{points.mean():{sign}.2f}" + (f" ± {points.std(ddof=1):.2f}" if len(points) > 1 else "")


def over_baseline(comparison: Comparison, method: str) -> list[float]:
    """By how much a method's runs are better than the baseline's with the same seed, of seeds that have both."""
    base = comparison.baseline
    alone = {run.seed: run.last for run in comparison.of(base)}
    pairs = [(run.last, alone.get(run.seed)) for run in comparison.of(method) if method != base]
    return [ours - theirs for ours, theirs in pairs if ours is not None and theirs is not None]


def label(method: str, runs: Sequence[Compared]) -> str:
    """A method with what its runs lack: "kd (1 of 5 failed)"."""
    failed = sum(bool(run.error) for run in runs)
    ahead = sum(not run.is_finished and not run.error for run in runs)
    lacks = [f"{count} of {len(runs)} {what}" for count, what in ((failed, "failed"), (ahead, "to come")) if count]
    return f"{method} ({', '.join(lacks)})" if lacks else method


def method_rows(comparison: Comparison) -> list[list[str]]:
    """The table: a row of `columns` for each method, over its finished runs."""
    rows = []
    for method in comparison.methods:
        runs = comparison.of(method)
        done = [run for run in runs if run.is_finished]
        told = [comparison.published.get(method, "")] if comparison.published else []
        if not done:
            rows.append([label(method, runs), *[sections.NONE] * (6 + len(comparison.other_splits)), *told])
            continue
        over = over_baseline(comparison, method)
        last, best, ensemble = (percent([getattr(run, of) for run in done]) for of in ("last", "best", "ensemble"))
        others = [percent([run.others[name] for run in done]) for name in comparison.other_splits]
        cost = f"{comparison.costs[method]:.1f}" if method in comparison.costs else sections.NONE
        seconds = f"{np.mean([run.seconds or 0.0 for run in done]):.0f}"
        rows.append(
            [label(method, runs), last, percent(over, "+") if over else "", best]
            + [*others, ensemble, cost, seconds, *told]
        )
    return rows


def figure(comparison: Comparison) -> figures.Figure:
    """Every run, and the means of the methods."""
    rows = {}
    for method in comparison.methods:
        runs = comparison.of(method)
        done = [run for run in runs if run.is_finished]
        rows[label(method, runs)] = tuple([100 * getattr(run, of) for run in done] for of in ("last", "best"))
    return figures.methods(f"Top-1 of {subject(comparison)}", rows)


def part(folder: Path, comparison: Comparison) -> Part:
    """All of the page."""
    config = comparison.config
    summary = f"{len(comparison.methods)} methods, {len(comparison.runs)} runs, on {config['dataset']}."
    shown = [_methods(folder, comparison), _runs(folder, comparison), _config(comparison)]
    opening = f"<p>{escape(' '.join(words(comparison)))}</p>\n{facts(_facts(comparison))}"
    return Part("comparison", f"Comparison {folder.absolute().name}", summary, (), tuple(shown), opening)


def words(comparison: Comparison) -> list[str]:
    """What has come of it, in sentences."""
    config, sentences = comparison.config, []
    means = {m: [run.last for run in comparison.of(m) if run.last is not None] for m in comparison.methods}
    means = {method: float(np.mean(values)) for method, values in means.items() if values}
    if means:
        first = max(means, key=lambda method: means[method])
        done = [run for run in comparison.of(first) if run.is_finished]
        sentences.append(
            f"The target student {config['student']} comes farthest with {first}: "
            f"{percent([run.last or 0.0 for run in done])} % top-1 after the last epoch on the split "
            f"{eval_splits(config)[0]!r} of {config['dataset']}, over {sections.counted(len(done), 'seed')}."
        )
        over = over_baseline(comparison, first)
        if comparison.published:
            sentences = [f"{len(means)} published rows have a finished run; the table has their figures beside ours."]
        elif first == comparison.baseline != ALONE:
            sentences.append("It is what the others are measured by.")
        elif over and comparison.baseline != ALONE:
            sentences.append(
                f"That is {percent(over, '+')} percentage points over {comparison.baseline}, with the same data, their "
                "order, seeds and teacher."
            )
        elif first == ALONE:
            sentences.append("So no method makes it better here, on average, than it is alone.")
        elif over and comparison.baseline == ALONE:
            wins = sum(value > 0 for value in over)
            sentences.append(
                f"That is {percent(over, '+')} percentage points over the same student trained alone, with the same "
                f"data and budget; it is better with {wins} of {sections.counted(len(over), 'seed')}."
            )
        else:
            sentences.append("How it would do alone is unknown: --methods without independent has no baseline.")
    else:
        sentences.append("No run is finished yet.")
    if comparison.failed:
        sentences.append(f"{len(comparison.failed)} of {len(comparison.runs)} runs failed: {failures(comparison)}.")
    if ahead := sum(not run.is_finished and not run.error for run in comparison.runs):
        sentences.append(f"{ahead} of {len(comparison.runs)} runs are still to come.")
    return sentences


def failures(comparison: Comparison) -> str:
    """Which runs have failed, and why."""
    return "; ".join(f"{run.method}, seed {run.seed} ({run.error})" for run in comparison.failed)


def _facts(comparison: Comparison) -> list[tuple[str, str]]:
    done = [run for run in comparison.runs if run.is_finished]
    times = [run.took for run in done]
    ended = max((run.ended for run in done), default="")
    known = [time for time in times if time is not None]
    took = terminal.duration(sum(known)) + ", all runs together, without teachers that methods share"
    return [
        ("Date", story.moment(ended) if ended else story.UNKNOWN if done else "no run is finished yet"),
        ("Duration", took if len(known) == len(times) else story.UNKNOWN),
        ("Seeds", ", ".join(str(seed) for seed in dict.fromkeys(run.seed for run in comparison.runs))),
        *story.of_record(comparison),
    ]


def _methods(folder: Path, comparison: Comparison) -> Section:
    text = (
        "Mean and standard deviation over the seeds, in percent. Over independent: differences between runs of the "
        f"same seed. Best epoch: {' '.join(chosen(comparison).split())} Ensemble: of all members, last epoch. Cost: "
        "operations of everything that was trained, stages and teacher included, in forward passes of the target "
        "student per training example. Seconds: of training, likewise. The curves are means of the seeds."
    )
    drawn = [Drawn("methods", figure(comparison), f"Top-1 of {', '.join(comparison.methods)}")]
    series = courses(folder, comparison)
    if series:
        curves = figures.curves("Target student: top-1", "%", series)
        drawn.append(Drawn("top1", curves, f"Top-1 over epochs with {', '.join(series)}"))
    return Section("Methods", text, table(columns(comparison), method_rows(comparison), texts=1), tuple(drawn))


def courses(folder: Path, comparison: Comparison) -> dict[str, tuple[list[int], list[float]]]:
    """The target student's mean top-1 in percent by method, over those epochs that all runs of it have so far."""
    series = {}
    for method in comparison.methods:
        found = []
        for run in comparison.of(method):
            epochs, values = metrics.course(metrics.read(folder / run.folder), metrics.evaluation("top1", run.target))
            found += [dict(zip(epochs, values, strict=True))] if epochs else []
        common = sorted(set.intersection(*map(set, found))) if found else []
        if common:
            series[method] = (common, [100 * float(np.mean([one[epoch] for one in found])) for epoch in common])
    return series


def _runs(folder: Path, comparison: Comparison) -> Section:
    rows = []
    for run in comparison.by_method:
        others = [run.others.get(name) for name in comparison.other_splits]
        results = [sections.percent(value) for value in (run.last, run.best, *others, run.ensemble)]
        state = f"failed: {run.error}" if run.error else "finished" if run.is_finished else "to come"
        rows.append([f"{run.method}, seed {run.seed}", run.folder, state, *results])
    others = [f"{name} at best" for name in comparison.other_splits]
    columns = ["run", "folder", "state", "last epoch", "best epoch", *others, "ensemble"]
    where = story.shown(folder / comparison.runs[0].folder)
    text = f"Every run, with its folder. The page on one of them: python -m orc_jax.report --workdir {where}"
    return Section("Runs", text, table(columns, rows, texts=3))


def _config(comparison: Comparison) -> Section:
    text = "What all runs were given and differs from the default. Method, seed and pool are each run's own."
    return Section("Config", text, sections.fields(comparison.config))
