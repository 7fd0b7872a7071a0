"""What a person sees of a run: tables, lines and warnings, as text."""

import json

import numpy as np
import pytest

from orc_jax import display
from orc_jax.testing import build_run
from orc_jax.workdir import metrics
from tests.helpers import printed

NAMES = ("0_tiny_a", "1_tiny_b", "2_tiny_a", "3_tiny_b")


def shown(console, *what):
    """What is printed of some tables, in one line."""
    for one in what:
        console.print(one)
    return printed(console)


def test_the_pool_of_a_run(config, toy, console):
    run = build_run(config, toy, 4)
    text = shown(console, display.pool_table(run))
    assert text.startswith("orc on toy, 11 steps of 16, 4 x cpu member role parameters")
    # By hand: conv1 1*6*9, bn1 2*6, conv2 6*8*9, linear 8*3+3; 1*4*9, 2*4, 4*8*9, 8*3+3.
    for row in ("0_tiny_a pivot teacher 525", "1_tiny_b assistant 359", "3_tiny_b target student 359"):
        assert row in text
    assert " all " not in text


def test_a_skewed_set_is_told(config, toy):
    """From more than three times as many of one class as of another on; a class without images counts."""
    run = build_run(config, toy)
    assert display.about_classes(run) == []
    for counts, text in (
        ((45, 15, 30), ""),
        ((46, 15, 29), "15 training images of middle, 46 of top"),
        ((60, 30, 0), "0"),
    ):
        labels = np.repeat(np.arange(3, dtype=np.int32), counts)
        skewed = run._replace(dataset=toy._replace(train=toy.train._replace(labels=labels)))
        lines = display.about_classes(skewed)
        assert bool(lines) == bool(text) and all(text in line for line in lines)
    assert "config.balanced_sampling=True takes each class as often" in lines[0]
    config.balanced_sampling, config.num_networks, config.method = True, 1, "independent"
    run = build_run(config, skewed.dataset)
    assert "comes as often in an epoch (config.balanced_sampling)" in display.about_classes(run)[0]
    assert display.about_classes(run._replace(dataset=toy._replace(train=object()))) == [], (
        "a stream that has no labels"
    )


def test_an_evaluation_of_the_training_split_is_told(config, toy):
    assert display.about_splits(build_run(config, toy)) == []
    config.eval_splits = "test,train"
    (line,) = display.about_splits(build_run(config, toy))
    assert line.startswith("note: config.train_split='train' is evaluated on as well")


def test_costs_of_a_pool_are_columns(config, toy, console):
    costs = {"cost": {"tiny_a": "1.5", "tiny_b": "2.5"}}
    text = shown(console, display.pool_table(build_run(config, toy), "the title", costs))
    assert text.startswith("the title member role parameters cost")
    assert "2_tiny_a assistant 525 1.5" in text and "3_tiny_b target student 359 2.5" in text
    assert f"all {2 * 525 + 2 * 359:,}" in text


@pytest.mark.parametrize(
    ("network", "size", "text"),
    [
        ("resnet8", 96, None),
        ("resnet8", 97, "note: resnet8 is made for images of 32x32 pixels, and these are of 97; made for such are res"),
        ("resnet18", 48, None),
        ("resnet18", 47, "note: resnet18 is made for images of 224x224 pixels, and these are of 47; made for such are"),
        ("tiny_a", 500, None),
    ],
)
def test_networks_for_images_of_another_size(network, size, text, config, toy):
    """Told once for each; of a network of one's own nobody knows."""
    config.teacher = config.student = network
    config.assistants, config.num_networks = "copies", 3
    dataset = toy._replace(image_shape=(8, size, 1))
    lines = display.unusual_sizes(build_run(config, dataset))
    assert [line[: len(text)] for line in lines] == [text] if text else lines == []


