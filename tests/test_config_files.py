"""Where the config of a command comes from, and what is told of a file that is none."""

import pytest

from orc_jax import config_files
from orc_jax.config import default, resolve
from orc_jax.errors import UserError
from orc_jax.testing import build_run
from orc_jax.workdir import record

START = "from pathlib import Path\nfrom orc_jax.config import default\n\ndef get_config():\n    config = default()\n"
ANY = "    with config.ignore_type():\n        "  # as a file may ask for


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_persons_own_file_wins(here):
    """Over one that comes along and is called the same."""
    assert config_files.find("configs/digits.py") == config_files.SHIPPED / "digits.py"
    assert config_files.find("digits") == config_files.find("digits.py") == config_files.SHIPPED / "digits.py"
    for name in ("configs/digits.py", "configs/mine/digits.py", "digits.py"):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(START + f"    config.seed = {len(name)}\n    return config\n")
        assert config_files.load(name).seed == len(name)
    with pytest.raises(UserError, match=r"--config=mine/digits.py: there is no such file.*configs/cifar100.py"):
        config_files.find("mine/digits.py")


def test_a_file_may_import_what_lies_beside_it_and_take_an_argument(here):
    (here / "mine").mkdir()
    (here / "mine" / "beside_it.py").write_text("RATE = 0.25\n")
    text = "import beside_it\n" + START.replace("()", "(seed)", 1)
    (here / "mine" / "c.py").write_text(
        text + "    config.learning_rate, config.seed = beside_it.RATE, int(seed)\n    return config\n"
    )
    config = config_files.load("mine/c.py:7")
    assert (config.learning_rate, config.seed) == (0.25, 7)
    with pytest.raises(UserError, match=r"get_config has failed: TypeError: .*missing 1 required"):
        config_files.load("mine/c.py")


def test_a_path_may_have_colons(here):
    (here / "12:30").mkdir()
    (here / "12:30" / "a:b.py").write_text(
        START.replace("()", "(seed='1')", 1) + "    config.seed = int(seed)\n    return config\n"
    )
    assert config_files.load("12:30/a:b.py").seed == 1 and config_files.load("12:30/a:b.py:7").seed == 7
    assert config_files.base("12:30/a:b.py:7", None, None)[1] == "12:30/a:b.py"
    with pytest.raises(UserError, match="--config=12: there is no such file"):
        config_files.load("12:30/c.py")


@pytest.mark.parametrize("given", ["n" * 300, "n" * 300 + ":7", "~nobody_here/c.py", "a\0b.py"])
def test_what_is_no_path_is_one_message(here, given):
    with pytest.raises(UserError, match=r"^--config="):
        config_files.load(given)


def test_a_frozen_config_will_do(here):
    (here / "c.py").write_text(
        "from ml_collections import FrozenConfigDict\n"
        + START
        + "    config.seed = 3\n    return FrozenConfigDict(config)\n"
    )
    config = config_files.load("c.py")
    config.seed += 1
    assert config.seed == 4


def test_a_file_may_have_the_options_of_its_own_method(here):
    """And of no other."""
    text = START + "    config.method, config.mine = '{}', {{'weight': 0.5}}\n    return config\n"
    (here / "c.py").write_text(text.format("my_method:mine"))
    assert config_files.load("c.py").mine.weight == 0.5
    for method in ("my_method:other", "orc"):
        (here / "c.py").write_text(text.format(method))
        with pytest.raises(UserError, match=r"config field='mine\.weight' is not known"):
            config_files.load("c.py")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(:\n", "line 1 is not Python"),
        (
            "import no_such_module_here\n",
            "cannot be executed: ModuleNotFoundError: No module named 'no_such_module_here'",
        ),
        ("1 / 0\n", "cannot be executed: ZeroDivisionError"),
        ("x = 1\n", "has no function get_config"),
        ("def get_config():\n    return {'seed': 1}\n", "returns a dict; needed is a config made by"),
        ("def get_config():\n    pass\n", "returns a NoneType"),
        (START + "    config.learning_rat = 0.7\n    return config\n", "Did you mean learning_rate"),
        (START + "    config.orc.bta = 0.7\n    return config\n", "Did you mean orc.beta"),
        (START + "    config.seed = 'x'\n    return config\n", "get_config has failed: TypeError"),
        (START + "    del config.seed\n    return config\n", "lacks config.seed"),
        (START + "    config.seed = None\n    return config\n", "config.seed=None: must be a whole number, such as 0"),
        (START + ANY + "config.seed = '3'\n    return config\n", "config.seed='3': must be a whole number"),
        (START + ANY + "config.flip = 1\n    return config\n", "config.flip=1: must be True or False"),
        (
            START + ANY + "config.data_dir = Path('x')\n    return config\n",
            "config.data_dir=PosixPath('x'): must be text",
        ),
        ("raise SystemExit(0)\n", "cannot be executed: SystemExit: 0"),
        ("def get_config():\n    exit()\n", "get_config has failed: SystemExit"),
        ("from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict()\n", "lacks config."),
        ("x = 1\0\n", "line 1 is not Python"),
    ],
)
def test_a_broken_file_is_one_message(here, text, message):
    (here / "c.py").write_text(text)
    with pytest.raises(UserError, match=r"^--config=c\.py: ") as caught:
        config_files.load("c.py")
    assert message in str(caught.value)


