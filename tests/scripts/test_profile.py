"""The profile of a step: what is in a trace is counted once, and is what the program has."""

from types import SimpleNamespace

import pytest

from scripts import profile
from scripts.programs import prepare


def line(name, *events):
    made = [
        SimpleNamespace(name=name, start_ns=start, duration_ns=duration, stats=tuple(stats.items()))
        for name, start, duration, stats in events
    ]
    return SimpleNamespace(name=name, events=made)


def test_operations_of_devices_are_found_by_their_names_in_the_program():
    of_gpu = SimpleNamespace(
        name="/device:GPU:0",
        lines=[
            line(
                "Stream #13(Compute)",
                ("sm90_xmma_fprop", 0, 5, {"hlo_op": "conv.1"}),
                ("MemcpyD2D", 9, 2, {}),
            ),
            line("XLA Modules", ("jit_step", 0, 11, {})),
        ],
    )
    of_tpu = SimpleNamespace(name="/device:TPU:0", lines=[line("XLA Ops", ("%fusion.2 = f32[2] fusion(%a)", 0, 3, {}))])
    of_cpu = SimpleNamespace(
        name="/host:CPU",
        lines=[
            line("python", ("run", 0, 50, {})),
            line("tf_XLAEigen/1", ("copy.3", 1, 4, {"hlo_op": "copy.3"}), ("end: copy.3", 5, 1, {"hlo_op": "copy.3"})),
        ],
    )
    found = profile.events_of(SimpleNamespace(planes=[of_gpu, of_tpu, of_cpu]))
    assert [event.name for event in found] == ["conv.1", "MemcpyD2D", "fusion.2", "copy.3"]


def test_what_is_busy_counts_once():
    events = [profile.Event("a", 0, 10), profile.Event("b", 2, 3), profile.Event("c", 8, 6), profile.Event("d", 20, 1)]
    assert profile.busy(events) == 15


def test_a_step_is_told_by_its_operations(tmp_path):
    program = prepare(["tiny_b"], 8, method="independent")
    events, seconds = profile.profile(program, 2, tmp_path)
    assert 0 < profile.busy(events) < seconds * 1e9
    told = profile.report(program, 2, 5, tmp_path)
    assert "| convolution |" in told and "ms a step" in told
    whole, dearest = told.split("\n\n")[1:]
    assert len(dearest.splitlines()) == 2 + 5
    shares = [float(row.split("|")[4]) for row in whole.splitlines()[2:]]
    assert sum(shares) == pytest.approx(1.0, abs=0.02)
