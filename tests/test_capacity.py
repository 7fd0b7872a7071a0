"""How many replicas fit, and how many are trained at once."""

from types import SimpleNamespace

import pytest

from orc_jax import capacity
from orc_jax.testing import build_run

GIB = 2**30


@pytest.fixture
def run(config, toy):
    config.method, config.num_networks = "independent", 1
    return build_run(config, toy)


def on(run, platform, stats, count=1):
    """The same run on other devices."""
    return run._replace(devices=[SimpleNamespace(platform=platform, memory_stats=lambda: stats)] * count)


def test_what_fits_by_hand(run, monkeypatch):
    """Each has its state, gradients of that size and what is kept of 16 images; all have one set."""
    state, kept = capacity.memory(run)
    of_sets = 120 * (64 + 4)
    free = (of_sets + 7.5 * (2 * state + kept)) / capacity.SHARE
    assert capacity.fitting(on(run, "gpu", {"bytes_limit": free + 100, "bytes_in_use": 100})) == 7
    assert capacity.fitting(on(run, "gpu", {"bytes_limit": 100})) == 0
    assert capacity.fitting(on(run, "gpu", None)) is None


def test_memory_of_the_machine_is_that_of_all_its_devices(run, tmp_path, monkeypatch):
    """With what this process has kept; or what its container may have, if that is less."""
    for name in ("MEMORY", "LIMIT"):
        monkeypatch.setattr(capacity, name, tmp_path / name)
    assert capacity.free_memory(run) is None
    (tmp_path / "MEMORY").write_text("MemTotal: 9 kB\nMemAvailable:   67108864 kB\n")
    assert 64 * GIB < capacity.free_memory(run) < 80 * GIB
    assert 16 * GIB < capacity.free_memory(on(run, "cpu", None, 4)) < 20 * GIB
    (tmp_path / "LIMIT").write_text("max\n")
    assert capacity.free_memory(run) > 64 * GIB
    (tmp_path / "LIMIT").write_text(f"{8 * GIB}\n")
    assert capacity.free_memory(run) == 8 * GIB


def test_where_replicas_pay(run, monkeypatch):
    """Not on a CPU, not in a short run; on a GPU a few, if so many fit."""
    plenty = {"bytes_limit": 80 * GIB}
    assert capacity.at_once(run) == (1, "a CPU is filled by one")
    assert capacity.at_once(on(run, "gpu", plenty)).count == 1
    monkeypatch.setattr(capacity, "MANY", 1)
    assert capacity.at_once(run).count == 1
    assert capacity.at_once(on(run, "gpu", plenty)).count == capacity.MOST
    assert capacity.at_once(on(run, "tpu", None)) == (1, "how much memory the devices have is not told")
    for fits, count in ((0, 1), (1, 1), (3, 3), (5, 5), (6, 5)):
        monkeypatch.setattr(capacity, "fitting", lambda run, taken=None, fits=fits: fits)
        assert capacity.at_once(on(run, "gpu", plenty)).count == count
    by_itself = "a comparison or a search trains 5 at once by itself (more save little)"
    assert capacity.in_words(on(run, "gpu", plenty)) == f"about 6 fit into the memory that is free; {by_itself}"
