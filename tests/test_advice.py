"""Advice that is printed works when it is followed: each case here brings a message about, and does what it says."""

import re
import shlex

import jax
import numpy as np
import pytest
from absl import flags
from PIL import Image

from orc_jax import commands, config_files, flagging, main
from orc_jax.config import CHOICES, default, flat, resolve
from orc_jax.data import arrays, sets
from orc_jax.data.workers import SHARED_MEMORY
from orc_jax.errors import UserError
from orc_jax.methods import METHODS
from orc_jax.ranges import NOT_NEGATIVE, POSITIVE
from orc_jax.testing import build_run, toy_dataset
from orc_jax.workdir import record
from tests.data.pictures import encode, picture
from tests.data.test_folder import make_tree

FIELD = re.compile(r"config\.([\w.]+)=('[^']*'|\[[^]]*\]|\([^)]*\)|[^\s,;:)]*)")


def given(words, **fields):
    """The config of a command line, `fields` and then `words` on top of that of the digits."""
    own = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "Where.", flag_values=own)
    fields = {name.replace("__", "."): value for name, value in fields.items()}
    fields = {name: value for name, value in fields.items() if not any(f"config.{name}=" in word for word in words)}
    arguments = [f"--config.{name}={value}" for name, value in fields.items()]
    return flagging.parse(["command", "--config=digits", *arguments, *words], own, None).config


def message_of(call, *args):
    with pytest.raises(UserError) as caught:
        call(*args)
    return str(caught.value)


def settings(message, after=""):
    """The fields that a message tells to set, as arguments; those `after` a part of it."""
    found = FIELD.findall(message[message.index(after) :])
    assert found, message
    return [f"--config.{field}={shlex.split(value)[0] if value else ''}" for field, value in found]


@pytest.mark.parametrize(
    ("fields", "after"),
    [
        ({"method": "one", "teacher": "resnet20", "student": "resnet8"}, "--config.teacher"),
        ({"method": "cl_ilr", "teacher": "resnet8", "student": "resnet20"}, "--config.teacher"),
        ({"method": "dml", "dml__sequential": True, "dml__target_gradient": True}, "needs"),
    ],
)
def test_settings_that_a_method_names(fields, after):
    argued = fields | ({"assistants": "ladder"} if "teacher" in fields else {})
    text = message_of(resolve, given([], **argued), 1)
    resolve(given(settings(text, after), **argued), 1)


@pytest.mark.parametrize(
    ("fields", "accepted", "words"),
    [
        ({"batch_size": 30}, r"(\d+) would be", "batch_size={}"),
        ({"batch_size": 3}, r"(\d+) would be", "batch_size={}"),
        ({"num_networks": 3, "num_temporary_teachers": 2}, r"at least (\d+)", "num_networks={}"),
        ({"warmup_epochs": 29.0}, r"less than ([\d.]+),", "warmup_epochs={} pretrain_epochs=99 num_epochs=99"),
        ({"method": "kd", "pretrain_epochs": 0}, r"need pretrain_epochs greater than (\d+)", "pretrain_epochs=1{}"),
        ({"method": "dml", "pivot_checkpoint": "x"}, "accepted is an empty one()", "pivot_checkpoint={}"),
        ({"method": "dml", "on_divergence": "isolate"}, r"accepted is '(\w+)'", "on_divergence={}"),
        ({"method": "dml", "on_divergence": "isolate"}, r"or the methods (\w+) and", "method={}"),
        ({"method": "dml", "on_divergence": "isolate"}, r"or the methods \w+ and (\w+)", "method={}"),
        ({"method": "switokd", "switokd__exponent": "code"}, r"accepted is '(\w+)'", "switokd.exponent={}"),
        ({"method_options": "x=1"}, "must be empty()", "method_options={}"),
        ({"teacher": "resnet21"}, r"Did you mean (\w+)", "teacher={}"),
        ({"student": "resnet8x5"}, r"Did you mean (\w+)", "student={}"),
        ({"method": "orcc"}, r"Did you mean (\w+)", "method={}"),
        ({"assistants": "resnet8"}, r"leaves (\d+) between", "assistants=resnet8,resnet14,resnet8 num_networks={}+2"),
        ({"seed": 2**31}, r"from 0 to (\d+)", "seed={}"),
        ({"lr_multipliers": "resnet8:2"}, r"Did you mean (\w+)", "lr_multipliers={}=2"),
        ({"log_to": "tensorbord"}, r"Did you mean (\w+)", "log_to={}"),
        ({"lr_boundaries": "(0.9,0.1)"}, "(increasing)", "lr_boundaries=(0.1,0.9)"),
        ({"data_dir": "s3://b/x"}, "accepted is a (path)", "data_dir={}"),
        ({"dataset": "huggingface:mnist"}, r"config.dataset=(folder)", "dataset={}"),
        ({"dataset": "hf://datasets/mnist"}, r"config.dataset=(npz)", "dataset={}"),
    ],
)
def test_values_that_are_accepted(fields, accepted, words):
    text = message_of(resolve, given([], **fields), 4)
    (value,) = re.findall(accepted, text)[:1] or [pytest.fail(text)]
    words = words.format(value).replace("3+2", "5").split()
    resolve(given([f"--config.{word}" for word in words], **fields), 4)


