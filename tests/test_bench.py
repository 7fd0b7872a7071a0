"""The benchmark runs, its parts for other backends too, and its ratios are those of its seconds."""

import argparse

import pytest

from scripts import bench


@pytest.fixture
def args(monkeypatch):
    monkeypatch.setitem(bench.POOLS, "tiny", ("resnet8",) * 3)
    monkeypatch.setitem(bench.POOLS, "five", ("tiny_a",) * 3)
    return argparse.Namespace(
        pools=["tiny"], dtypes=["float32"], batch=8, repeats=1, torch=True, torch_compile=False, vmap=True
    )


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


def test_scaling(args):
    by_steps, by_devices = bench.steps(args), bench.devices(args)
    assert [row["steps per call"] for row in by_steps] == [1, 10]
    assert [row["devices"] for row in by_devices] == [1, 2, 4]
    assert by_steps[1]["of proportional"] == pytest.approx(by_steps[1]["seconds"] / (10 * by_steps[0]["seconds"]))
    assert by_devices[1]["of proportional"] == pytest.approx(by_devices[1]["seconds"] / by_devices[0]["seconds"])
