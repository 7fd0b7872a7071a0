"""What a search may choose, as a person writes it."""

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from orc_jax.config import default, resolve
from orc_jax.errors import UserError
from orc_jax.tune import space


def test_ranges_and_choices():
    searches = ("orc.beta=0.1:0.9", "config.learning_rate=0.01:0.3:log", "num_networks=3:5", "optimizer=sgd, adamw")
    found = space.parse(default(), (*searches, "flip=true,false", "lr_boundaries=(0.5,0.75),(0.3,0.6,0.9)"))
    assert found.distributions == {
        "orc.beta": FloatDistribution(0.1, 0.9),
        "learning_rate": FloatDistribution(0.01, 0.3, log=True),
        "num_networks": IntDistribution(3, 5),
        "optimizer": CategoricalDistribution(("sgd", "adamw")),
        "flip": CategoricalDistribution((True, False)),
        "lr_boundaries": CategoricalDistribution(("(0.5,0.75)", "(0.3,0.6,0.9)")),
    }
    assert space.values_in(default(), {"lr_boundaries": "(0.5,0.75)", "optimizer": "adamw", "orc.beta": 0.2}) == {
        "lr_boundaries": (0.5, 0.75),
        "optimizer": "adamw",
        "orc.beta": 0.2,
    }
    ends = [value for name, value in found.extremes() if name in ("orc.beta", "optimizer")]
    assert ends == [0.1, 0.9, "sgd", "adamw"]


@pytest.mark.parametrize("method", space.OPEN)
def test_what_is_searched_of_a_method_is_accepted(method):
    config = default()
    config.method = method
    for name, value in space.parse(config, space.of_method(method)).extremes():
        config[method][name.partition(".")[2]] = value
        resolve(config)


@pytest.mark.parametrize(
    ("searches", "text"),
    [
        (["orc.bta=0.1:0.9"], "--search: field='orc.bta' is not known. Did you mean orc.beta"),
        (["orc.beta"], "--search=orc.beta: accepted is field=low:high, field=low:high:log or field=value,value of any"),
        (["orc.beta=0.5"], "there is nothing to choose from"),
        (["orc.beta=0.9:0.1"], "low below high"),
        (["orc.beta=0:1:log"], "with log above 0"),
        (["orc.beta=0:1:lin"], "low below high, and with log above 0"),
        (["orc.beta=a:1"], "--search: config.orc.beta=a: must be like 0.5"),
        (["num_networks=3:4.5"], "config.num_networks=4.5: must be like 5"),
        (["seed=0:5"], "of any field but seed"),
        (["orc.beta=0:1", "orc.beta=0.1,0.2"], "config.orc.beta is given twice"),
    ],
)
def test_mistakes(searches, text):
    with pytest.raises(UserError) as error:
        space.parse(default(), searches)
    assert text in str(error.value)


def test_a_method_of_which_nothing_is_known():
    with pytest.raises(UserError, match=r"nothing is chosen for config.method='dml'; accepted is field=low:high"):
        space.of_method("dml")
