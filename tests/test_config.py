"""What a config stands for, and what is refused: by the name of the field, before anything is written."""

import sys
import types

import ml_collections
import pytest

from orc_jax import config as configs
from orc_jax.config import resolve
from orc_jax.defaults import options_of
from orc_jax.errors import UserError
from orc_jax.methods import BRANCHED, METHODS
from orc_jax.methods.base import Stage
from tests.helpers import train

pytestmark = pytest.mark.usefixtures("toy_set")


def change(config, fields):
    """Sets fields of a config by their dotted names."""
    for name, value in fields.items():
        group, _, option = name.rpartition(".")
        (config[group] if group else config)[option] = value


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"method": "orcc"}, "config.method='orcc' is not known. Did you mean orc"),
        ({"method_options": "beta=1"}, "config.method_options='beta=1': must be empty, but for a method of your own"),
        ({"teacher": "resnet57"}, "config.teacher='resnet57' is not known. Did you mean resnet"),
        ({"student": "vgg"}, "config.student='vgg' is not known"),
        ({"num_networks": 0}, "config.num_networks=0: must be at least 1"),
        ({"num_networks": 1, "assistants": ""}, "config.num_networks=1 would have to be at least 3"),
        ({"num_networks": 2, "assistants": ""}, "config.num_networks=2 would have to be at least 3"),
        ({"num_temporary_teachers": 0}, "config.num_temporary_teachers=0: must be at least 1"),
        ({"num_temporary_teachers": 3}, "must be less than the 3 networks of the student group"),
        ({"num_networks": 6}, "config.assistants='tiny_b,tiny_a' names 2 networks, but.*leaves 4"),
        ({"assistants": "tiny_b,resnt8"}, "config.assistants='resnt8' is not known. Did you mean resnet8"),
        ({"batch_size": 18}, "config.batch_size=18 is not divisible by the 4 devices of this run: 16 would be"),
        ({"batch_size": 3}, "config.batch_size=3 is not divisible by the 4 devices of this run: 4 would be"),
        ({"batch_size": 0}, "config.batch_size=0: must be greater than 0"),
        ({"num_epochs": 0}, "config.num_epochs=0: must be greater than 0"),
        ({"num_epochs": 10**10}, "config.num_epochs=10000000000: must be less: .* steps are more than are counted"),
        ({"eval_every_epochs": 0}, "config.eval_every_epochs=0: must be greater than 0"),
        ({"log_every_steps": 0}, "config.log_every_steps=0: must be greater than 0"),
        ({"steps_per_call": 0}, "config.steps_per_call=0: must be greater than 0"),
        ({"batch_norm": "synced"}, "config.batch_norm='synced' is not known"),
        ({"momentum": 1.5}, r"config.momentum=1.5: must be in \[0, 1\)"),
        ({"learning_rate": -1.0}, "config.learning_rate=-1.0"),
        ({"learning_rate": float("inf")}, "config.learning_rate=inf: must be a finite number"),
        ({"orc.temperature": float("nan")}, "config.orc.temperature=nan: must be a finite number"),
        ({"orc.temperature": 1e30}, r"config.orc.temperature=1e\+30: must be at most 1000000"),
        ({"seed": -1}, "config.seed=-1: must be from 0 to 2147483647"),
        ({"weight_decay": -0.1}, "config.weight_decay=-0.1: must be at least 0"),
        ({"optimizer": "adamv"}, "config.optimizer='adamv' is not known. Did you mean adam"),
        ({"weight_decay_on": "norms"}, "config.weight_decay_on='norms' is not known.*all, kernels"),
        ({"clip_norm": -1.0}, "config.clip_norm=-1.0: must be at least 0"),
        ({"accumulate_steps": 0}, "config.accumulate_steps=0: must be at least 1"),
        ({"accumulate_steps": 6}, "config.accumulate_steps=6: must be at most the 5 steps of the run"),
        ({"layer_decay": 0.0}, r"config.layer_decay=0.0: must be in \(0, 1\]"),
        ({"patience": -1}, "config.patience=-1: must be at least 0"),
        ({"crop_padding": -1}, "config.crop_padding=-1: must be at least 0"),
        ({"examples_per_class": -1}, "config.examples_per_class=-1: must be at least 0"),
        ({"auto_augment": "rnd"}, "config.auto_augment='rnd' is not known. Did you mean rand"),
        ({"rand_augment": (2, 31)}, r"config.rand_augment=\(2, 31\): must be \(operations, magnitude\): .*to 30"),
        ({"rand_augment": (0, 9)}, r"config.rand_augment=\(0, 9\): must be"),
        ({"rand_augment": (2,)}, r"config.rand_augment=\(2,\): must be"),
        ({"color_jitter": (0.4,)}, r"config.color_jitter=\(0.4,\): must be \(brightness, contrast, saturation, hue\)"),
        ({"color_jitter": (0.4, 0.4, 0.4, 0.6)}, r"config.color_jitter=.*hue at most 0.5"),
        ({"color_jitter": (-0.4, 0.4, 0.4, 0.1)}, r"config.color_jitter=.*of 0 or more"),
        ({"cutout": -1}, "config.cutout=-1: must be at least 0"),
        ({"cutout": 9}, "config.cutout=9: must be at most 8: images of toy are 8x8"),
        ({"crop_padding": 8}, "config.crop_padding=8: must be less than 8, so that every crop has some of the image"),
        ({"random_erasing": 1.5}, "config.random_erasing=1.5: must be between 0 and 1"),
        ({"mixup": -0.1}, "config.mixup=-0.1: must be from 0 to 100"),
        ({"cutmix": 101.0}, "config.cutmix=101.0: must be from 0 to 100"),
        ({"label_smoothing": 1.0}, r"config.label_smoothing=1.0: must be in \[0, 1\)"),
        ({"mixup": 0.2}, "config.mixup=0.2: a mixed image has two labels.*'orc' decides who is promoted"),
        ({"cutmix": 1.0, "method": "switokd"}, "config.cutmix=1.0: .*'switokd' decides which teachers pause"),
        ({"mixup": 0.2, "method": "kdcl"}, "config.mixup=0.2: .*'kdcl' decides the target 'minlogit'"),
        ({"log_to": "tensorbord"}, "config.log_to='tensorbord' is not known. Did you mean tensorboard"),
        ({"log_to": "wandb"}, "config.log_to='wandb': the package wandb is not installed"),
        ({"lr_schedule": "stepp"}, "config.lr_schedule='stepp' is not known. Did you mean step"),
        ({"on_divergence": "isolat"}, "config.on_divergence='isolat' is not known. Did you mean isolate"),
        ({"lr_boundaries": (150.0, 180.0)}, "config.lr_boundaries=.*fractions between 0 and 1"),
        ({"lr_boundaries": (0.75, 0.5)}, "config.lr_boundaries=.*increasing fractions"),
        ({"lr_boundaries": (0.5, 0.5)}, "config.lr_boundaries=.*increasing fractions"),
        ({"lr_multipliers": "tiny_b=fast"}, "config.lr_multipliers='tiny_b=fast': must be name=positive number"),
        ({"lr_multipliers": "tiny_b=0"}, "config.lr_multipliers='tiny_b=0': must be name=positive number"),
        ({"lr_multipliers": "tiny_b=inf"}, "config.lr_multipliers='tiny_b=inf': must be name=positive number"),
        ({"lr_multipliers": "tiny_c=1"}, "config.lr_multipliers='tiny_c' is not known"),
        ({"stream.crop_area": (0.5, 0.1)}, r"config.stream.crop_area=\(0.5, 0.1\): must be \(smallest, largest\)"),
        ({"stream.crop_area": (0.5, 1.1)}, r"config.stream.crop_area=\(0.5, 1.1\): must be"),
        ({"stream.image_size": 0}, "config.stream.image_size=0: must be greater than 0"),
        ({"stream.eval_crop": 1.5}, "config.stream.eval_crop=1.5: must be in"),
        ({"stream.eval_crop": 0.0}, "config.stream.eval_crop=0.0: must be in"),
        ({"stream.num_workers": -2}, "config.stream.num_workers=-2: must be -1 or more"),
        ({"dtype": "float16"}, "config.dtype='float16' is not known.*Accepted: float32, bfloat16"),
        ({"warmup_epochs": 1.5}, "config.warmup_epochs=1.5: must be less than 1.25, where.*config.num_epochs=2"),
        ({"warmup_epochs": 1.25}, "config.warmup_epochs=1.25: must be less than 1.25"),
        ({"warmup_epochs": 0.7}, "config.warmup_epochs=0.7: must be less than 0.625, where.*config.pretrain_epochs=1"),
        ({"orc.role_change": False, "pretrain_epochs": 0}, "config.pretrain_epochs=0: members .* never learn"),
        ({"method": "dml", "on_divergence": "isolate"}, "config.on_divergence='isolate': with config.method='dml'"),
        ({"method": "dml", "pivot_checkpoint": "x"}, "config.pivot_checkpoint='x': config.method='dml' trains all"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(fields, text, config, console, tmp_path):
    change(config, fields)
    with pytest.raises(UserError, match=f"(?s){text}"):
        train(config, tmp_path / "run", console)
    assert not (tmp_path / "run").exists()


def test_what_is_at_the_limit_is_accepted(config):
    change(config, {"batch_size": 4, "eval_batch_size": 4, "num_temporary_teachers": 2, "stream.crop_area": (0.5, 0.5)})
    change(config, {"stream.eval_crop": 1.0, "stream.num_workers": -1, "seed": 0, "weight_decay": 0.0})
    change(config, {"momentum": 0.0, "warmup_epochs": 0.6, "lr_boundaries": (), "lr_multipliers": ""})
    resolve(config)
    change(config, {"num_networks": 1, "assistants": "", "method": "independent", "batch_size": 6})
    assert resolve(config, num_devices=2).architectures == ("tiny_b",)


def test_warm_up_is_not_checked_against_a_pretraining_that_does_not_happen(config):
    config.warmup_epochs, config.pivot_checkpoint = 0.7, "anywhere"
    resolve(config, 1)
    config.pivot_checkpoint, config.pretrain_epochs = "", 0
    resolve(config, 1)
    config.method, config.pretrain_epochs = "dml", 1
    resolve(config, 1)


def test_the_number_of_temporary_teachers_is_one_field_of_two_names(config):
    """The short one and the method's option: whichever is set, the method gets it."""
    config.num_temporary_teachers = 2
    assert config.orc.num_temporary_teachers == 2
    assert resolve(config).method.spares == 3 - 2
    config.orc.num_temporary_teachers = 1
    assert config.num_temporary_teachers == 1
    assert resolve(config).method.spares == 3 - 1
    copy = config.copy_and_resolve_references()
    copy.num_temporary_teachers = 2
    text = "config.num_temporary_teachers=2: must be that of config.orc.num_temporary_teachers=1"
    with pytest.raises(UserError, match=text):
        resolve(copy)
    copy.orc.num_temporary_teachers = 2
    assert resolve(copy).method.spares == 3 - 2


def test_what_was_resolved_does_not_change(config):
    """Nor does the config that was given."""
    before = config.to_dict()
    resolved = resolve(config)
    assert config.to_dict() == before and resolved.config.to_dict() == before
    config.batch_size, config.student, config.orc.beta, config.num_temporary_teachers = 32, "tiny_a", 0.9, 2
    assert resolved.config.to_dict() == before
    assert resolved.architectures == ("tiny_a", "tiny_b", "tiny_a", "tiny_b")
    for options in (resolved.config, resolved.config.orc):
        with pytest.raises(AttributeError):
            options.beta = 1.0


def test_what_a_config_stands_for(config):
    config.lr_multipliers = " tiny_b=0.5, resnet8=2"
    resolved = resolve(config)
    assert resolved.architectures == ("tiny_a", "tiny_b", "tiny_a", "tiny_b")
    assert list(resolved.models) == ["tiny_a", "tiny_b"] and resolved.plugins == {}
    assert resolved.lr_multipliers == {"tiny_b": 0.5, "resnet8": 2.0}
    assert resolved.method.roles == ("pivot teacher", "assistant", "assistant", "target student")
    config.teacher, config.assistants, config.student, config.num_networks = "resnet56", "ladder", "resnet20", 5
    assert resolve(config).architectures == ("resnet56", "resnet44", "resnet32", "resnet26", "resnet20")
    config.assistants = "copies"
    assert resolve(config).architectures == ("resnet56", *["resnet20"] * 4)


@pytest.mark.parametrize("name", METHODS)
def test_options_reach_their_method(name, config, monkeypatch):
    """The fields of `config.<method>` are the keyword arguments of its factory, and nobody else's."""
    got, config.method, config.teacher = [], name, "tiny_b"
    config.num_networks, config.assistants = 3, "tiny_b"
    factory = METHODS[name]

    def recording(architectures, **options):
        got.append((architectures, options))
        return factory(architectures, **options)

    monkeypatch.setitem(METHODS, name, recording)
    resolve(config)
    assert got == [(("tiny_b", "tiny_b", "tiny_b"), options_of(factory))]
    for option, value in options_of(factory).items():
        if isinstance(value, float):
            config[name][option] = value * 0.75 + 0.01
            resolve(config)
            assert got[-1][1][option] == value * 0.75 + 0.01


def test_the_run_of_a_stage(config):
    """The pivot teacher of ORC: alone, trained from scratch, by its own method and for its own time."""
    config.pretrain_epochs, config.pivot_checkpoint, config.learning_rate = 7, "elsewhere", 0.25
    resolved = resolve(config)
    (stage,) = resolved.method.stages
    pivot = resolved.stage(stage, config.pretrain_epochs)
    assert pivot.architectures == ("tiny_a",) and pivot.method.roles == ("target student",)
    assert not pivot.method.stages and list(pivot.models) == ["tiny_a"]
    fields = {"method": "independent", "num_epochs": 7, "num_networks": 1, "pivot_checkpoint": "", "assistants": ""}
    fields |= {"teacher": "tiny_a", "student": "tiny_a"}
    expected = configs.flat(resolved.config.to_dict()) | fields  # all else is that of the run
    assert configs.flat(pivot.config.to_dict()) == expected
    assert resolved.config.num_networks == 4 and resolved.config.method == "orc"


@pytest.mark.parametrize("name", METHODS)
def test_every_stage_has_its_members(name, config):
    config.method, config.num_networks, config.teacher = name, 4, "tiny_b" if name in BRANCHED else "tiny_a"
    config.assistants = "tiny_b,tiny_b" if name in BRANCHED else "tiny_b,tiny_a"
    resolved = resolve(config)
    for stage in resolved.method.stages:
        run = resolved.stage(stage, 3)
        assert run.architectures == tuple(resolved.architectures[member] for member in stage.members)
        assert run.config.method == stage.method
        assert run.config.num_epochs == stage.fields.get("num_epochs", 3)
        assert len(run.method.roles) == len(stage.members)


def test_method_options_stay_with_their_method(config, monkeypatch):
    """A stage by the method itself gets them, and one by another does not."""
    own = types.SimpleNamespace(method=lambda architectures, **options: METHODS["independent"](architectures))
    monkeypatch.setitem(sys.modules, "mine", own)
    config.method, config.method_options = "mine:method", "a=1"
    resolved = resolve(config)
    assert resolved.stage(Stage("one", "mine:method", (0, 1)), 2).config.method_options == "a=1"
    assert resolved.stage(Stage("one", "independent", (0, 1)), 2).config.method_options == ""
    own.method = lambda architectures: METHODS["independent"](architectures)
    with pytest.raises(UserError, match=r"config.method='mine:method' cannot be called as method\(architectures"):
        resolve(config)
    own.method = lambda architectures, **options: None
    with pytest.raises(UserError, match=r"config.method='mine:method' has returned a NoneType: must be a Method"):
        resolve(config)


def test_a_replaced_field_changes_what_follows_from_it(config):
    resolved = resolve(config)
    one = resolved.replace(method="independent", num_networks=1)
    assert one.architectures == ("tiny_b",) and one.config.num_networks == 1 and resolved.config.num_networks == 4
    assert one.method.roles == ("target student",)


def test_names_in_a_file_are_not_trusted(config):
    config.teacher = "mine:Net"
    with pytest.raises(UserError, match=r"config.teacher='mine:Net' stands in a file; .*--own mine:Net"):
        configs.reopen(config, trusted=())
    config.teacher = "tiny_a"
    config.batch_size = 18  # does not fit these devices, but it was trained
    assert configs.reopen(config, trusted=()).architectures[0] == "tiny_a"


def test_flat_names():
    config = ml_collections.ConfigDict({"a": 1, "b": {"c": {"d": 2}, "e": (3,)}})
    assert configs.flat(config.to_dict()) == {"a": 1, "b.c.d": 2, "b.e": (3,)}
