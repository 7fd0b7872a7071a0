"""What a run would be, without training."""

import re

import jax
import jax.numpy as jnp
import pytest

from orc_jax import speed
from orc_jax.config import default, resolve
from orc_jax.cost import flops
from orc_jax.describe import describe, seconds, step_flops
from orc_jax.errors import UserError
from orc_jax.methods import ONLINE
from orc_jax.run import abstract_state
from orc_jax.step import make_train_step
from orc_jax.testing import build_run
from tests.helpers import OF_OFFLINE, each_method


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
        "optimizer      sgd, momentum 0.9, weight decay 0.0005 on all parameters",
        "learning rate  0.05, times 0.1 at steps 7, 8, 10",
        "evaluation     on test, 30 images, selects the best checkpoint",
        "devices        4 x cpu",
        "activations    float32",
        "a comparison or a search trains 1 at once by itself (a CPU is filled by one)",
    ):
        assert line in text, text
    assert text.count("replicas ") == 1  # of the run alone, not of its stage
    # By hand: conv1 1*6*9, bn1 2*6, conv2 6*8*9, linear 8*3+3.
    assert re.search(r"0_tiny_a +pivot teacher +525 ", text), text
    config.batch_size = 18
    with pytest.raises(UserError, match="not divisible"):
        describe(resolve(config), tmp_path / "run", console)
    resolve(default(), 1)


def test_what_is_described_is_what_the_config_says(config, console, tmp_path, toy_set):
    config.method, config.num_networks, config.warmup_epochs, config.dtype = "independent", 1, 0.5, "bfloat16"
    config.lr_schedule, config.optimizer, config.clip_norm, config.weight_decay_on = "cosine", "adamw", 1.0, "kernels"
    config.accumulate_steps, config.layer_decay, config.optimizers, config.lr_multipliers = 2, 0.8, "tiny_a=lion", ""
    config.ema_decay, config.eval_ema, config.patience = 0.99, True, 3
    config.frozen, config.classifier_lr_multiplier, config.balanced_sampling = "backbone", 5.0, True
    text = described(config, tmp_path, console)
    assert "learning rate  0.05, warm-up over 0.5 epochs, then cosine to 0" in text
    told = "adamw, weight decay 0.0005 on kernels alone, optimizers tiny_a=lion, gradients of norm 1 at most, "
    told += "an update for every 2 steps, rates of layers times 0.8 towards the images, "
    told += "classifiers at 5 times the rate, frozen backbone, "
    told += "averages of decay 0.99, which are evaluated"
    assert told in " ".join(text.split())
    assert "selects the best checkpoint; config.patience=3 may end the run early" in " ".join(text.split())
    assert "KiB, each class as often\n" in text
    assert "activations    bfloat16" in text and text.count("data ") == 1, "no run before it"
    assert re.search(r"0_tiny_b +target student +359 ", text), text  # 1*4*9 + 2*4 + 4*8*9 + 8*3 + 3
    config.lr_schedule, config.student, config.frozen, config.stochastic_depth = "constant", "resnet8", "", 0.2
    config.balanced_sampling, config.repeated_augmentation = False, 3
    text = described(config, tmp_path, console)
    assert "then constant" in text and "stochastic_depth 0.2 in resnet8" in " ".join(text.split())
    assert "KiB, 3 times in a batch\n" in text


@pytest.mark.parametrize(
    ("dtype", "pays", "told"),
    [
        ("float32", False, "float32"),
        ("float32", True, "float32; bfloat16 would take less time"),
        ("bfloat16", False, "bfloat16, which take no less time here than float32"),
        ("bfloat16", True, "bfloat16"),
    ],
)
def test_where_bfloat16_pays_is_said(dtype, pays, told, config, console, tmp_path, toy_set, monkeypatch):
    config.method, config.num_networks, config.dtype = "independent", 1, dtype
    monkeypatch.setattr(speed, "seconds_per_flop", lambda *args: 1e-9)
    monkeypatch.setattr(speed, "bfloat16_pays", lambda device: pays)
    assert f"activations    {told}\n" in described(config, tmp_path, console)


@pytest.mark.parametrize("method", each_method((*ONLINE, *OF_OFFLINE, "ofd")))  # which looks at more than images' rows
def test_operations_of_a_step_are_those_of_its_trace(method, config, toy):
    """Though they are counted with networks that are traced at once."""
    config.method, config.num_networks, config.teacher, config.assistants = method, 3, "tiny_b", "tiny_b"
    config.switokd.num_teachers = 2
    run = build_run(config, toy, axis_name=None)
    step = make_train_step(run.setup, run.method.iterate)
    batch = jax.ShapeDtypeStruct((16,), jnp.int32)
    exact = flops(step, abstract_state(run), jax.tree.map(jax.typeof, toy.train), batch)
    # The first convolution is much of these networks, and gets no gradient for its images.
    assert step_flops(run) == pytest.approx(exact, rel=0.05)


def test_time_goes_with_the_length_of_the_run(config, toy, monkeypatch):
    """A rate is measured of the layers that the pool has."""
    monkeypatch.setattr(speed, "REPEATS", 1)
    run = build_run(config, toy)
    assert 0 < seconds(run) < 60
    seen = []

    def measured(layer, batch, device, dtype):
        seen.append((layer.image, layer.kernel, batch, dtype))
        return 1e-9

    monkeypatch.setattr(speed, "seconds_per_flop", measured)
    assert seconds(run) == pytest.approx(speed.BESIDES * 1e-9 * step_flops(run) * 11)
    # Those with the most operations: conv2 of both, and conv1 of the wider.
    layers = [((8, 8, 6), (3, 3, 6, 8)), ((8, 8, 4), (3, 3, 4, 8)), ((8, 8, 1), (3, 3, 1, 6))]
    assert seen == [(*layer, 16, "float32") for layer in layers]
