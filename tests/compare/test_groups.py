"""Which runs of a comparison are trained at once, and what becomes of it where the memory does not suffice."""

import jax
import pytest

from orc_jax import capacity
from orc_jax.compare import comparison, runs
from orc_jax.compare.variants import of_methods, of_sweep
from orc_jax.errors import UserError

pytestmark = pytest.mark.usefixtures("toy_set")


def grouped(plans, dataset, replicas):
    """The runs of each group, by number."""
    return list(runs.groups(plans, lambda run: dataset, replicas))


def test_seeds_of_a_method_are_trained_at_once(short, toy, tmp_path):
    """In groups of one size, if it can be; the first of each in order."""
    plans = runs.plan(short, of_methods(short, ["kd", "independent"]), 6, tmp_path)
    assert grouped(plans, toy, 1) == [[i] for i in range(12)]
    assert grouped(plans, toy, 6) == [[0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9, 11]]
    assert grouped(plans, toy, 5) == [[0, 2, 4], [1, 3, 5], [6, 8, 10], [7, 9, 11]]
    assert [runs.even_part(7, most) for most in (1, 2, 3, 4, 6, 7, 9)] == [1, 2, 3, 4, 4, 7, 7]


def test_values_of_a_sweep_are_trained_at_once(short, toy, tmp_path):
    """Those that are arguments of the program, with their seeds; other fields make other programs."""
    plans = runs.plan(short, of_sweep(short, ["orc.beta=0.3,0.5", "orc.temperature=2,4"]), 2, tmp_path)
    assert grouped(plans, toy, 8) == [list(range(8))]
    plans = runs.plan(short, of_sweep(short, ["orc.beta=0.3,0.5", "momentum=0.8,0.9"]), 1, tmp_path)
    assert grouped(plans, toy, 8) == [[0, 2], [1, 3]]


def test_runs_with_other_images_are_not_trained_at_once(short, toy, tmp_path):
    """Each seed holds out another share, unless all have the same; a streamed set is read once for each order."""
    swept = of_sweep(short, ["orc.beta=0.3,0.5"])
    streamed = toy._replace(train="of records")
    assert grouped(runs.plan(short, swept, 2, tmp_path), streamed, 8) == [[0, 1], [2, 3]]
    short.validation_share = 0.1
    assert grouped(runs.plan(short, of_sweep(short, ["orc.beta=0.3,0.5"]), 2, tmp_path), toy, 8) == [[0, 1], [2, 3]]
    short.data_seed = 0
    assert grouped(runs.plan(short, of_sweep(short, ["orc.beta=0.3,0.5"]), 2, tmp_path), toy, 8) == [[0, 1, 2, 3]]


def test_how_many_is_the_capacity_of_the_devices_unless_it_is_given(
    short, console, tmp_path, stub, not_drawn, monkeypatch
):
    """And of the same runs one by one, and in replicas again, nothing is trained twice."""
    short.log_to, (_, trained) = "", stub
    asked = []
    monkeypatch.setattr(capacity, "at_once", lambda run: asked.append(run.config.method) or capacity.Together(2, ""))
    variants = of_methods(short, ["kd", "independent"])
    table = comparison.compare(short, variants, 2, tmp_path, console)
    pairs = [[f"{name}/seed_0", f"{name}/seed_1"] for name in ("pivot", "kd", "independent")]
    assert trained == pairs and asked == ["kd", "independent"] and all(run.is_finished for run in table.runs)
    short.replicas = 1
    comparison.compare(short, variants, 3, tmp_path, console)
    assert trained[3:] == ["pivot/seed_2", "kd/seed_2", "independent/seed_2"] and len(asked) == 2
    short.replicas = 3
    comparison.compare(short, variants, 6, tmp_path, console)
    assert trained[6:] == [[f"{name}/seed_{i}" for i in (3, 4, 5)] for name in ("pivot", "kd", "independent")]


def test_on_a_cpu_runs_are_trained_one_by_one(short, toy):
    assert runs.most_at_once(0, runs.resolve(short), toy) == 1 and runs.most_at_once(3, runs.resolve(short), toy) == 3
    short.stochastic_depth = 0.2  # which these networks do not have: refused when the run is built
    assert runs.most_at_once(0, runs.resolve(short), toy) == 1


def test_where_memory_does_not_suffice_half_as_many_are_trained(short, console, tmp_path, stub, not_drawn):
    short.log_to, short.replicas, (failing, trained) = "", 5, stub
    failing["most"] = 2
    table = comparison.compare(short, of_methods(short, ["independent"]), 5, tmp_path, console)
    names = [f"independent/seed_{i}" for i in range(5)]
    assert trained == [names, names[:2], names[2:], names[2], names[3:]] and not table.failed
    failing["most"], failing["independent"] = 1, jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
    with pytest.raises(
        UserError, match=r"2 of 2 runs have failed: independent, seed 0 .the memory of a device does not"
    ):
        comparison.compare(short, of_methods(short, ["independent"]), 2, tmp_path / "x", console)


def test_a_set_is_read_once_for_all_seeds_that_hold_out_the_same(short, console, monkeypatch):
    read = []
    monkeypatch.setattr(comparison.sets, "load", lambda config, *rest: read.append(config.seed))
    dataset_of = comparison.reader(console)
    short.validation_share = 0.1
    for data_seed, expected in ((7, [0]), (-1, [0, 0, 1])):
        short.data_seed = data_seed
        for seed in (0, 1):
            short.seed = seed
            dataset_of(runs.resolve(short))
        assert read == expected
    for field in ("label_key", "image_key", "label_file"):
        short[field] = "another"
        dataset_of(runs.resolve(short))
    assert read == [*expected, 1, 1, 1]