def options(kinds):
    """Names of fields of some type, but for options of methods that the default is not a run of."""
    fields = flat(default().to_dict())
    return [name for name, value in fields.items() if type(value) in kinds and name.partition(".")[0] not in METHODS]


@pytest.mark.parametrize("field", [*POSITIVE, *NOT_NEGATIVE, *CHOICES])
def test_the_bounds_of_fields(field):
    """What a message says of one field alone is enough."""
    wrong = "x" if field in CHOICES else -1
    text = message_of(resolve, given([], **{field: wrong}), 1)
    if field in CHOICES:
        values = text.partition("Accepted: ")[2].removesuffix(".").split(", ")
        assert values == list(CHOICES[field])
    else:
        values = [1] if "greater than 0" in text else [0]
    for value in values:
        also = {"method": "independent"} if value == "isolate" else {}
        also |= {"method": "orc"} if field == "pretrain_epochs" else {}
        resolve(given([f"--config.{field}={value}"], **also), 1)


@pytest.mark.parametrize("field", options({int, float, bool, tuple}))
def test_values_of_another_type(field):
    """One message says what is accepted, such as what it is now."""
    for wrong in ("abc", "None", "[}"):
        text = message_of(given, [f"--config.{field}={wrong}"])
        assert re.match(rf"(--)?config\.{field}=\S+: must be ", text) and "\n" not in text, text
        if "such as" in text:
            given([f"--config.{field}={text.partition('such as ')[2]}"])


@pytest.mark.parametrize("name", flagging.SYNONYMS)
def test_flags_of_other_programs(name):
    (hint,) = re.findall(r"Did you mean --(\S+?)\?", message_of(given, [f"--{name}=x"]))
    flag, _, value = hint.partition("=")
    known = {f"config.{field}" for field in flat(default().to_dict())} | set(main.FLAGS)
    assert flag in known and (not value or value in main.FLAGS[flag].parser.enum_values)


def test_what_needs_less():
    """Of memory, and of what the system lends."""
    for text in (commands.LESS, SHARED_MEMORY):
        resolve(given(settings(text.replace("--", ""))), 1)


def test_the_config_of_a_run(tmp_path, config, toy):
    record.write(tmp_path, build_run(config, toy).record())
    text = message_of(config_files.load, str(tmp_path / "config.json"))
    (workdir,) = re.findall(r"--workdir=(\S+)", text)
    assert (
        config_files.base(None, config_files.Path(workdir), None)[0].to_json()
        == record.require(tmp_path).fields.to_json()
    )


def test_constants_of_a_teacher(config, toy):
    """The message has both, and the fields that set them."""
    there = build_run(config, toy).record()
    here = build_run(config, toy._replace(mean=(0.5,))).record()
    text = message_of(record.require_same_images, there, here, "config.pivot_checkpoint='x'", "toy")
    mean, std = re.findall(r"mean, std \[\[([\d.]+)\], \[([\d.]+)\]\]", text)[0]
    assert "config.mean and config.std can be set" in text
    config.mean, config.std = (float(mean),), (float(std),)
    train, test = ((of.images, of.labels) for of in (toy.train, toy.test))
    same = sets.from_arrays("toy", train, test, toy.class_names, config)
    record.require_same_images(there, build_run(config, same).record(), "", "toy")


