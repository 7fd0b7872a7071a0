"""The log of a run: rows in files and trackers, and what becomes of them when a run goes on."""

import errno
import io
import json
import struct
import sys
import time
import types
from datetime import datetime, timedelta

import jax
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from orc_jax import trackers
from orc_jax.config import resolve
from orc_jax.errors import UserError
from orc_jax.keeping import keeping
from orc_jax.run import build
from orc_jax.workdir import logs, metrics
from tests.helpers import train

pytestmark = pytest.mark.usefixtures("toy_set")


def test_tensorboard_comes_without_pytorch(config, tmp_path, monkeypatch):
    """Which takes seconds to import, in every process."""
    for name in ("torch", "tensorboardX", "tensorboardX.global_writer", "tensorboardX.writer"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    logs.TensorBoard(tmp_path, 0, config).close()
    assert "torch" not in sys.modules and list((tmp_path / "tensorboard").iterdir())


def test_a_tracker_for_which_the_system_has_no_room(config, tmp_path, monkeypatch):
    """The disk need not be full: TensorBoard's writer has semaphores."""

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("multiprocessing.synchronize.SemLock.__init__", full)
    with pytest.raises(UserError, match=r"config.log_to='tensorboard': cannot be started: No space.*/dev/shm"):
        logs.MetricsLog(tmp_path, 0, config)
    config.log_to = ""
    logs.MetricsLog(tmp_path, 0, config)


def test_trackers_are_equal(config, console, tmp_path, monkeypatch, toy):
    """What TensorBoard gets, Weights & Biases gets too; a run that goes on is the same run there."""
    calls = []

    class FakeRun:
        def log(self, scalars, step):
            calls.append(scalars.get("samples", (step, scalars)))

        def finish(self):
            calls.append("finished")

    def init(**options):
        calls.append(options)
        return FakeRun()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init, Image=lambda x: x, __spec__=object()))
    config.method, config.num_networks, config.assistants, config.log_to = "independent", 2, "", "tensorboard, wandb"
    written = []
    monkeypatch.setattr(logs.TensorBoard, "write", lambda self, scalars, step: written.append((step, scalars)))
    config.num_epochs = 1
    train(config, tmp_path / "run", console)
    opened, pictures, *points, row, end = calls
    assert [*points, row] == written and end == "finished"
    named = {metrics.running(name) for name in ("loss", "accuracy", metrics.SPEED)}
    assert [(step, scalars.keys()) for step, scalars in points] == [(step, named) for step in range(1, 6)]
    assert (
        row[0] == 5 and {"epoch", "train/loss/0_tiny_a", "eval/top1/1_tiny_b"} <= set(row[1]) and "step" not in row[1]
    )
    assert {metrics.SPEED, metrics.SECONDS} <= set(row[1]) and pictures.dtype == np.uint8
    assert opened["config"]["orc"]["beta"] == 0.5 and opened["resume"] == "allow" and opened["name"] == "run"
    assert opened["reinit"] == "create_new", "replicas would be one run"
    calls.clear()
    log = logs.MetricsLog(tmp_path / "run", 5, config)
    log.close()
    assert calls[0]["id"] == opened["id"]
    (tmp_path / "other").mkdir()
    logs.MetricsLog(tmp_path / "other", 0, config).close()
    assert calls[-2]["id"] != opened["id"] and calls[-2]["name"] == "other"
    run = build(resolve(config), toy, jax.local_devices())
    with pytest.raises(MemoryError), keeping(run, tmp_path / "other", 0, console, 1):
        raise MemoryError
    assert calls[-1] == "finished", "the next run would be logged into it"
    config.log_to = ""
    assert logs.MetricsLog(tmp_path / "run", 5, config).trackers == []


