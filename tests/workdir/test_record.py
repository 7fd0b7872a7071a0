"""The record of a run: written and read, also one of an earlier version, and how two of them differ."""

import contextlib
import importlib.util
import json
import shutil
import socket
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orc_jax.config import default, flat, reopen
from orc_jax.errors import UserError
from orc_jax.methods import METHODS
from orc_jax.models import MODELS
from orc_jax.testing import assert_identical, build_run
from orc_jax.workdir import metrics, record
from tests.helpers import RELAXED, evaluate, final_state, printed, train

pytestmark = pytest.mark.usefixtures("toy_set")


def as_written(one):
    """A record as it comes back from its file."""
    return record.from_json(json.loads(json.dumps(record.to_json(one))))


def test_what_is_written_is_read(config, toy, tmp_path):
    config.lr_boundaries, config.orc.beta = (0.25, 0.5), 0.75
    one = build_run(config, toy).record()
    record.write(tmp_path / "new" / "run", one)
    assert record.read(tmp_path / "new" / "run") == record.require(tmp_path / "new" / "run") == one == as_written(one)
    assert one.fields.to_dict() == config.to_dict() and one.fields.lr_boundaries == (0.25, 0.5)
    description = json.loads((tmp_path / "new" / "run" / "config.json").read_text())
    assert description["members"] == ["tiny_a", "tiny_b", "tiny_a", "tiny_b"] and "imported" not in description
    assert description["image_shape"] == [8, 8, 1] and description["num_train"] == 90
    assert description["class_names"] == ["top", "middle", "bottom"] and description["devices"] == ["cpu"]
    assert record.read(tmp_path) is None
    with pytest.raises(UserError, match=r"holds no run: there is no config\.json in it"):
        record.require(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"config": 3, "members": ["a"]}', '{"members": []}', "[" * 9999]
)
def test_files_that_are_no_record(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json is not the description of a run: "):
        record.read(tmp_path)


@settings(RELAXED, max_examples=100)
@given(st.data())
def test_records_with_random_damage_are_read_or_refused(config, toy, tmp_path_factory, data):
    one = build_run(config, toy).record()
    text = json.dumps(record.to_json(one))
    position = data.draw(st.integers(0, len(text)))
    text = text[:position] + data.draw(st.sampled_from(["", "}", "\x00", '"', "null", "[" * 5000]))
    workdir = tmp_path_factory.getbasetemp() / "recorded"
    workdir.mkdir(exist_ok=True)
    (workdir / record.FILE).write_text(text)
    with contextlib.suppress(UserError):
        assert record.read(workdir) == one


def rewritten(workdir, change):
    """Changes the config.json of a run as another version would have written it."""
    description = json.loads((workdir / "config.json").read_text())
    change(description)
    (workdir / "config.json").write_text(json.dumps(description))


def of_another_version(description):
    """A field of a method that the run does not use has come since, and so have k's second name and `remat`."""
    fields = description["config"]
    del fields["pcl"]["ema_decay"], fields["orc"]["num_temporary_teachers"], fields["remat"], description["devices"]
    fields["gone"], fields["orc"]["also_gone"], fields["group"] = 1, "x", {"y": 2}
    description["versions"]["orc_jax"] = "0.0.1"


def test_a_run_of_another_version_goes_on_and_is_evaluated(plain, config, console, tmp_path, toy):
    workdir = shutil.copytree(plain, tmp_path / "run")
    rewritten(workdir, of_another_version)
    there = record.require(workdir)
    assert there.config["pcl"]["ema_decay"] == 0.999 and there.config["remat"] is False and there.devices == ()
    assert "gone" not in there.config and "also_gone" not in there.config["orc"] and "group" not in there.config
    evaluate(config, workdir, "latest", console)
    shutil.rmtree(workdir / "checkpoints" / "11")
    train(config, workdir, console)
    assert "independent: restored step 5 of 11" in printed(console)
    assert_identical(final_state(workdir, toy), final_state(plain, toy))
    assert (workdir / metrics.METRICS).read_bytes() == (plain / metrics.METRICS).read_bytes()
    # Other values of what it uses are another run.
    config.momentum = 0.8
    with pytest.raises(UserError, match=r"(?s)holds another run:\n  config.momentum: 0.9 there, 0.8 here\nGive"):
        train(config, workdir, console)


def test_the_number_of_temporary_teachers_of_an_old_record(config, toy):
    config.num_temporary_teachers = 2
    description = json.loads(json.dumps(record.to_json(build_run(config, toy).record())))
    assert description["config"]["orc"].pop("num_temporary_teachers") == 2
    there = record.from_json(description)
    assert there.fields.orc.num_temporary_teachers == there.fields.num_temporary_teachers == 2
    assert reopen(there.fields, trusted=()).method.spares == 1
    assert not record.differences(there, build_run(config, toy).record())


def test_the_crop_of_runs_from_before_it_was_written_down(config, toy):
    description = json.loads(json.dumps(record.to_json(build_run(config, toy).record())))
    del description["eval_crop"]
    assert record.from_json(description).eval_crop is None
    description["config"]["stream"]["eval_crop"] = 0.5
    assert record.from_json(description | {"members": ["tiny_a", "resnet18"]}).eval_crop == 0.5
    description["config"]["dataset"] = "folder"
    assert record.from_json(description).eval_crop == 0.5


def test_what_a_run_was_started_by_and_on(config, toy, tmp_path, monkeypatch):
    """It is kept, and neither another command nor another machine keeps a run from going on."""
    monkeypatch.setattr(sys, "argv", ["/usr/bin/orc-jax", "--config.seed=1", "--workdir=a b"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    here = build_run(config, toy).record()
    assert here.command == "orc-jax --config.seed=1 '--workdir=a b'"
    spec = importlib.util.find_spec("orc_jax.report.__main__")
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", spec)
    assert record.command_line() == "python -m orc_jax.report --config.seed=1 '--workdir=a b'"
    assert set(here.machine) == {"processor", "cores", "memory", "system"}
    assert int(here.machine["cores"]) >= 1 and socket.gethostname() not in str(here.machine).split("'")
    record.write(tmp_path, here)
    assert record.require(tmp_path) == here
    elsewhere = here._replace(command="", machine=None, versions={}, devices=("H100",))
    record.require_resumable(elsewhere, here, tmp_path)
    description = json.loads((tmp_path / record.FILE).read_text())
    del description["command"], description["machine"]
    assert record.from_json(description) == here._replace(command="", machine=None)


def test_differences(config, toy):
    here = build_run(config, toy).record()
    assert record.differences(here, here) == []
    config.learning_rate, config.orc.beta = 0.2, 0.9
    there = here._replace(num_train=7, class_names=("top", "centre", "bottom"), image_shape=(9, 9, 1))
    assert record.differences(there, build_run(config, toy).record()) == [
        "  config.learning_rate: 0.05 there, 0.2 here",
        "  config.orc.beta: 0.5 there, 0.9 here",
        "  class_names: 'centre' there, 'middle' here",
        "  image_shape: (9, 9, 1) there, (8, 8, 1) here",
        "  num_train: 7 there, 90 here",
    ]
    imported = here._replace(imported={"file": "x.pth"}, class_names=())
    assert record.differences(imported, here) == ["  imported weights there, a run here"]


FREE = {
    *("data_dir", "pivot_checkpoint", "eval_batch_size", "eval_every_epochs", "checkpoint_every_steps"),
    *("log_every_steps", "log_to", "on_divergence", "remat", "stream.num_workers", "stream.skip_corrupt"),
    *("stream.check", "stream.skip_other_files", "label_file", "steps_per_call", "patience", "replicas"),
}


def test_every_field_makes_another_run_but_for_those_that_are_free(config, toy):
    """Whatever it is changed to; options of methods that the run does not use are free as well."""
    here = build_run(config, toy).record()
    fields = flat(default().to_dict())
    assert FREE == set(record.FREE_FIELDS) < fields.keys()
    for field in fields:
        changed = json.loads(json.dumps(here.config))
        group, _, name = field.rpartition(".")
        (changed[group] if group else changed)[name] = "another"
        lines = record.differences(here, here._replace(config=changed))
        old = flat(here.config)[field]
        unused = group in METHODS and group != "orc"
        assert lines == ([] if field in FREE or unused else [f"  config.{field}: {old!r} there, 'another' here"])


def test_imported_weights_come_back(config, toy, tmp_path):
    """Their record says where they are from; nothing goes on from them, but their networks can be taken."""
    here = build_run(config, toy).record()
    one = here._replace(imported={"file": "x.pth", "sha256": "abc"}, class_names=(), eval_crop=0.875, devices=())
    record.write(tmp_path, one)
    assert record.read(tmp_path) == one and record.require(tmp_path).imported["file"] == "x.pth"
    with pytest.raises(UserError, match=r"holds imported weights, not a run that could go on. Give it as config.pivot"):
        record.require_resumable(one, here, tmp_path)
    record.require_resumable(None, here, tmp_path)
    record.require_resumable(here, here, tmp_path)
    record.require_same_images(one, here, "field", "toy")


def test_what_is_said_of_classes_that_are_called_otherwise(config, toy):
    here = build_run(config, toy).record()
    unnamed = here._replace(imported={"file": "x.pth"}, class_names=())
    assert record.assumed_order(here, here.class_names) is None
    assert "classes are called a, b, c there and top, middle, bottom here" in record.assumed_order(
        here._replace(class_names=("a", "b", "c")), here.class_names
    )
    assert record.assumed_order(unnamed, ("a", "b", "c")).endswith("import them again with --class_names")
    said = record.assumed_order(unnamed, tuple(map(str, range(12))))
    assert "set: 0, 1, 2, 3 ..." in said and "in the order of text, 0, 1, 10, 11 ...: import it again" in said


def test_networks_of_images_that_are_normalised_alike(config, toy):
    """Constants that were computed from other parts of a set differ a little."""
    here = build_run(config, toy).record()
    record.require_same_images(here._replace(mean=(0.359,), std=(0.241,)), here, "field", "toy")
    for there, text in (
        (here._replace(mean=(0.37,)), r"field: its images were normalised with mean, std \[\[0.37\], \[0.25\]\], but"),
        (here._replace(std=(0.27,)), "field: its images were normalised with mean, std"),
        (here._replace(num_classes=4), "field: its networks are for 1 channels and 4 classes, but toy has 1 and 3"),
        (here._replace(image_shape=(8, 8, 3)), "field: its networks are for 3 channels and 3 classes, but toy has 1"),
    ):
        with pytest.raises(UserError, match=text):
            record.require_same_images(there, here, "field", "toy")


def test_what_an_evaluation_asks_for(config, toy, tmp_path):
    here = build_run(config, toy).record()

    def ask(there, shown):
        record.require_evaluable(there, shown, MODELS, tmp_path)

    config.learning_rate, config.num_epochs, config.train_split = 0.2, 9, "elsewhere"
    ask(here, build_run(config, toy).record())
    ask(here._replace(imported={"file": "x.pth"}, class_names=(), config=default().to_dict()), here)
    # A network that ends in a mean over the image has the same parameters for any size of it.
    ask(here._replace(image_shape=(9, 9, 1)), here)
    for there, text in (
        (here._replace(architectures=("tiny_a", "tiny_b")), r"pool: tiny_a, tiny_b there, tiny_a, tiny_b, tiny_a, tin"),
        (here._replace(num_classes=4), "num_classes: 4 there, 3 here"),
        (here._replace(config=here.config | {"method": "dml"}), "config.method: 'dml' there, 'orc' here"),
        (here._replace(config=here.config | {"dtype": "bfloat16"}), "config.dtype: 'bfloat16' there"),
        (here._replace(image_shape=(8, 8, 3)), r"image_shape: \(8, 8, 3\) there, \(8, 8, 1\) here"),
        (
            here._replace(config={"stream": {"pixel_range": [0, 4095]}}, imported={}),
            r"pixel_range: \[0, 4095\] there, ",
        ),
    ):
        with pytest.raises(UserError, match=f"(?s)holds another run:.*{text}"):
            ask(there, here)
