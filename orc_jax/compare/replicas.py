"""`config.replicas`: several runs of one config that are trained, and told of, as one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from rich.console import Console

from orc_jax.compare.comparison import compare
from orc_jax.compare.runs import Variant
from orc_jax.compare.variants import shares_teacher, split, value_of, with_values
from orc_jax.config import flat, reopen, resolve
from orc_jax.errors import UserError
from orc_jax.evaluate import evaluate_checkpoint
from orc_jax.report.comparison_page import percent
from orc_jax.terminal import Rows
from orc_jax.workdir import record
from orc_jax.workdir.comparison import Comparison


def train(config: ConfigDict, lists: Mapping[str, str], out: Path, console: Console) -> Comparison:
    """Trains `config.replicas` runs at once, with the seeds from `config.seed` on, or several values of some fields.

    Each is kept in a folder of its own below `out`, as any run; the table of all is that of a comparison.

    Args:
        config: what they have in common.
        lists: by field the values of the replicas, `0.2,0.5,0.8`. Each is taken with as many seeds as there are
            replicas for it.
        out: where all is kept.
        console: where to print.

    Raises:
        UserError, Interrupted: as `compare`.
    """
    variants = variants_of(config, lists)
    seeds = config.replicas // len(variants)
    return compare(config, variants, seeds, out, console, baseline=variants[0].name if lists else "")


def variants_of(config: ConfigDict, lists: Mapping[str, str]) -> list[Variant]:
    """The first values of all fields, the second ones, and so on; without lists the config alone.

    Raises:
        UserError: for a field that a program cannot have several values of, and lists that do not fit.
    """
    single = config.copy_and_resolve_references()
    single.replicas = 1
    if not lists:
        return [Variant(config.method, single)]
    fields, columns = flat(config.to_dict()), {name: split(text) for name, text in lists.items()}
    can = resolve(single).with_values(fields).values
    for name, values in columns.items():
        given = f"--config.{name}={lists[name]}"
        if name not in can:
            accepted = f"accepted are several of {', '.join(can)}; of any field: orc_jax.compare --sweep"
            raise UserError(f"{given}: not a field that one program has several values of; {accepted}")
        if config.replicas % len(values) or len(values) != len(next(iter(columns.values()))):
            raise UserError(
                f"{given}: {len(values)} values, and config.replicas={config.replicas}; accepted are as many values as "
                "replicas, or for several seeds of each value a number that divides it, of all fields alike"
            )
    variants = []
    for row in zip(*columns.values(), strict=True):
        chosen = dict(zip(columns, row, strict=True))
        values = {name: value_of("--config", name, text, fields[name]) for name, text in chosen.items()}
        label = ", ".join(f"{name}={text}" for name, text in chosen.items())
        variants.append(Variant(label, with_values(single, values), shares_teacher(columns), tuple(columns)))
    return variants


def evaluate(
    there: Comparison, out: Path, overrides: Mapping[str, Any], own: Sequence[str], which: str, console: Console
) -> None:
    """Evaluates the checkpoint `which` of every finished run of a comparison, and prints the means over its seeds.

    Raises:
        UserError: as `evaluate_checkpoint`, and if no run is finished.
    """
    results: dict[str, list[dict[str, Any]]] = {}
    for run in there.runs:
        folder = out / run.folder
        if run.is_finished:
            config = with_values(record.require(folder).fields, overrides)
            console.print(f"{run.method}, seed {run.seed}", highlight=False)
            found = evaluate_checkpoint(reopen(config, own), folder, which, console)
            results.setdefault(run.method, []).append(found)
    if not results:
        raise UserError(f"--workdir={out}: none of its runs is finished")
    for method, found in results.items():
        rows = []
        for i, member in enumerate(found[0]["members"]):
            top1 = [result["members"][i]["top1"] for result in found]
            rows.append((member["name"], member["role"], percent(top1)))
        title = f"{method}: top-1 in percent, mean ± standard deviation over {len(found)} runs"
        console.print(Rows(title, ("member", "role", "top-1"), rows))
