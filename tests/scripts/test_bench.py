"""The benchmark runs, its parts for other backends too, and its ratios are those of its seconds."""

import argparse

import pytest

from scripts import bench


@pytest.fixture
def args(monkeypatch):
    monkeypatch.setitem(bench.POOLS, "tiny", ("plane2",) * 3)
    monkeypatch.setitem(bench.POOLS, "five", ("tiny_a",) * 3)
    return argparse.Namespace(
        pools=["tiny"],
        dtypes=["float32"],
        batch=8,
        repeats=1,
        torch=True,
        torch_compile=False,
        vmap=True,
        network="tiny_b",
    )


@pytest.mark.slow
def test_iteration(args, monkeypatch):
    monkeypatch.setitem(bench.PEAKS, "cpu", {"float32": 1e12, "bfloat16": 1e12, "bytes": 1e11})
    rows = {row["program"]: row for row in bench.iteration(args)}
    assert list(rows) == ["after", "before", "plain vmap", "PyTorch, eager", "floor"]
    for row in rows.values():
        assert row["of the floor"] == pytest.approx(row["seconds"] / rows["floor"]["seconds"])
    for name in ("after", "before", "plain vmap"):
        assert rows[name]["images/s"] == pytest.approx(8 / rows[name]["seconds"])
        assert rows[name]["of the roofline"] > 1
        assert rows[name]["GiB"] > 0 and rows[name]["compile, s"] > 0
    text = bench.markdown(list(rows.values())).splitlines()
    assert len(text) == 7 and len({line.count("|") for line in text}) == 1


@pytest.mark.slow
def test_scaling(args, monkeypatch):
    prepare = bench.prepare
    monkeypatch.setattr(bench, "SIZES", (3, 4))

    def small(names, *rest, **more):
        return prepare(["tiny_a"] * len(names), *rest, **more | {"method": "independent"})

    monkeypatch.setattr(bench, "prepare", small)
    monkeypatch.setattr(bench, "OF_REPLICAS", {"five": "orc"})
    by_replicas = bench.replicas(args)
    assert [(row["method"], row["replicas"]) for row in by_replicas] == [("orc", 1), ("orc", 5)]
    assert by_replicas[1]["of proportional"] == pytest.approx(
        by_replicas[1]["seconds"] / (5 * by_replicas[0]["seconds"])
    )
    by_steps, by_devices, by_size = bench.steps(args), bench.devices(args), bench.sizes(args)
    assert [row["steps per call"] for row in by_steps] == [1, 10]
    assert [row["devices"] for row in by_devices] == [1, 2, 4]
    assert [row["members"] for row in by_size] == [3, 4]
    assert [row["members"] for row in bench.stack(args)] == [1, 5]
    assert by_steps[1]["of proportional"] == pytest.approx(by_steps[1]["seconds"] / (10 * by_steps[0]["seconds"]))
    assert by_devices[1]["of proportional"] == pytest.approx(by_devices[1]["seconds"] / by_devices[0]["seconds"])


@pytest.mark.slow
def test_memory(args, monkeypatch):
    """What the process takes for a step is what the compiler says of it, and grows with the batch."""
    monkeypatch.setitem(bench.POOLS, "five", ("resnet14",) * 3)  # tiny networks have no blocks to repeat
    args.memory = (("five", 32, 32), ("five", 32, 128))
    small, small_remat, large, large_remat = bench.memory(args)
    assert [row["remat"] for row in (small, small_remat, large, large_remat)] == [False, True, False, True]
    for one, other in ((small, large), (small_remat, large_remat), (small_remat, small), (large_remat, large)):
        assert other["GiB besides, compiler"] > 1.5 * one["GiB besides, compiler"]
    assert large["GiB besides, measured"] == pytest.approx(large["GiB besides, compiler"], rel=0.5)
