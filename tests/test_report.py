"""The report: its measures against numbers derived by hand, and the page of runs in every state."""

import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from orc_jax import checkpoint, logs, report, train
from orc_jax import config as configs
from orc_jax.data import sets
from orc_jax.data.batches import batch_indices
from orc_jax.errors import UserError
from orc_jax.reporting import collect, figures, measures, network_sections, page
from orc_jax.run import abstract_state
from tests.helpers import stepper_of

pytestmark = pytest.mark.usefixtures("toy_set")

TITLES = [
    *("Results", "Learning curves", "Roles over time", "Accuracy by class", "Pivot teacher on hard samples"),
    *("Agreement", "Logit correlations", "Calibration", "Features", "Feedback samples", "Speed", "Config"),
]


def test_probabilities_losses_and_predictions_leave_out_what_is_not_finite():
    logits = np.log(np.array([[[1.0, 3.0]], [[3.0, 1.0]], [[1.0, 1.0]]]))  # three members, one sample
    np.testing.assert_allclose(np.exp(measures.log_softmax(logits))[:2, 0], [[0.25, 0.75], [0.75, 0.25]])
    np.testing.assert_allclose(measures.losses(logits, np.array([1]))[:, 0], -np.log([0.75, 0.25, 0.5]))
    broken = logits.copy()
    broken[2, 0, 0] = np.nan
    assert measures.predictions(broken)[:, 0].tolist() == [1, 0, measures.NOTHING]
    np.testing.assert_allclose(measures.mean_probability(broken), [[0.5, 0.5]])
    np.testing.assert_allclose(measures.mean_probability(broken[[0, 2]]), [[0.25, 0.75]])


def test_per_class_accuracy():
    labels = np.array([0, 0, 0, 2])
    predicted = np.array([[0, 1, 0, 2], [2, 2, 2, 0]])
    np.testing.assert_allclose(measures.per_class_accuracy(predicted, labels, 3), [[2 / 3, np.nan, 1], [0, np.nan, 0]])


def test_hardest_samples():
    losses = np.array([[1.0, 5.0, 2.0, 0.0, 3.0], [1.0, 0.0, 4.0, 0.0, 2.0], [np.nan] * 5])  # means 1, 2.5, 3, 0, 2.5
    assert measures.hardest(losses, 0.2).tolist() == [2]
    assert measures.hardest(losses, 0.4).tolist() == [1, 2]
    assert measures.hardest(losses, 0.01).tolist() == [2]


def test_agreement():
    nothing = measures.NOTHING
    predicted = np.array([[0, 1, 2, 3], [0, 1, 0, 0], [0, nothing, nothing, 3]])
    expected = [[1, 0.5, 0.5], [0.5, 1, 0.25], [0.5, 0.25, 0.5]]
    np.testing.assert_allclose(measures.agreement(predicted), expected)