@pytest.fixture
def folder(tmp_path):
    """Eight images of two classes, of which some tests change some."""
    paths = [f"{split}/{name}/{i}.png" for split in ("train", "val") for name in "ab" for i in range(2)]
    make_tree(tmp_path, {path: encode(picture(20, 20, i), "PNG") for i, path in enumerate(paths)})
    return tmp_path


def load_folder(root, words=()):
    fields = {"dataset": "folder", "data_dir": root, "eval_split": "val", "stream__num_workers": 0}
    return sets.load(given(words, batch_size=2, **fields), print)


def deep(values):
    return encode(Image.fromarray(values), "TIFF")


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        ({"train/a/0.png": b"broken"}, {3}),
        ({"train/a/0.png": encode(picture(20, 20), "PNG")[:200]}, {3}),
        ({"train/a/notes.txt": b"by hand"}, {4}),
        ({"train/notes.txt": b"by hand"}, {4}),
        ({"train/a/0.tif": deep(np.arange(400, dtype=np.int32).reshape(20, 20))}, {5}),
        ({"train/a/0.tif": deep(np.arange(400, dtype=np.uint16).reshape(20, 20))}, {5}),
        ({"train/a/0.tif": deep(np.linspace(0, 1, 400, dtype=np.float32).reshape(20, 20))}, {5}),
    ],
)
def test_images_that_cannot_be_used(folder, change, counts):
    """Each of the settings that a message offers is enough."""
    make_tree(folder, change)
    for setting in settings(message_of(load_folder, folder), "config.stream"):
        assert load_folder(folder, [setting]).num_train in counts


def test_a_flat_split(folder):
    for path in sorted((folder / "val").glob("*/*")):
        path.rename(folder / "val" / f"{path.parent.name}{path.name}")
    for path in sorted((folder / "val").glob("[ab]")):
        path.rmdir()
    text = message_of(load_folder, folder)
    assert "config.label_file names a file with a line for each image, its name and its class" in text
    names = sorted(path.name for path in (folder / "val").iterdir())
    (folder / "labels.txt").write_text("".join(f"{name} {name[0]}\n" for name in names))
    assert load_folder(folder, [f"--config.label_file={folder / 'labels.txt'}"]).num_train == 4


@pytest.mark.parametrize(
    ("fields", "accepted", "field"),
    [
        ({"batch_size": 2000}, r"must be at most the (\d+)", "batch_size"),
        ({"examples_per_class": 1000}, r"must be at most (\d+)", "examples_per_class"),
        ({"train_split": "trian"}, r"Did you mean (\w+)", "train_split"),
        (
            {"mean": "(0.1,0.1)", "std": "(1.0,1.0)"},
            r"must have (1) values",
            "mean=(0.1,) --config.std=(0.1,) --config.seed",
        ),
    ],
)
def test_values_that_fit_a_set(fields, accepted, field):
    (value,) = re.findall(accepted, message_of(sets.load, given([], **fields), print))
    sets.load(given(f"--config.{field}={value}".split(), **fields), print)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((6, 8, 9), np.uint8),
        np.zeros((6, 8, 9, 1)),
        np.zeros((6, 3, 28, 28), np.uint8),
    ],
)
def test_arrays_in_another_form(images):
    text = message_of(arrays.checked, "train", images, np.zeros(6, int))
    expression = re.findall(r"images[.\[].*|\(images .*", text)[-1]
    arrays.checked("train", eval(expression, {"images": images}), np.zeros(6, int))


def test_more_devices_than_there_are():
    config = given([], batch_size=64)
    text = message_of_runtime(lambda: build_run(config, toy_dataset(), len(jax.local_devices()) + 1))
    (statement,) = re.findall(r"jax\.config\.update\(\S+, \d+\)", text)
    name, value = re.findall(r'"(\w+)", (\d+)', statement)[0]
    assert name in jax.config.values and int(value) == len(jax.local_devices()) + 1


def message_of_runtime(call):
    with pytest.raises(RuntimeError) as caught:
        call()
    return str(caught.value)