def test_rows_after_the_checkpoint_are_dropped(config, tmp_path):
    """Those of steps that are made again; the row of the checkpoint's own step stays."""
    config.log_to = ""
    log = logs.MetricsLog(tmp_path, 0, config)
    for step in (5, 10, 15):
        log.write({"step": step, "epoch": step // 5}, {metrics.SPEED: float(step)})
    logs.MetricsLog(tmp_path, 10, config)
    assert [row["step"] for row in metrics.read(tmp_path)] == [5, 10]
    timing = metrics.read(tmp_path, metrics.TIMING)
    assert [(row["step"], row[metrics.SPEED]) for row in timing] == [(5, 5.0), (10, 10.0)]
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()][1]["epoch"] == 2


def test_the_clock(config, tmp_path, monkeypatch):
    """Each row says how long it took since the one before or since the log was opened, also after an interruption."""
    config.log_to = ""
    clock = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    log = logs.MetricsLog(tmp_path, 0, config)
    for step, now in ((5, 103.5), (10, 105.0)):
        clock[0] = now
        log.write({"step": step}, {})
    clock[0] = 1000.0
    log = logs.MetricsLog(tmp_path, 5, config)
    clock[0] = 1002.25
    log.write({"step": 10}, {})
    rows = metrics.read(tmp_path, metrics.TIMING)
    assert [row[metrics.SECONDS] for row in rows] == [3.5, 2.25] and metrics.took(rows) == 5.75
    assert all(datetime.fromisoformat(row[metrics.AT]).utcoffset() == timedelta(0) for row in rows)
    assert metrics.took([]) is None and metrics.took([*rows, {"step": 15}]) is None
    assert "seconds" not in (tmp_path / metrics.METRICS).read_text(), "which is a function of the config alone"


def events_of(folder):
    """What TensorBoard reads, file by file: in each, length, checksum, event, checksum, again and again."""
    for path in sorted(folder.glob("events*")):
        data, events = path.read_bytes(), []
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            events.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
        yield events


def test_tensorboard_hides_the_rows_that_are_dropped(config, tmp_path, monkeypatch):
    """From the first step that is made again."""
    config.log_to = "tensorboard"
    for steps, start in (((5, 10, 15), 0), ((15,), 10)):
        clock = time.time() + start
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda clock=clock: clock)  # the files are called by the second
            log = logs.MetricsLog(tmp_path, start, config)
        for step in steps:
            log.write({"step": step, "eval/top1/ensemble": step / 100}, {metrics.SPEED: 7.0})
        log.close()
    files = list(events_of(tmp_path / "tensorboard"))
    assert [[event.step for event in events if event.HasField("session_log")] for events in files] == [[1], [11]]
    values = [[(e.step, v.tag, v.simple_value) for e in events for v in e.summary.value] for events in files]
    tags = {tag for _, tag, _ in values[0]}
    assert tags == {"eval/top1/ensemble", metrics.SPEED, metrics.SECONDS, "config/text_summary"}
    for expected, found in zip(((5, 10, 15), (15,)), values, strict=True):
        top1 = [(step, round(value, 4)) for step, tag, value in found if tag == "eval/top1/ensemble"]
        assert top1 == [(step, step / 100) for step in expected]


def test_what_else_tensorboard_gets(config, tmp_path):
    """The config as a table, points within an epoch, a picture; none of it is in the files."""
    config.log_to = "tensorboard"
    log = logs.MetricsLog(tmp_path, 0, config)
    log.picture("samples", np.full((4, 6, 1), 200, np.uint8), 0)
    log.point(3, {"loss": 0.5, metrics.SPEED: 12.0})
    log.close()
    (events,) = events_of(tmp_path / "tensorboard")
    values = {v.tag: (e.step, v) for e in events for v in e.summary.value}
    step, text = values["config/text_summary"]
    assert step == 0 and "| orc.beta | 0.5 |" in text.tensor.string_val[0].decode()
    step, picture = values["samples"]
    with Image.open(io.BytesIO(picture.image.encoded_image_string)) as image:
        assert step == 0 and image.size == (6, 4) and image.getpixel((0, 0)) == (200, 200, 200)
    points = {tag: (step, v.simple_value) for tag, (step, v) in values.items() if tag.startswith("running/")}
    assert points == {"running/loss": (3, 0.5), "running/images_per_second": (3, 12.0)}
    assert not metrics.read(tmp_path) and not metrics.read(tmp_path, metrics.TIMING)


def test_every_tracker_that_a_config_may_name_is_there():
    assert set(logs.TRACKERS) == set(trackers.TRACKERS)
    assert trackers.names(" tensorboard ,") == ["tensorboard"] and trackers.names("") == []