def test_correlation_of_logits():
    logits = np.array([[1.0, -1.0, 1.0, 7.0], [2.0, -2.0, 0.0, 7.0], [3.0, -3.0, 1.0, 7.0]])
    expected = [[1, -1, 0, 0], [-1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]  # the last class never changes
    np.testing.assert_allclose(measures.correlation(logits), expected, atol=1e-12)


def test_calibration():
    """Five bins: 0.5 and 0.6 fall in (0.4, 0.6], 0.8 in (0.6, 0.8], 1.0 in the last."""
    top = np.array([0.5, 0.6, 0.8, 1.0])
    probs = np.stack([top, 1 - top], axis=1)
    bins = measures.calibration(probs, np.array([0, 1, 0, 0]), num_bins=5)
    np.testing.assert_allclose(bins.confidence, [0.55, 0.8, 1.0])
    np.testing.assert_allclose(bins.accuracy, [0.5, 1.0, 1.0])
    assert bins.counts.tolist() == [2, 1, 1]
    np.testing.assert_allclose(bins.ece, (2 * 0.05 + 0.2 + 0.0) / 4)


def test_some_examples_are_the_same_every_time_and_of_every_kind(toy):
    class Records:
        read = name = staticmethod(lambda i: i)

        def __len__(self):
            return 30

    assert collect.some(toy.test, 30) is toy.test
    few, again = (collect.some(toy.test, 9) for _ in range(2))
    np.testing.assert_array_equal(few.images, again.images)
    assert len(few.labels) == 9 and len(np.unique(few.images.reshape(9, -1), axis=0)) == 9
    assert set(few.labels) == {0, 1, 2}
    records = collect.some(Records(), 9)
    rows = [records.read(i) for i in range(len(records))]
    assert rows == sorted(set(rows)) and [records.name(i) for i in range(9)] == rows and max(rows) > 9


def test_runs_are_called_by_as_much_of_their_paths_as_tells_them_apart():
    assert collect.labels_of([Path("/a/orc/seed_0")]) == ["seed_0"]
    assert collect.labels_of([Path("/a/orc/seed_0"), Path("/a/kd/seed_0")]) == ["orc/seed_0", "kd/seed_0"]
    with pytest.raises(UserError, match="the same folder is given twice"):
        collect.labels_of([Path("/a/b"), Path("/a/b")])


class Reader(HTMLParser):
    """Checks that tags are balanced, ids unique and anchors theirs, that nothing comes from outside; keeps the text."""

    VOID = ("meta", "br", "img", "link", "input")

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.links, self.titles, self.cells, self.text = [], [], [], [], [], ""
        self.feed(text)
        self.close()
        assert not self.open
        assert len(self.ids) == len(set(self.ids))
        assert set(self.links) <= set(self.ids)

    def handle_starttag(self, tag, attributes):
        if tag not in self.VOID:
            self.open.append(tag)
        attributes = dict(attributes)
        self.ids += [attributes["id"]] if "id" in attributes else []
        for name in ("src", "href", "xlink:href", "srcset", "data"):
            value = attributes.get(name, "#")
            assert value.startswith(("#", "data:image/png;base64,")), value[:80]
            self.links += [value[1:]] if value.startswith("#") and value != "#" else []
        assert tag not in ("script", "link", "iframe")

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.titles.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.cells.append(data)
        if self.open and self.open[-1] != "style":
            self.text += data


def read(path):
    """The page, checked."""
    text = path.read_text()
    assert not re.search(r"url\(\s*['\"]?(?!#)|@import", text)
    return Reader(text)


@pytest.fixture
def not_drawn(monkeypatch):
    """Figures are made, but not turned into files, which takes the most time of a report."""
    monkeypatch.setattr(figures, "as_png", lambda figure: b"")
    monkeypatch.setattr(figures, "as_svg", lambda figure, name, description: f'<svg id="{name}"></svg>')


def cells_of_logs(workdir):
    """What the table must show of every member and the ensemble, at the last and at the best epoch."""
    rows = logs.read_rows(workdir)
    names = [name.removeprefix("eval/top1/") for name in rows[0] if name.startswith("eval/top1/")]
    target = f"eval/top1/{names[-2]}"  # the ensemble is the last
    best = max(rows, key=lambda row: row[target])
    for name in names:
        for row in (rows[-1], best):
            yield from (f"{row[f'eval/{metric}/{name}']:.2%}" for metric in ("top1", "top5"))
            yield f"{row[f'eval/loss/{name}']:.4f}"


def contents(workdir):
    """All files of a run but the report."""
    files = (path for path in workdir.rglob("*") if path.is_file() and workdir / "report" not in path.parents)
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_the_page_of_a_finished_run(finished, tmp_path):
    workdir = shutil.copytree(finished, tmp_path / "run")
    before = contents(workdir)
    path = report.report([workdir], None, "latest", 10_000, pytest.fail)
    assert path == workdir / "report" / "report.html"
    assert contents(workdir) == before
    shown = read(path)
    assert [title for title in shown.titles if title in TITLES] == TITLES and "Left out" not in shown.titles
    cells = list(cells_of_logs(workdir))
    start = shown.cells.index(cells[0])
    table = shown.cells[start : shown.cells.index("of all iterations")]
    assert [cell for cell in table if "%" in cell or re.fullmatch(r"\d+\.\d{4}", cell)] == cells
    assert {"0_tiny_a", "pivot teacher", "target student", "ensemble", "all members"} <= set(shown.cells)
    params = jax.tree.leaves(collect.read_record(workdir, "run").parameters)
    assert f"{params[-1]:,}" in shown.cells and params[0] == params[2] > params[1]
    assert "num_epochs" in shown.cells and "learning_rate" in shown.cells  # differs; all fields
    pictures = {file.stem for file in path.parent.glob("*.png")}
    expected = "eval-top1 train-loss train-accuracy learning-rate roles classes pivot agreement correlations"
    assert pictures >= {*expected.split(), "calibration", "features-0", "features-3", "speed"}
    assert any(name.startswith("feedback-") for name in pictures)
    for file in path.parent.glob("*.png"):
        with Image.open(file) as image:
            assert image.width > 500 and len(image.convert("L").getcolors()) > 10


def test_what_the_networks_make_of_the_images_is_what_the_log_says(finished):
    record = collect.read_record(finished, "run")
    networks = collect.restore(record, collect.load(record, pytest.fail), "latest")
    predicted = collect.predict(networks, 10_000)
    accuracy = (measures.predictions(predicted.logits) == predicted.labels).mean(1)
    losses = measures.losses(predicted.logits, predicted.labels).mean(1)
    last = record.rows[-1]
    names = record.pool.member_names
    np.testing.assert_allclose(accuracy, [last[f"eval/top1/{name}"] for name in names], rtol=1e-6)
    np.testing.assert_allclose(losses, [last[f"eval/loss/{name}"] for name in names], rtol=1e-4)
    joint = (predicted.ensemble.argmax(-1) == predicted.labels).mean()
    np.testing.assert_allclose(joint, last["eval/top1/ensemble"], rtol=1e-6)
    assert [x.shape for x in predicted.features] == [(30, 8), (30, 8)]
    # The pivot teacher as it was: what its own run has logged last. It has learnt since.
    before = collect.pivot_before(networks, finished, 10_000)
    of_stage = logs.read_rows(finished / "pivot")[-1]
    loss = measures.losses(before, predicted.labels).mean()
    np.testing.assert_allclose(loss, of_stage["eval/loss/0_tiny_a"], rtol=1e-4)
    assert not np.allclose(before, predicted.logits[0])
    few = collect.predict(networks, 7)
    assert few.labels.shape == (7,) and few.logits.shape == (4, 7, 3)


def test_the_feedback_samples_are_those_of_the_next_iteration(finished, config, toy):
    """Shares and losses as the training step itself has them, on augmented images."""
    record = collect.read_record(finished, "run")
    networks = collect.restore(record, collect.load(record, pytest.fail), "5")
    handed = collect.feedback(networks)
    stepper = stepper_of(config, toy)
    with checkpoint.open_manager(finished, create=False) as manager:
        state = checkpoint.restore(manager, 5, abstract_state(stepper.run), stepper.run.sharding)
    after = stepper(state, batch_indices(config.seed, 5, 16, 90))
    np.testing.assert_allclose(handed.shares / 16, after.totals["feedback_share"][1:], rtol=1e-6)
    np.testing.assert_allclose(handed.losses, after.totals["loss"][1:], rtol=1e-4)
    np.testing.assert_array_equal(handed.images, toy.train.images[batch_indices(config.seed, 5, 16, 90)])
    assert [len(rows) for rows in handed.handed_back] == handed.shares.tolist()
    assert handed.students == (1, 2, 3)


def test_the_page_during_training(finished, tmp_path, not_drawn):
    """Before anything is logged; after an epoch, before its checkpoint, with a row that is half written."""
    workdir = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(workdir / checkpoint.CHECKPOINTS)
    (workdir / logs.METRICS).write_text("")
    (workdir / logs.TIMING).unlink()
    shown = read(report.report([workdir], tmp_path / "out", "latest", 100, pytest.fail))
    assert "There is no checkpoint yet." in shown.text and "pivot/ has come to epoch 1" in shown.text
    assert [title for title in shown.titles if title in TITLES] == ["Results", "Config"]
    assert not (workdir / "report").exists()
    # A first row, and the beginning of a second.
    row = {"step": 5, "epoch": 1, "learning_rate": 0.05}
    for name in ("0_tiny_a", "1_tiny_b", "2_tiny_a", "3_tiny_b", "ensemble"):
        row |= {f"eval/top1/{name}": 0.5, f"eval/top5/{name}": 1.0, f"eval/loss/{name}": float("nan")}
        row |= {f"train/{metric}/{name}": 0.25 for metric in ("loss", "accuracy", "promoted")}
    (workdir / logs.METRICS).write_text(json.dumps(row) + '\n{"step": 11, "ep')
    shown = read(report.report([workdir], tmp_path / "out", "latest", 100, pytest.fail))
    assert [title for title in shown.titles if title in TITLES] == [*TITLES[:3], "Config"]
    assert shown.cells.count("50.00%") == 10 and "1 / 2" in shown.text


def test_the_comparison_of_two_runs(finished, tmp_path, not_drawn):
    """With one of a pool of one, and of another method: what that has not is told and left out."""
    workdirs = [finished, finished / "pivot"]
    path = report.report(workdirs, tmp_path / "out", "best", 100, pytest.fail)
    shown = read(path)
    assert shown.titles[1:3] == ["Comparison", "Target students"]
    start = shown.cells.index("run")
    rows = np.array(shown.cells[start : start + 39]).reshape(3, 13)
    assert rows[:, 0].tolist() == ["run", "run", "pivot"] and rows[1:, 2].tolist() == ["3_tiny_b", "0_tiny_a"]
    for row, workdir in zip(rows[1:], workdirs, strict=True):
        last = logs.read_rows(workdir)[-1]
        assert row[4:8].tolist() == [
            str(last["epoch"]),
            f"{last[f'eval/top1/{row[2]}']:.2%}",
            f"{last[f'eval/top5/{row[2]}']:.2%}",
            f"{last[f'eval/loss/{row[2]}']:.4f}",
        ]
    assert "It takes two members to agree." in shown.text and "In independent no member changes its role." in shown.text
    assert {"runs-top1.png", "run1-pivot.png", "run2-classes.png"} <= {file.name for file in path.parent.iterdir()}


@pytest.mark.parametrize("method", ["pcl", "switokd"])
def test_methods_with_heads_and_with_expert_mode(method, config, console, tmp_path, not_drawn):
    config.method, config.num_networks, config.num_epochs, config.crop_padding = method, 3, 1, 1
    config.teacher = config.assistants = config.student = "tiny_b"
    train.train(config, tmp_path / "run", console)
    shown = read(report.report([tmp_path / "run"], None, "latest", 100, pytest.fail))
    assert {"Agreement", "Calibration", "Left out"} <= set(shown.titles)
    assert ("Expert mode over time" in shown.titles) == (method == "switokd")
    assert ("The ensemble is that of pcl." in shown.text) == (method == "pcl")
    record = collect.read_record(tmp_path / "run", "run")
    predicted = collect.predict(collect.restore(record, collect.load(record, pytest.fail), "latest"), 100)
    joint = (predicted.ensemble.argmax(-1) == predicted.labels).mean()
    np.testing.assert_allclose(joint, record.rows[-1]["eval/top1/ensemble"], rtol=1e-6)


def test_a_streamed_run(config, console, tmp_path, not_drawn):
    rng = np.random.default_rng(0)
    for split, count in (("train", 10), ("val", 5)):
        for channel, name in enumerate(("red", "green <&>")):
            (tmp_path / "photos" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 100, (9, 12, 3), dtype=np.uint8)
                pixels[..., channel] += 120
                Image.fromarray(pixels).save(tmp_path / "photos" / split / name / f"{i}.png")
    config.dataset, config.data_dir, config.eval_split = "folder", str(tmp_path / "photos"), "val"
    config.num_epochs, config.pretrain_epochs, config.batch_size = 1, 0, 8
    config.stream.update(image_size=8, num_workers=0)
    config.num_networks, config.assistants = 3, "tiny_b"
    train.train(config, tmp_path / "run", console)
    # The images are elsewhere now: the logs tell what they can, and --data_dir finds them.
    (tmp_path / "photos").rename(tmp_path / "moved")
    warnings = []
    shown = read(report.report([tmp_path / "run"], None, "latest", 100, warnings.append))
    assert "Features" not in shown.titles and "Results" in shown.titles
    assert len(warnings) == 1 and "config.data_dir" in warnings[0]
    moved = str(tmp_path / "moved")
    shown = read(report.report([tmp_path / "run"], None, "latest", 100, pytest.fail, data_dir=moved))
    assert {"Features", "Feedback samples"} <= set(shown.titles) and "10 evaluation samples" in shown.text
    assert "Pivot teacher on hard samples" not in shown.titles and "is not to be had" in shown.text


def test_a_checkpoint_that_training_replaces_meanwhile_is_looked_up_anew(finished, tmp_path, monkeypatch):
    workdir = shutil.copytree(finished, tmp_path / "run")
    record = collect.read_record(workdir, "run")
    restore = checkpoint.restore_networks

    def replaced(manager, step, *others):
        if step == 11:
            shutil.rmtree(workdir / checkpoint.CHECKPOINTS / "11")
        return restore(manager, step, *others)

    monkeypatch.setattr(checkpoint, "restore_networks", replaced)
    assert collect.restore(record, collect.load(record, pytest.fail), "latest").step == 5


def test_a_diverged_member_does_not_stop_the_report(finished):
    """Its logits are NaN: nothing is drawn of it, and the others are."""
    record = collect.read_record(finished, "run")
    networks = collect.restore(record, collect.load(record, pytest.fail), "latest")
    predicted = collect.predict(networks, 100)
    predicted.logits[0] = np.nan
    predicted.features[0][:] = np.nan
    assert network_sections.correlations(record, predicted).is_left_out
    assert [one.name for one in network_sections.features(record, predicted).drawn] == ["features-3"]
    assert "0_tiny_a" not in network_sections.calibration(record, predicted).text
    values = measures.agreement(measures.predictions(predicted.logits))
    assert values[0].max() == 0 and values[1, 1] == 1
    for make in (network_sections.classes, network_sections.agreement):
        assert make(record, predicted).drawn


def test_the_page_escapes_what_it_shows():
    table = page.table(["<x-1>&"], [["<x-2>&"], ["<x-3>&"]])
    section = page.Section("<x-4>&", "<x-5>&", table + page.details("<x-6>&", ""))
    left_out = page.Section("<x-7>&", "<x-8>&")
    part = page.Part("run1", "<x-9>&", "<x-10>&", (("<x-11>&", "<x-12>&"),), (section, left_out))
    text = page.page("<x-13>&", [part], "<x-14>&")
    assert "<x-" not in text
    assert {f"&lt;x-{i}&gt;&amp;" for i in range(1, 15)} == set(re.findall(r"&lt;x-\d+&gt;&amp;", text))
    Reader(text)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"workdirs": ["nowhere"]}, "holds no run: there is no config.json"),
        ({"which": "7"}, r"--checkpoint='7'.*Accepted: latest, best, or one of \[5, 11\]"),
        ({"max_examples": 0}, "--max_examples=0: must be at least 1"),
        ({"out": "file"}, "--out=.*file: cannot be written"),
    ],
)
def test_bad_input_is_answered_with_one_message(change, text, finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    arguments = {"workdirs": [finished], "out": "out", "which": "latest", "max_examples": 10} | change
    arguments["workdirs"], arguments["out"] = [Path(w) for w in arguments["workdirs"]], Path(arguments["out"])
    with pytest.raises(UserError, match=f"(?s){text}"):
        report.report(**arguments, warn=pytest.fail)


def test_the_command(finished, tmp_path, monkeypatch, capsys, not_drawn):
    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["report", *map(str, arguments)])
        report.main()
        return capsys.readouterr()

    with pytest.raises(SystemExit) as caught:
        command("--workdir", tmp_path / "nowhere")
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("orc_jax: --workdir=") and captured.err.count("\n") == 1 and not captured.out
    assert not (tmp_path / "nowhere").exists()
    out = command("--workdir", finished, "--out", tmp_path / "out", "--checkpoint", "best", "--max_examples", 12).out
    assert out == f"written to {tmp_path / 'out' / 'report.html'}\n"
    assert "12 evaluation samples" in read(tmp_path / "out" / "report.html").text


def test_a_field_that_came_after_the_run_has_its_default(finished, tmp_path):
    workdir = shutil.copytree(finished, tmp_path / "run")
    description = json.loads((workdir / "config.json").read_text())
    del description["config"]["remat"], description["config"]["orc"]["pivot_lr_multiplier"]
    description["config"]["gone"] = 1
    (workdir / "config.json").write_text(json.dumps(description))
    record = collect.read_record(workdir, "run")
    assert record.config.remat is False and record.config.orc.pivot_lr_multiplier == 0.1
    assert sets.load(record.config, pytest.fail).name == "toy"
    assert set(record.config) == set(configs.default())
