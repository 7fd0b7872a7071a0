"""A search for the values of fields, from its first trial to its table; it goes on where it stopped.

Optuna chooses the values (TPE), and ends a trial that is worse than the median of those before was at the same epoch.
What it knows lies in `study.journal`, in its own format, for its own tools. Trials that one program can train are asked
for and trained several at once; those of before are then the ones that have finished.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from ml_collections import ConfigDict
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from orc_jax.compare.comparison import attempt, reader
from orc_jax.compare.runs import Planned, Variant, even_part, groups, most_at_once, result_of, variant_run
from orc_jax.compare.variants import shares_teacher, with_values
from orc_jax.config import Resolved, flat
from orc_jax.data.splits import HELD_OUT, eval_splits
from orc_jax.data.types import Dataset
from orc_jax.errors import UserError, require
from orc_jax.pool import names_of
from orc_jax.terminal import duration, warner
from orc_jax.tune import table
from orc_jax.tune.space import Space, values_in
from orc_jax.workdir import metrics, record
from orc_jax.workdir.files import locked

STUDY = "study.journal"
SHARE = 0.1  # of the training set, held out where the config has a single split
BEFORE_PRUNING = 5  # trials that are trained to their end, whatever they come to; and of each trial a quarter


class Found(NamedTuple):
    """The best trial."""

    values: Mapping[str, Any]  # of the fields, by their dotted names
    top1: float  # of the target student at its best epoch, on the first split
    others: Mapping[str, float]  # on the other splits, at that epoch
    folder: Path  # of its run


def judged(config: ConfigDict) -> tuple[ConfigDict, list[str]]:
    """A config whose trials are judged by other examples than tell what they come to, and a line on what was changed.

    The split that a search has chosen by says no longer what is to be expected of new images.
    """
    if len(eval_splits(config)) > 1:
        return config, []
    config = config.copy_and_resolve_references()
    config.validation_share, config.eval_splits = SHARE, f"{HELD_OUT},{config.eval_split}"
    why = f"trials are judged by a share of the training set that is held out, not by {config.eval_split!r}"
    return config, [f"config.validation_share={SHARE}: {why}"]


def search(config: ConfigDict, space: Space, trials: int, out: Path, console: Console) -> Found:
    """Trains until there are `trials`, writes the table after every one, and returns the best.

    Raises:
        UserError: for bad input, before the first trial; if the folder holds another search; if no trial has finished.
        Interrupted: if it was asked to stop; the trial under way goes on with the same command.
    """
    require("--trials", trials, trials >= 1, "at least 1")
    require("config.replicas", config.replicas, config.replicas >= 0, "at least 0")
    require("--out", out, not (out / record.FILE).exists(), "another folder: this one holds a run")
    for name, value in space.extremes():  # what is refused is refused before anything is trained
        planned(config, {name: value}, 0, out)
    first, dataset_of = planned(config, {}, 0, out).run, reader(console)
    alike, dataset = _in_one_program(config, space, first), dataset_of(first)
    most = most_at_once(config.replicas, first, dataset) if alike else 1
    warn, broken = warner(console), {}
    with locked(out):
        study = opened(config, space, out)
        _go_on(study)
        while len(done := table.counted(study)) < trials:
            study.sampler = optuna.samplers.TPESampler(seed=config.seed + len(done))  # after an interruption, too
            asked = [_asked(study, config, space, out) for _ in range(even_part(trials - len(done), most))]
            for i, judge in enumerate(asked):
                left = _left(done, trials, len(asked)) if i == 0 else ""
                warn(f"trial {len(done) + i + 1} of {trials}: {table.told(judge.trial.params)}{left}")
            for group in groups([judge.one for judge in asked], dataset_of, most):
                _train([asked[i] for i in group], dataset_of, broken, out, console)
            table.write(out, study, space)
            console.print(table.so_far(study, space))
    return best(study, config, out)


def planned(config: ConfigDict, values: Mapping[str, Any], number: int, out: Path) -> Planned:
    """The run of a trial: the config with other values. Trials have one teacher if no value makes it another."""
    changed = with_values(config, values_in(config, values))
    variant = Variant(f"trial_{number:03d}", changed, shares_teacher(values), tuple(values))
    return variant_run(config, variant, 0, out)


def opened(config: ConfigDict, space: Space, out: Path) -> optuna.Study:
    """The study in a folder, or a new one.

    Raises:
        UserError: if the folder has that of another search.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(out / STUDY))),
        study_name="orc_jax",
        direction="maximize",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(BEFORE_PRUNING, config.num_epochs // 4),
    )
    fields = flat(json.loads(config.to_json())).items()
    here = {f"config.{name}": value for name, value in fields if name not in record.FREE_FIELDS}
    here["--search"] = list(space.texts)
    for name, value in study.user_attrs.items():
        if value != here.get(name, value):
            raise UserError(f"--out={out}: holds a search with {name}={value!r}, and here it is {here[name]!r}")
    for name in here.keys() - study.user_attrs.keys():
        study.set_user_attr(name, here[name])
    return study