def row(epoch, top1, **promoted):
    """An epoch of the pool; `top1` of its members, None of an epoch without an evaluation."""
    result = {"step": epoch, "epoch": epoch}
    result |= {metrics.train("promoted", name): promoted.get(f"p{i}", 0.0) for i, name in enumerate(NAMES)}
    result |= {metrics.train("feedback_share", name): 0.125 for name in NAMES[1:]}
    result |= {metrics.train("loss", name): i + 0.1234 for i, name in enumerate(NAMES)}
    result |= {metrics.train("accuracy", name): i / 8 for i, name in enumerate(NAMES)}
    if top1:
        members = [{"name": n, "top1": t, "top5": t + 0.05, "loss": 1.0} for n, t in zip(NAMES, top1, strict=True)]
        ensemble = {"top1": max(top1) + 0.01, "top5": 1.0, "loss": 0.5}
        result |= metrics.of_evaluation({"members": members, "ensemble": ensemble})
    return result


def test_a_line_for_each_epoch(config, toy):
    run = build_run(config, toy)
    line = display.epoch_line(run, "orc", row(1, None), {metrics.SPEED: 123.4})
    assert line == "orc epoch 1/2  3_tiny_b: loss 3.123  accuracy 37.50%  123 images/s"
    line = display.epoch_line(run, "orc", row(2, [0.1, 0.2, 0.3, 0.4]), {})
    assert line == "orc epoch 2/2  3_tiny_b: loss 3.123  accuracy 37.50%  test 40.00%  ensemble 41.00%"
    told = row(1, None) | {"train/objective/3_tiny_b": 0.01234}
    line = display.epoch_line(run, "flow", told, {})
    assert line == "flow epoch 1/2  3_tiny_b: loss 3.123  accuracy 37.50%  objective 0.0123"
    config.method, config.num_networks, config.assistants, config.student = "independent", 1, "", "tiny_a"
    line = display.epoch_line(build_run(config, toy), "pivot", row(2, [0.1, 0.2, 0.3, 0.4]), {})
    assert line == "pivot epoch 2/2  0_tiny_a: loss 0.123  accuracy 0.00%  test 10.00%"


def test_the_summary_of_a_run(config, toy, console, tmp_path):
    """The best epoch is the target student's, though others are better in others; shares are means over the run."""
    rows = [
        row(1, [0.1, 0.2, 0.9, 0.3], p1=1.0),
        row(2, [0.2, 0.1, 0.2, 0.6], p1=0.5, p3=0.5),
        row(3, None, p3=1.0),
        row(4, [0.7, 0.8, 0.1, 0.5], p2=0.5, p3=0.5),
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    text = shown(console, display.summary(build_run(config, toy), tmp_path))
    assert text.startswith("toy test: last epoch 4, best epoch 2 (of the target student) member role top-1 top-5")
    assert "0_tiny_a pivot teacher 70.00% 75.00% 20.00% 0.0%" in text
    assert "1_tiny_b assistant 80.00% 85.00% 10.00% 37.5%" in text
    assert "3_tiny_b target student 50.00% 55.00% 60.00% 50.0%" in text
    assert "ensemble all members 81.00% 100.00% 61.00%" in text and "mean all members" not in text


def test_the_result_of_an_evaluation(console):
    result = {
        "dataset": "toy",
        "split": "test",
        "examples": 30,
        "step": 11,
        "members": [{"name": "0_a", "role": "pupil", "top1": 0.5, "top5": 0.75, "loss": 1.23456}],
        "ensemble": {"top1": 0.25, "top5": 1.0, "loss": 2.0},
    }
    text = shown(console, display.evaluation_table(result, "best"))
    assert text.startswith("toy test: 30 examples, checkpoint of step 11 (best) member role top-1 top-5 loss")
    assert text.endswith("0_a pupil 50.00% 75.00% 1.2346 ensemble all members 25.00% 100.00% 2.0000")
    mean = {"mean": {"top1": 0.125, "top5": 0.5, "loss": 3.0}}
    assert "mean all members 12.50% 50.00% 3.0000 ensemble all" in shown(
        console, display.evaluation_table(result | mean, "5")
    )
