"""Flags and overrides, as a person gives them."""

import pytest
from absl import flags

from orc_jax import flagging
from orc_jax.errors import UserError
from orc_jax.testing import build_run
from orc_jax.workdir import record


def parsed(*arguments):
    own = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "Where.", flag_values=own)
    flags.DEFINE_enum("mode", "train", ["train", "evaluate"], "What.", flag_values=own)
    flags.DEFINE_multi_string("own", [], "Trusted.", flag_values=own)
    return own, flagging.parse(["command", *arguments], own, "It does something.")


def test_flags_and_overrides_in_any_order(tmp_path):
    own, given = parsed(
        *("--config.seed=3", "--mode", "evaluate", "--config", "digits", "--noconfig.flip", "--config.mean=(0.5,)"),
        *("--config.orc.beta", "0.25", f"--workdir={tmp_path}", "--config.lr_boundaries=(0.25, 0.5)"),
    )
    config = given.config
    assert (own["mode"].value, own["workdir"].value) == ("evaluate", str(tmp_path))
    assert (config.seed, config.flip, config.mean, config.orc.beta) == (3, False, (0.5,), 0.25)
    assert config.lr_boundaries == (0.25, 0.5) and config.dataset == "digits" and given.trusted is None


def test_one_split_that_is_named_is_meant_alone(tmp_path):
    both = "--config.eval_splits=validation,test"
    assert parsed("--config=digits", both)[1].config.eval_splits == "validation,test"
    for arguments, expected in (((), "a,b"), (("--config.eval_split=c",), "")):
        config = tmp_path / "c.py"
        config.write_text(
            "from orc_jax.config import default\ndef get_config():\n    config = default()\n"
            "    config.eval_splits = 'a,b'\n    return config\n"
        )
        assert parsed(f"--config={config}", *arguments)[1].config.eval_splits == expected
    assert parsed("--config=digits", both, "--config.eval_split=test")[1].config.eval_splits == "validation,test"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--config.num_netwrks=5"], "field='num_netwrks' is not known. Did you mean num_networks"),
        (["--config", "digits", "--config.orc.temperatur=3"], "Did you mean orc.temperature"),
        (["--config.seed=1", "seed=2"], "not understood: seed=2. Overrides are written --config.field=value"),
        (["--config"], "--config: needs a file; those that come along: configs/ablations.py"),
        (
            ["--config=nowhere.py"],
            "--config=nowhere.py: there is no such file. Those that come along: configs/ablations",
        ),
        (["--mode=evalute"], "--mode=evalute: value should be one of <train|evaluate>"),
        (["--config.num_epochs=many"], "--config.num_epochs=many: must be a whole number, such as 30"),
        (["--config.num_epochs=2.5"], "--config.num_epochs=2.5: must be a whole number, such as 30"),
        (["--config.learning_rate=fast"], "--config.learning_rate=fast: must be a number, such as 0.05"),
        (["--config.flip=maybe"], "--config.flip=maybe: must be True or False"),
        (["--epochs=3"], "--epochs is not known. Did you mean --config.num_epochs?"),
        (["--lr=3"], "Did you mean --config.learning_rate?"),
        (["--batch-size=3"], "Did you mean --config.batch_size?"),
        (["--output_dir=x"], "Did you mean --workdir?"),
        (["--wrkdir=x"], "Did you mean --workdir?"),
        (["--momentum=x"], "Did you mean --config.momentum?"),
        (["--evaluate"], "Did you mean --mode=evaluate?"),
        (["--temporary_teachers=2"], "Did you mean --config.num_temporary_teachers?"),
    ],
)
def test_mistakes_are_one_message(arguments, text):
    with pytest.raises(UserError) as caught:
        parsed(*arguments)
    assert text in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("flag", ["--help", "-h", "--helpfull", "--version"])
def test_help(flag, capsys):
    with pytest.raises(SystemExit) as left:
        parsed("--mode=evaluate", flag)
    assert left.value.code == 0
    text = capsys.readouterr().out
    if flag == "--version":
        assert text.startswith("orc_jax ") and text.count("\n") == 1
        return
    assert text.startswith("It does something.")
    for told in ("--config=FILE", "configs/cifar100.py", "--config.FIELD=VALUE", "--workdir: Where.", "--version"):
        assert told in text


def test_what_a_run_names_is_not_trusted(tmp_path, config, toy):
    finished = tmp_path / "run"
    record.write(finished, build_run(config, toy).record())
    _, given = parsed(f"--workdir={finished}", "--config.student=my:Net", "--own=mine:Thing", "--config.seed=5")
    assert given.base == f"that of the run in {finished}"
    assert given.trusted == {"my:Net", "mine:Thing"}
    _, given = parsed(f"--workdir={finished}", "--config=digits")
    assert given.trusted is None