def _go_on(study: optuna.Study) -> None:
    """Trials that were under way when a search was stopped come first, in the folders that they have."""
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        study.enqueue_trial(trial.params, {"folder": trial.user_attrs.get("folder", trial.number)})


class _Judge:
    """Tells Optuna how a trial does, epoch by epoch, from the first of its log on, and whether it ends early."""

    def __init__(self, trial: optuna.Trial, one: Planned):
        self.trial, self.one, self.told, self.ends = trial, one, set(), False
        self.column = metrics.evaluation("top1", names_of(one.run.architectures)[-1])
        for row in metrics.read(one.folder):
            self._tell(row)

    def _tell(self, row: metrics.Row) -> None:
        if self.column in row and row["epoch"] not in self.told:
            self.told.add(row["epoch"])
            self.trial.report(row[self.column], int(row["epoch"]))

    def __call__(self, row: metrics.Row) -> bool:
        self._tell(row)
        self.ends = self.trial.should_prune()
        return self.ends


def _asked(study: optuna.Study, config: ConfigDict, space: Space, out: Path) -> _Judge:
    """The next trial."""
    trial = study.ask(dict(space.distributions))
    trial.set_user_attr("folder", trial.user_attrs.get("folder", trial.number))
    return _Judge(trial, planned(config, trial.params, trial.user_attrs["folder"], out))


def _train(
    group: Sequence[_Judge],
    dataset_of: Callable[[Resolved], Dataset],
    broken: dict[Path, str],
    out: Path,
    console: Console,
) -> None:
    """Trains trials in one program, and tells Optuna what has become of each."""
    by_folder = {judge.one.folder: judge for judge in group}
    on_epoch = lambda folder, row: by_folder[folder](row)  # noqa: E731
    errors = attempt([judge.one for judge in group], dataset_of, broken, console, on_epoch)
    for judge, error in zip(group, errors, strict=True):
        name = f"{judge.one.method}: " if len(group) > 1 else ""
        if error:
            warner(console)(f"{name}failed: {error}")
            judge.trial.set_user_attr("error", error)
        elif judge.ends:
            warner(console)(f"{name}ended: others were better at this epoch")
        state = TrialState.FAIL if error else TrialState.PRUNED if judge.ends else TrialState.COMPLETE
        value = result_of(judge.one, out).best if state == TrialState.COMPLETE else None
        judge.trial.study.tell(judge.trial, value, state)


def _in_one_program(config: ConfigDict, space: Space, run: Resolved) -> bool:
    """Whether trials differ in nothing but what the compiled step takes as arguments.

    Raises:
        UserError: if they do, and several are to be trained at once.
    """
    can = run.with_values(flat(config.to_dict())).values
    others = [name for name in space.distributions if name not in can]
    if others and config.replicas > 1:
        raise UserError(
            f"config.replicas={config.replicas}: trials differ in {', '.join(others)}, of which one program has one "
            f"value; accepted is 1, or a --search of {', '.join(can)} alone"
        )
    return not others


def _left(done: list[FrozenTrial], trials: int, at_once: int) -> str:
    """How long the trials to come take, by those that are done, which were as many `at_once`."""
    took = [trial.duration.total_seconds() for trial in done if trial.duration]
    return f"; about {duration(sum(took) / len(took) * (trials - len(done)) / at_once)} left" if took else ""


def best(study: optuna.Study, config: ConfigDict, out: Path) -> Found:
    """The best trial.

    Raises:
        UserError: if there is none.
    """
    finished = study.get_trials(states=(TrialState.COMPLETE,))
    if not finished:
        failed = table.counted(study)[0]  # none is ended early before some have finished
        raise UserError(f"no trial of {out} has finished; the first failed: {failed.user_attrs['error']}")
    first = study.best_trial
    one = planned(config, first.params, first.user_attrs["folder"], out)
    return Found(first.params, first.value or 0.0, result_of(one, out).others, one.folder)
