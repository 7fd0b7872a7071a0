"""Methods whose members are trained one after the other: resumed in any stage, and with a teacher of another run."""

import numpy as np
import pytest

from orc_jax.errors import UserError
from orc_jax.testing import assert_identical
from orc_jax.workdir import logs, metrics, record
from tests.helpers import evaluate, final_state, train
from tests.methods.test_every_method import for_method

pytestmark = pytest.mark.usefixtures("toy_set")


def test_dgkd_is_resumed_in_any_stage(config, console, tmp_path, monkeypatch, toy):
    """Interrupted in the teacher's, in the assistant's and in the student's run: each is trained once, bit for bit."""
    for_method(config, "dgkd")
    train(config, tmp_path / "whole", console)
    folders = [tmp_path / "run" / "pivot", tmp_path / "run" / "assistant_1", tmp_path / "run"]
    write = logs.MetricsLog.write
    for folder in folders:

        def interrupted(log, row, timing, folder=folder):
            if log.workdir == folder and row["epoch"] == (1 if folder == folders[0] else 2):
                raise KeyboardInterrupt
            write(log, row, timing)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(logs.MetricsLog, "write", interrupted)
            train(config, tmp_path / "run", console)
    train(config, tmp_path / "run", console)
    for name in ("", "pivot", "assistant_1"):
        whole, resumed = (final_state(tmp_path / run / name, toy) for run in ("whole", "run"))
        assert_identical(whole, resumed)
        rows = [(tmp_path / run / name / metrics.METRICS).read_bytes() for run in ("whole", "run")]
        assert rows[0] == rows[1] and rows[0]
    methods = [record.require(folder).config["method"] for folder in folders]
    assert methods == ["independent", "dgkd", "dgkd"]
    # The assistant learnt in its own stage, and has not changed since; likewise the teacher.
    last, assistant, pivot = (final_state(tmp_path / "run" / name, toy).stacks for name in ("", "assistant_1", "pivot"))
    same = lambda x, y, i: np.testing.assert_array_equal(x.params["fc.kernel"][i], y.params["fc.kernel"][0])  # noqa: E731
    same(last["tiny_b"], assistant["tiny_b"], 0)
    same(last["tiny_a"], pivot["tiny_a"], 0)
    same(assistant["tiny_a"], pivot["tiny_a"], 0)
    # A stage can be evaluated, as a run of its own pool.
    config.num_networks, config.assistants = 2, ""
    evaluate(config, tmp_path / "run" / "assistant_1", "latest", console)
    # A stage of another configuration is not taken over.
    config.num_networks, config.assistants, config.dgkd.temperature = 3, "tiny_b", 2.0
    (tmp_path / "other").mkdir()
    (tmp_path / "run" / "assistant_1").rename(tmp_path / "other" / "assistant_1")
    with pytest.raises(
        UserError, match=r"assistant_1 holds another run:\n  config.dgkd.temperature: 5.0 there, 2.0 here"
    ):
        train(config, tmp_path / "other", console)


def test_the_pivot_teacher_of_another_run_stands_in_for_the_first_stage(config, console, tmp_path):
    for_method(config, "kd")
    config.num_epochs = 1
    train(config, tmp_path / "first", console)
    config.pivot_checkpoint = str(tmp_path / "first" / "pivot")
    train(config, tmp_path / "second", console)
    assert not (tmp_path / "second" / "pivot").exists()
    rows = [metrics.read(tmp_path / run)[-1] for run in ("first", "second")]
    assert rows[0] == rows[1]
    config.pivot_checkpoint, config.pretrain_epochs = "", 0
    with pytest.raises(UserError, match=r"config.pretrain_epochs=0: members \(0,\) never learn"):
        train(config, tmp_path / "third", console)
