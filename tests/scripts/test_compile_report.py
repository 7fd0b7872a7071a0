"""What the report makes of compiled programs, and of its arguments; the compilers themselves: test_aot.py."""

import argparse
import collections

import pytest

from orc_jax.errors import UserError
from scripts import compile_report, targets
from scripts.compile_report import Compiled, given, rows_of
from scripts.hlo import Count
from scripts.programs import resolved_pool

GIB = 2**30


def compiled(launches, seconds=0.0):
    """A program with so many launches, and figures that go with them."""
    kinds = collections.Counter({"fusion": launches - 1, "copy": 1})
    moved, cycles = launches * 1e8, launches * 1e5
    counted = Count(kinds, moved, launches // 100, launches // 10, launches * 1e6, cycles, launches * 1e-5)
    return Compiled(seconds, counted, arguments=1 * GIB, temporaries=launches / 100 * GIB)


@pytest.fixture
def pretended(monkeypatch):
    """Pretended programs, and which were asked for."""
    asked = []
    of = {("resnet14",): compiled(200), ("resnet8",): compiled(100), "pool": compiled(450, seconds=7.0)}

    def compile_for(target, devices, resolved, size, *, forward_only=False):
        assert devices == ["a device"] * 2 and size == 32
        fields = [resolved.config[name] for name in ("method", "batch_size", "dtype", "batch_norm")]
        asked.append((resolved.architectures, forward_only, *fields))
        return compiled(50) if forward_only else of.get(resolved.architectures, of["pool"])

    monkeypatch.setattr(compile_report, "compile_for", compile_for)
    monkeypatch.setattr(targets, "devices_of", lambda target, count: ["a device"] * count)
    return asked


def test_the_floor_is_the_sum_of_the_members_and_a_forward_pass(pretended):
    """Of 200 launches for the ResNet-14, 100 for each of two ResNet-8s, 50 for the pass: 450, as the pool has."""
    architectures = ("resnet14", "resnet8", "resnet8")
    resolved = resolved_pool(architectures, 64, 2, dtype="bfloat16", batch_norm="local")
    step, floor, ratio = rows_of("h100", "mine", resolved, 32, 2)
    assert pretended == [
        (architectures, False, "orc", 64, "bfloat16", "local"),
        (("resnet14",), False, "independent", 64, "bfloat16", "local"),
        (("resnet8",), False, "independent", 64, "bfloat16", "local"),
        (("resnet14",), True, "independent", 64, "bfloat16", "local"),
    ]
    title = {"target": "2 x h100", "pool": "mine", "batch": 64, "dtype": "bfloat16"}
    of_450 = {"launches": 450, "GB": 45.0, "model": 4.5, "collectives": 45, "MB": 450.0}  # GB of 1e9 bytes, ms
    of_step = {"host reads": 4, "GiB": 5.5, "of memory": "7.0%", "compile, s": 7.0, "by kind": "449 fusion, 1 copy"}
    assert step == pytest.approx(title | {"program": "step"} | of_450 | of_step)
    # of 200, 100 and 100 there are 2, 1 and 1, of 50 none; memory does not add up
    assert floor == pytest.approx(title | {"program": "floor"} | of_450 | {"host reads": 4})
    assert ratio == pytest.approx(title | {"program": "ratio", "launches": 1.0, "GB": 1.0, "model": 1.0})


def test_ratios_are_those_of_the_step_to_the_floor(pretended):
    """Of a TPU the model is cycles; five ResNet-8s and a forward pass have 550 launches."""
    step, floor, ratio = rows_of("v5e", "mine", resolved_pool(("resnet8",) * 5, 64, 2), 32, 2)
    assert (step["model"], floor["model"]) == pytest.approx((45.0, 55.0))  # million cycles
    assert ratio["launches"] == ratio["GB"] == pytest.approx(ratio["model"]) == pytest.approx(450 / 550)
    assert step["of memory"] == "34.4%"  # 5.5 of 16 GiB


def asked(pools=("five",), config=None, batch=None, dtype=None, set=()):
    return given(argparse.Namespace(pools=pools, config=config, batch=batch, dtype=dtype, devices=1, set=set))


def test_fields_have_values_of_their_type():
    fields = [
        "batch_norm=local",
        "remat=True",
        "orc.beta=0.25",
        "seed=3",
        "lr_boundaries=(0.25, 0.5)",
        "nesterov=False",
    ]
    values = ("local", True, 0.25, 3, (0.25, 0.5), False)
    for name, resolved in asked(config="configs/cifar100.py", batch=32, dtype="bfloat16", set=fields).items():
        config = resolved.config
        assert (config.batch_norm, config.remat, config.orc.beta, config.seed) == values[:4], name
        assert (tuple(config.lr_boundaries), config.nesterov) == values[4:], name
        assert (config.batch_size, config.dtype) == (32, "bfloat16"), name
    assert asked()["five"].config.batch_size == 128


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("seed=x", "--config.seed=x: must be a whole number, such as 0"),
        ("remat=maybe", "--config.remat=maybe: must be True or False, such as False"),
        ("sead=1", "field='sead' is not known. Did you mean seed?"),
        ("batch_norm=none", "config.batch_norm='none'"),
    ],
)
def test_a_wrong_field_is_one_message(field, message, capsys):
    with pytest.raises(SystemExit) as left:
        compile_report.main(["--pools", "five", "--set", field])
    assert left.value.code == 2 and message in capsys.readouterr().err


def test_a_target_whose_compiler_is_missing_is_said(monkeypatch, capsys, tmp_path):
    def missing(target, count):
        raise UserError(f"cannot compile for {target} (pip install 'libtpu')")

    monkeypatch.setattr(targets, "devices_of", missing)
    compile_report.main(["--targets", "v5e", "--pools", "five", "--out", str(tmp_path)])
    assert "| 1 x v5e | five | cannot compile for v5e (pip install 'libtpu') |" in capsys.readouterr().out
    assert "cannot compile" in (tmp_path / "compile_report.md").read_text()