def test_other_numbers_and_lists_will_do(here):
    (here / "c.py").write_text(
        START + ANY + "config.learning_rate, config.lr_boundaries = 1, [0.5]\n    return config\n"
    )
    assert resolve(config_files.load("c.py"), 1).config.learning_rate == 1


def test_the_home_folder(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    (here / "c.py").write_text(START + "    return config\n")
    assert config_files.find("~/c.py") == here / "c.py"


def test_other_files_are_no_configs(here):
    for name, message in {"c.yaml": "accepted is a Python file", "run/config.json": "--workdir=run"}.items():
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_text("{}")
        with pytest.raises(UserError, match=message):
            config_files.load(name)
    with pytest.raises(UserError, match="is not a file"):
        config_files.load("run")


def test_the_base(tmp_path, config, toy):
    finished = tmp_path / "run"
    record.write(finished, build_run(config, toy).record())
    assert config_files.base("digits", finished, None)[0].dataset == "digits"
    found, name, of_run = config_files.base(None, finished, None)
    assert found.to_json() == config.to_json() and name == f"that of the run in {finished}" and of_run
    assert isinstance(found.lr_boundaries, tuple)
    for dataset, teacher in {"cifar10": "resnet56", "folder": "resnet34", None: "resnet20", "svhn": "resnet20"}.items():
        found, name, of_run = config_files.base(None, finished / "nothing", dataset)
        assert found.teacher == teacher and "as no --config was given" in name and not of_run


@pytest.mark.parametrize(
    ("fields", "changed"),
    [
        ({}, {}),
        ({"num_epochs": 2}, {"warmup_epochs": 0.2}),
        ({"num_epochs": 2, "warmup_epochs": 2.0}, {}),
        ({"pretrain_epochs": 1}, {"warmup_epochs": 0.1}),
        ({"lr_schedule": "one_cycle"}, {"warmup_epochs": 0.0}),
        ({"method": "switokd"}, {"num_networks": 2}),
        ({"method": "pcl"}, {"teacher": "resnet8", "assistants": "copies"}),
        ({"method": "pcl", "student": "resnet20"}, {"assistants": "copies"}),
    ],
)
def test_defaults_that_do_not_fit_are_adapted(fields, changed):
    """And a person's own values never."""
    config = config_files.load("digits")
    config.update(fields)
    expected = config.copy_and_resolve_references()
    expected.update(changed)
    lines = config_files.adapted(config, fields)
    assert config.to_dict() == expected.to_dict()
    assert [line.split("=")[0] for line in lines] == [f"config.{field}" for field in changed]
    if fields.get("warmup_epochs") is None:
        resolve(config, 1)


def test_images_of_ones_own(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    for size, teacher in (("64", "resnet32x4"), ("224", "resnet34")):
        config = config_files.load(f"configs/folder.py:{size}")
        config.data_dir, config.num_epochs = str(tmp_path), 20
        assert config.flip and config.teacher == teacher
        assert (config.pretrain_epochs, config.warmup_epochs) == (20, 1.0), "they follow"
        config_files.adapted(config, ["data_dir", "num_epochs"])
        assert config.eval_split == "test"
        resolve(config, 1)
    config.pretrain_epochs = 3
    assert config.num_epochs == 20
    assert default().flip


def test_a_run_whose_fields_were_changed_to_another_kind(config, toy, tmp_path):
    one = build_run(config, toy).record()
    record.write(tmp_path, one._replace(config=one.config | {"learning_rate": "fast"}))
    with pytest.raises(UserError, match=r"config.json: config.learning_rate='fast': must be a number, such as 0.05"):
        config_files.of_run(tmp_path)
