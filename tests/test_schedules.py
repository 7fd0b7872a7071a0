"""The learning rate as a function of the step."""

import numpy as np
import pytest

from orc_jax.config import default, resolve
from orc_jax.errors import UserError
from orc_jax.schedules import described, learning_rate_schedule


def schedule(num_steps, per_epoch, **fields):
    config = default()
    config.update(fields)
    return lambda step: float(learning_rate_schedule(config, per_epoch, num_steps)(step))


def test_published_step_schedule():
    """240 epochs of 100 steps: divided by 10 after epochs 150, 180 and 210."""
    rate = schedule(24_000, 100)
    for step, expected in [(0, 0.05), (14_999, 0.05), (15_000, 0.005), (18_000, 5e-4), (20_999, 5e-4), (21_000, 5e-5)]:
        np.testing.assert_allclose(rate(step), expected, rtol=1e-6)


def test_warm_up_keeps_the_boundaries_of_the_schedule():
    rate = schedule(1000, 100, warmup_epochs=2.0, lr_boundaries=(0.5,))
    np.testing.assert_allclose([rate(s) for s in (0, 100, 200, 499, 500, 999)], [0, 0.025, 0.05, 0.05, 0.005, 0.005])


def test_cosine_and_constant():
    rate = schedule(1000, 100, lr_schedule="cosine", learning_rate=0.2)
    np.testing.assert_allclose([rate(s) for s in (0, 500, 1000)], [0.2, 0.1, 0.0], atol=1e-7)
    rate = schedule(1000, 100, lr_schedule="constant", warmup_epochs=1.0, learning_rate=0.2)
    np.testing.assert_allclose([rate(s) for s in (50, 100, 999)], [0.1, 0.2, 0.2])


def test_warm_up_then_cosine():
    """The cosine takes what the warm-up has left of the run; epochs need not be of whole steps."""
    rate = schedule(1000, 66.6, lr_schedule="cosine", learning_rate=0.2, warmup_epochs=3.0)
    np.testing.assert_allclose([rate(s) for s in (0, 100, 200, 600, 1000)], [0.0, 0.1, 0.2, 0.1, 0.0], atol=1e-7)


def test_another_decay():
    rate = schedule(1000, 100, lr_decay=0.5, lr_boundaries=(0.3, 0.6), learning_rate=0.8)
    np.testing.assert_allclose([rate(s) for s in (299, 300, 599, 600)], [0.8, 0.4, 0.4, 0.2], rtol=1e-6)


def test_cosine_and_linear_end_at_the_floor():
    fields = {"lr_floor": 0.1, "learning_rate": 0.2, "warmup_epochs": 2.0}
    rate = schedule(1000, 100, lr_schedule="cosine", **fields)
    np.testing.assert_allclose([rate(s) for s in (100, 200, 600, 1000)], [0.1, 0.2, 0.11, 0.02], rtol=1e-5)
    rate = schedule(1000, 100, lr_schedule="linear", **fields)
    np.testing.assert_allclose([rate(s) for s in (100, 200, 600, 1000)], [0.1, 0.2, 0.11, 0.02], rtol=1e-5)
    assert schedule(1000, 100, lr_schedule="linear")(1000) == 0


def test_a_cosine_that_begins_anew():
    rate = schedule(1000, 100, lr_schedule="restarts", lr_restarts=(0.2, 0.6), learning_rate=0.2, warmup_epochs=1.0)
    steps = {50: 0.1, 100: 0.2, 150: 0.1, 200: 0.2, 400: 0.1, 600: 0.2, 800: 0.1, 1000: 0.0}
    np.testing.assert_allclose([rate(s) for s in steps], list(steps.values()), atol=1e-6)
    assert rate(199) < 1e-3 and rate(599) < 1e-3
    once, cosine = (schedule(1000, 100, lr_schedule=name, lr_restarts=()) for name in ("restarts", "cosine"))
    np.testing.assert_allclose([once(s) for s in range(0, 1001, 50)], [cosine(s) for s in range(0, 1001, 50)])


def test_one_cycle_is_pytorchs():
    """But for the end of its phases, which PyTorch puts a step earlier."""
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.2, total_steps=1000)
    rate = schedule(1000, 100, lr_schedule="one_cycle", learning_rate=0.2)
    for step in range(1000):
        if step % 37 == 0:
            assert abs(rate(step) - theirs.get_last_lr()[0]) < 1e-3
        optimizer.step()
        if step < 999:
            theirs.step()
    np.testing.assert_allclose([rate(s) for s in (0, 300, 1000)], [0.008, 0.2, 8e-7], rtol=1e-3)
    assert np.isfinite([schedule(1, 1, lr_schedule="one_cycle")(s) for s in (0, 1)]).all()


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"lr_floor": 1.0, "lr_schedule": "cosine"}, r"config.lr_floor=1.0: must be a share .* in \[0, 1\)"),
        (
            {"lr_floor": 0.1},
            "config.lr_floor=0.1: config.lr_schedule='step' has none; accepted is 0, or the schedules cos",
        ),
        ({"lr_restarts": (0.5, 0.2)}, "config.lr_restarts=.*increasing fractions"),
        (
            {"lr_schedule": "restarts", "warmup_epochs": 0.5, "pretrain_epochs": 9},
            "warmup_epochs=0.5: must be less than 0.5",
        ),
        ({"lr_schedule": "one_cycle", "warmup_epochs": 0.5}, "config.lr_schedule='one_cycle' has a warm-up of its own"),
    ],
)
def test_what_does_not_go_together_is_refused(fields, text, config):
    config.update(fields)
    with pytest.raises(UserError, match=text):
        resolve(config, 1)


def test_schedules_in_words():
    config = default()
    told = {
        "step": "times 0.1 at steps 62, 75, 88",
        "cosine": "cosine to 0",
        "linear": "linear to 0",
        "restarts": "cosine to 0, anew at steps 25, 50, 75",
        "one_cycle": "at most, one cycle with its peak at step 30",
        "constant": "constant",
    }
    for config.lr_schedule, text in told.items():
        assert described(config, 100) == text
    config.lr_schedule, config.lr_floor, config.warmup_epochs = "cosine", 0.01, 5.0
    assert described(config, 100) == "warm-up over 5.0 epochs, then cosine to 0.01 of it"
