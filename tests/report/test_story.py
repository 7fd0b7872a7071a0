"""What a page on a run begins with: words that say what the log says, and facts, or that they are not known."""

import json
import shutil

import pytest

from orc_jax.report import collect, story
from orc_jax.report.write import write_report
from orc_jax.workdir import metrics, record
from tests.report.reading import Reader, read

pytestmark = pytest.mark.usefixtures("toy_set")
COLUMN = "eval/top1/3_tiny_b"


@pytest.fixture
def logged(finished, tmp_path):
    """A run that is alone in its folder, with the best epoch before the last."""
    workdir = shutil.copytree(finished, tmp_path / "runs" / "orc" / "seed_0")
    one = collect.read(workdir, "run")
    one.rows[0][COLUMN], one.rows[1][COLUMN] = 0.75, 0.5
    return one


def told(logged, workdirs=()):
    """The text of the opening, and its facts by name."""
    reader = Reader(f"<div>{story.opening(logged, workdirs)}</div>")
    return " ".join(reader.text.split()), dict(story.of_run(logged))


def put_alone(logged, workdir, top1, epoch=2, **fields):
    """A run of the same student alone, as far as the report reads it."""
    config = logged.record.config | {"method": "independent", "num_networks": 1, "assistants": "ladder"} | fields
    record.write(workdir, logged.record._replace(config=config, architectures=("tiny_b",)))
    row = {"step": 5, "epoch": epoch, "eval/top1/0_tiny_b": top1, "eval/top1/ensemble": top1}
    (workdir / metrics.METRICS).write_text(json.dumps(row) + "\n")


def test_what_came_of_it_in_words(logged):
    text, _ = told(logged)
    assert text.startswith(
        "The target student is 3_tiny_b, the last of 4 members that orc trains on toy. After the last epoch, 2 of 2, "
        "its top-1 on the split 'test' is 50.00%. Its best epoch was 1, with 75.00%: chosen on the same images, so an "
        "optimistic number. How much of its top-1 it owes to the pool is unknown"
    )
    logged.rows[1][COLUMN] = 0.8
    assert "is 80.00%. That is its best epoch, too." in told(logged)[0]
    text, _ = told(logged._replace(rows=logged.rows[:1]))
    assert "After the latest evaluated epoch, 1 of 2, its top-1" in text
    text, facts = told(logged._replace(rows=[], timing=[]))
    assert "It has not been evaluated yet." in text and "alone" not in text
    assert facts["Date"] == facts["Duration"] == "no epoch has ended yet"


def test_it_is_compared_with_the_same_student_alone_wherever_that_lies(logged, tmp_path):
    """Beside the run, in a comparison, in its folder, or on the same page; the same seed before another."""
    beside = logged.workdir.parent
    assert "alone" not in story.in_words(logged, ())
    put_alone(logged, beside / "seed_7", 0.46, seed=7)
    assert "The same student trained alone, with the same budget, has 46.00%" in story.in_words(logged, ())
    text, _ = told(logged)
    assert "The same student trained alone, with the same budget, has 46.00% after epoch 2 (" in text
    assert "seed_7, with the seed 7): in the pool it has 4.00 percentage points more. One run each" in text
    put_alone(logged, beside.parent / "independent" / "seed_0", 0.515)
    text, _ = told(logged)
    assert "independent/seed_0): in the pool it has 1.50 percentage points less. One" in text
    shutil.rmtree(beside.parent / "independent")
    put_alone(logged, logged.workdir / "alone", 0.5)
    assert "in the pool it has just as much. One run each" in told(logged)[0]
    shutil.rmtree(logged.workdir / "alone")
    put_alone(logged, tmp_path / "elsewhere" / "deep" / "down", 0.25)
    assert "4.00 percentage points" in told(logged)[0]
    assert "25.00 percentage points more" in told(logged, [logged.workdir, tmp_path / "elsewhere/deep/down"])[0]


@pytest.mark.parametrize(
    "change",
    [
        {"num_epochs": 3},
        {"learning_rate": 0.2},
        {"dataset": "digits"},
        {"flip": True},
        {"epoch": 1},
        {"method": "dml"},
        {"crop_padding": 1},
    ],
)
def test_another_budget_or_other_data_are_no_baseline(change, logged):
    put_alone(logged, logged.workdir.parent / "other", 0.25, **change)
    assert "is unknown: beside this run there is none" in told(logged)[0]
    (logged.workdir.parent / "other" / record.FILE).write_text("{")
    assert "is unknown" in told(logged)[0], "a damaged one neither"


