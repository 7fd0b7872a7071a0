"""Image files to classes: the images and the probabilities are those of evaluation."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from orc_jax import predict, training
from orc_jax.config import resolve
from orc_jax.deploy import predict as predicting
from orc_jax.deploy.ensemble import load_ensemble
from orc_jax.deploy.export import export_member
from orc_jax.deploy.member import load_member
from orc_jax.errors import UserError
from orc_jax.workdir import metrics, record
from tests.deploy.members import diverge


def predictions(monkeypatch, capsys, *arguments, status=0):
    """What the command prints to stdout, line by line, and to stderr."""
    monkeypatch.setattr(sys, "argv", ["predict", *map(str, arguments)])
    if status:
        with pytest.raises(SystemExit) as caught:
            predict.main()
        assert caught.value.code == status
    else:
        predict.main()
    captured = capsys.readouterr()
    return captured.out.splitlines(), captured.err


def figures(lines, truth):
    """Top-1 and loss of predictions that tell all classes."""
    results = [json.loads(line) for line in lines]
    right = [result["classes"][0]["name"] == truth[result["file"]] for result in results]
    told = [{row["name"]: row["probability"] for row in result["classes"]} for result in results]
    losses = [-np.log(row[truth[result["file"]]]) for row, result in zip(told, results, strict=True)]
    return np.mean(right), np.mean(losses)


@pytest.fixture
def small(config):
    """Two tiny networks, trained by labels for one epoch."""
    config.method, config.teacher, config.assistants, config.student = "independent", "tiny_a", "", "tiny_b"
    config.num_networks, config.num_epochs, config.warmup_epochs = 2, 1, 0.0
    return config


def test_files_of_a_set_in_memory(small, toy, toy_set, console, tmp_path, monkeypatch, capsys):
    """As PNG, the images keep their pixels; more of them than fit a batch, and every member."""
    monkeypatch.setattr(predicting, "BATCH", 16)
    training.train(resolve(small), tmp_path / "run", console)
    truth = {}
    for i, (image, label) in enumerate(zip(toy.test.images, toy.test.labels, strict=True)):
        path = tmp_path / f"{i}.png"
        Image.fromarray(image[..., 0]).save(path)
        truth[str(path)] = toy.class_names[label]
    last = metrics.read(tmp_path / "run")[-1]
    for name in ("0_tiny_a", "1_tiny_b", "ensemble"):
        lines, _ = predictions(monkeypatch, capsys, "--workdir", tmp_path / "run", "--member", name, "--json", *truth)
        assert [json.loads(line)["file"] for line in lines] == list(truth)
        assert {(row["member"], row["step"]) for row in map(json.loads, lines)} == {(name, last["step"])}
        top1, loss = figures(lines, truth)
        np.testing.assert_allclose([top1, loss], [last[f"eval/top1/{name}"], last[f"eval/loss/{name}"]], rtol=1e-4)
    refuses_what_has_diverged(tmp_path / "run", last["step"], tmp_path / "out")


def refuses_what_has_diverged(run, step, out):
    """A member whose weights are not numbers is neither predicted with nor exported, nor is a pool that it is in."""
    diverge(run, 0, step + 1)
    text = f"0_tiny_a of step {step + 1} in .* holds weights that are not finite: .* Another --checkpoint or --member"
    with pytest.raises(UserError, match=text):
        load_member(run, "0", "latest")
    with pytest.raises(UserError, match=text):
        export_member(run, "0", "latest", "safetensors", out)
    with pytest.raises(UserError, match=text):
        load_ensemble(run, "latest")
    assert not out.exists()
    assert load_member(run, "1", "latest").step == step + 1 and load_member(run, "0", str(step)).step == step


def test_an_ensemble_of_the_methods_own(small, toy, toy_set, console, tmp_path):
    """Not the mean of the members' probabilities."""
    small.method, small.teacher = "pcl", "tiny_b"
    training.train(resolve(small), tmp_path, console)
    probabilities = np.asarray(load_ensemble(tmp_path, "latest")(toy.test.images))
    last = metrics.read(tmp_path)[-1]
    loss = -np.log(probabilities[np.arange(30), toy.test.labels]).mean()
    np.testing.assert_allclose(loss, last["eval/loss/ensemble"], rtol=1e-4)
    assert (probabilities.argmax(1) == toy.test.labels).mean() == pytest.approx(last["eval/top1/ensemble"])


def test_files_of_a_streamed_set(small, console, tmp_path, monkeypatch, capsys):
    """Of many sizes and kinds: short side and centre crop."""
    rng = np.random.default_rng(0)
    truth = {}
    for split, count in (("train", 10), ("val", 6)):
        for name in ("blue", "green", "red"):
            (tmp_path / "photos" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (*rng.integers(12, 30, 2), 3), dtype=np.uint8)
                path = tmp_path / "photos" / split / name / f"{i}.{('png', 'jpg', 'webp')[i % 3]}"
                Image.fromarray(pixels).save(path)
                if split == "val":
                    truth[str(path)] = name
    small.dataset, small.data_dir, small.eval_split = "folder", str(tmp_path / "photos"), "val"
    small.batch_size = 8
    small.stream.update(image_size=8, num_workers=0)
    training.train(resolve(small), tmp_path / "run", console)
    lines, _ = predictions(monkeypatch, capsys, "--workdir", tmp_path / "run", "--json", *truth)
    last = metrics.read(tmp_path / "run")[-1]
    np.testing.assert_allclose(
        figures(lines, truth), [last["eval/top1/1_tiny_b"], last["eval/loss/1_tiny_b"]], rtol=1e-4
    )
    # a run from before `eval_crop` was written down
    description = json.loads((tmp_path / "run" / record.FILE).read_text())
    assert description.pop("eval_crop") == 0.875
    (tmp_path / "run" / record.FILE).write_text(json.dumps(description))
    assert load_member(tmp_path / "run", "target", "latest").crop == 0.875
    # beside good files, bad ones are named and the good ones predicted
    first, second = list(truth)[:2]
    (tmp_path / "note.jpg").write_text("no image")
    (tmp_path / "cut.png").write_bytes((tmp_path / "photos" / "val" / "red" / "0.png").read_bytes()[:200])
    bad = [tmp_path / "note.jpg", tmp_path / "cut.png", tmp_path / "gone.png", tmp_path]
    lines, error = predictions(
        monkeypatch, capsys, "--workdir", tmp_path / "run", "--top", 1, first, *bad, second, status=2
    )
    assert [line for line in lines if not line.startswith("  ")] == [first, second] and len(lines) == 4
    who, _, error = error.partition("\n")
    assert who == "1_tiny_b of step 3 answers" and error.startswith("orc_jax: 4 of 6 files cannot be used:\n")
    for path, reason in zip(bad, ("not an image of a known format", "", "No such file", "Is a directory"), strict=True):
        assert f"{path}: {reason}" in error
    assert error.count("\n") == 5


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--workdir", "nowhere", "x.png"], "--workdir=nowhere holds no run"),
        (["--workdir", "nowhere", "--top", "0", "x.png"], "--top=0: must be at least 1"),
    ],
)
def test_mistakes_are_one_message(monkeypatch, capsys, arguments, text):
    lines, error = predictions(monkeypatch, capsys, *arguments, status=2)
    assert not lines and error.startswith("orc_jax: ") and error.count("\n") == 1 and text in error
