"""What a run would be, without training."""

import re

import pytest

from orc_jax.config import default, resolve
from orc_jax.describe import describe
from orc_jax.errors import UserError


def described(config, tmp_path, console):
    describe(resolve(config), tmp_path / "run", console)
    console.file.flush()
    return (tmp_path / "console.txt").read_text()


def test_describe_tells_what_a_training_would_be(config, console, tmp_path, toy_set):
    text = described(config, tmp_path, console)
    assert not (tmp_path / "run").exists()
    for line in (
        "data           90 images of 3 classes, 8x8x1, in memory, 5.6 KiB",
        "steps          5 of 16 images, 1 epochs",  # of the pivot teacher
        "steps          11 of 16 images, 2 epochs",
        "learning rate  0.05, times 0.1 at steps 7, 8, 10",
        "devices        4 x cpu, activations in float32",
    ):
        assert line in text, text
    # By hand: conv1 1*6*9, bn1 2*6, conv2 6*8*9, linear 8*3+3.
    assert re.search(r"0_tiny_a +pivot teacher +525 ", text), text
    config.batch_size = 18
    with pytest.raises(UserError, match="not divisible"):
        describe(resolve(config), tmp_path / "run", console)
    resolve(default(), 1)


def test_what_is_described_is_what_the_config_says(config, console, tmp_path, toy_set):
    config.method, config.num_networks, config.warmup_epochs, config.dtype = "independent", 1, 0.5, "bfloat16"
    config.lr_schedule = "cosine"
    text = described(config, tmp_path, console)
    assert "learning rate  0.05, warm-up over 0.5 epochs, then cosine to 0" in text
    assert "activations in bfloat16" in text and text.count("data ") == 1, "no run before it"
    assert re.search(r"0_tiny_b +target student +359 ", text), text  # 1*4*9 + 2*4 + 4*8*9 + 8*3 + 3
    config.lr_schedule = "constant"
    assert "then constant" in described(config, tmp_path, console)