def test_what_the_student_alone_may_have_otherwise():
    """Fields of the pool and of the methods, and those that have no influence."""
    assert {"log_to", "teacher", "pivot_checkpoint", "assistants", "seed"} <= story.NOT_ALONE
    assert not {"num_epochs", "batch_size", "dtype", "weight_decay"} & story.NOT_ALONE


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (
            "python -m orc_jax.main --config configs/x.py --resume=weights '--config.data_dir=a b'",
            "python -m orc_jax.main --config configs/x.py '--config.data_dir=a b' --config.method=independent "
            "--config.num_networks=1 --workdir=DIR_alone",
        ),
        ("orc-jax --x", "orc-jax --x --config.method=independent --config.num_networks=1 --workdir=DIR_alone"),
        ("python -m pytest tests", None),
        ("orc-jax-compare --seeds 3", None),
        ("", None),
    ],
)
def test_the_command_for_the_student_alone(command, expected, logged):
    one = logged._replace(record=logged.record._replace(command=command))
    made = story.alone_command(one)
    text = told(one)[0]
    if expected is None:
        assert made is None and "The same fields with config.method=independent and config.num_networks=1" in text
    else:
        assert made.startswith(expected.replace("DIR", str(logged.workdir))) and f"This trains it: {made}" in text
    pivot = one.resolved.replace(pivot_checkpoint="runs/pivot")
    if expected:
        assert "--config.pivot_checkpoint= " in story.alone_command(one._replace(resolved=pivot))
        started = one.resolved.replace(init="teacher=a,student=b:1")
        assert "--config.init=student=b:1 " in story.alone_command(one._replace(resolved=started))


def test_alone_there_is_nothing_to_compare_with(finished):
    """The pivot teacher's own run, which is one of a single member."""
    text, _ = told(collect.read(finished / "pivot", "pivot"))
    assert "The target student is 0_tiny_a, trained alone by independent on toy." in text
    assert "In independent no member learns from another" in text and "unknown" not in text


def test_facts(logged):
    timing = [{"step": 5, "seconds": 30.0, "at": "2026-11-26T02:03:04+00:00"}]
    timing.append({"step": 11, "seconds": 25.4, "at": "2026-11-26T02:05:06+00:00"})
    (logged.workdir / "pivot" / metrics.TIMING).write_text(json.dumps({"step": 5, "seconds": 7.0}) + "\n")
    machine = {"processor": "Xeon <1>", "cores": "2", "memory": "24 GiB", "system": "Linux x86_64"}
    one = logged.record._replace(command="orc-jax --x", machine=machine, devices=("H100", "H100", "cpu"))
    _, facts = told(logged._replace(record=one, timing=timing))
    assert facts == {
        "Date": "2026-11-26 02:05 UTC",
        "Duration": "55 s, compilation and evaluations included, and 7 s for the stages before",
        "Seed": "0",
        "Command": "orc-jax --x",
        "Version": ", ".join(f"{name} {one.versions[name]}" for name in ("orc_jax", "jax", "python")),
        "Hardware": "2 x H100, 1 x cpu; Xeon <1>, 2 cores, 24 GiB, Linux x86_64",
    }


def test_a_run_of_an_earlier_version_lacks_facts_and_has_its_page(logged, tmp_path, not_drawn):
    description = json.loads((logged.workdir / record.FILE).read_text())
    for name in ("command", "machine", "devices", "versions"):
        del description[name]
    (logged.workdir / record.FILE).write_text(json.dumps(description))
    timing = [{"step": row["step"], metrics.SPEED: row[metrics.SPEED]} for row in logged.timing]
    (logged.workdir / metrics.TIMING).write_text("".join(json.dumps(row) + "\n" for row in timing))
    facts = dict(story.of_run(collect.read(logged.workdir, "run")))
    assert facts.pop("Hardware") == "devices unknown; the machine was not recorded" and facts.pop("Seed") == "0"
    assert set(facts.values()) == {story.UNKNOWN} and len(facts) == 4
    page = read(write_report([logged.workdir], tmp_path / "out", "latest", 100, pytest.fail))
    assert "the machine was not recorded" in page.text and "The target student is 3_tiny_b" in page.text
