"""The published rows: every one can be resolved, and what the docs and the config say of it is true."""

import re
from pathlib import Path

import pytest

from orc_jax import config_files, published
from orc_jax.config import resolve
from orc_jax.errors import UserError
from orc_jax.methods import OFFLINE

ROOT = Path(__file__).parent.parent
ROWS = published.ROWS


@pytest.mark.parametrize("name", ROWS)
def test_every_row_can_be_resolved(name):
    """And is what its name says."""
    method, *parts = name.split("/")
    resolved = resolve(published.config_of(name), 1)
    assert resolved.config.method == method
    if parts[0] in ("cifar10", "cifar100"):
        assert resolved.config.dataset == parts[0]
    elif parts[0] == "imagenet":
        assert resolved.config.dataset == "imagenet2012"
    student = parts[-1] if parts[-1] not in ("1t2s", "2t1s") else "MobileNetV1"
    assert resolved.architectures[-1].removeprefix("switokd_") == student
    if len(parts) == 3 or method in OFFLINE:
        assert resolved.architectures[0].removeprefix("switokd_") == parts[-2]
    assert ROWS[name].grade in "ABCD" and ROWS[name].epoch in ("last", "best", "?")


def test_the_docs_list_them_all():
    text = (ROOT / "docs" / "reproduce.md").read_text().split("## All rows")[1]
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    assert rows == [[f"`{name}`", row.text, row.source] for name, row in ROWS.items()]


def test_the_config_tells_the_figure_of_each():
    told = re.findall(r"(?m)^(\S+/\S+)  +(.+)$", (ROOT / "configs" / "rows.py").read_text().split('"""')[1])
    assert told == [(name, row.text) for name, row in ROWS.items()]
    config = config_files.load("configs/rows.py:pcl/cifar10/wrn_20_8")
    assert (config.method, config.dataset, config.student) == ("pcl", "cifar10", "wrn_20_8")
    with pytest.raises(UserError, match=r"row='pcl/cifar10/wrn_20' is not known. Did you mean pcl/cifar10/wrn_20_8"):
        config_files.load("configs/rows.py:pcl/cifar10/wrn_20")


def test_how_a_figure_is_told():
    assert ROWS["pcl/cifar100/resnet32"].text == "74.14 ± 0.16 [B, ?]"
    assert ROWS["takd/cifar100/plane10/plane2"].text == "44.92 [C, best]"
    assert ROWS["orc/cifar10/resnet26/resnet8"].text == "not known"
    assert ROWS["crd/vgg13/vgg8"].text == "73.94 [A, last]"
    assert ROWS["dist/resnet56/resnet20"].text == "71.75 ± 0.30 [A, ?]"
    assert len(ROWS) == 13 + 11 * 13 + 6 + 11 + 6 + 8 + 2 + 15 + 6 + 5 + 6 + 60


def test_recipes_of_some_rows():
    """What papers and code say, by hand."""
    config = published.config_of("switokd/cifar100/1t2s")
    assert resolve(config, 1).architectures == ("switokd_wrn_16_10", "switokd_wrn_16_2", "MobileNetV1")
    resolved = resolve(config, 1)
    assert resolved.optimizers == {"MobileNetV1": "adam"} and resolved.weight_decays == {"MobileNetV1": 1e-4}
    assert resolved.lr_multipliers == {"MobileNetV1": 0.1} and config.learning_rate == 0.1
    assert [round(x * 269) for x in config.lr_boundaries] == [139, 199, 249] and config.num_epochs == 269
    config = published.config_of("switokd/cifar100/2t1s")
    assert resolve(config, 1).architectures == ("switokd_wrn_16_2", "switokd_wrn_16_10", "MobileNetV1")
    assert config.switokd.num_teachers == 2 and config.switokd.paused_step == "skipped"
    config = published.config_of("orc/cifar10/resnet26/resnet8")
    assert resolve(config, 1).architectures == ("resnet26", "resnet20", "resnet14", "resnet8")
    assert (config.num_epochs, config.batch_size, config.weight_decay) == (160, 128, 1e-4)
    config = published.config_of("dkd/resnet56/resnet20")
    assert (config.dkd.beta, config.num_networks, config.learning_rate, config.batch_size) == (2.0, 2, 0.05, 64)
    config = published.config_of("reviewkd/resnet32x4/ShuffleV2")
    assert (config.reviewkd.weight, config.nesterov, config.learning_rate, config.batch_size) == (8.0, True, 0.1, 128)
    config = published.config_of("dgkd/cifar100/wrn_40_2/wrn_16_2")
    assert len(resolve(config, 1).architectures) == 5
    config = published.config_of("okddip/cifar100/vgg16_linears")
    assert (config.num_networks, config.num_epochs, config.nesterov) == (4, 300, True)
