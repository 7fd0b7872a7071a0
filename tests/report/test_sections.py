"""The sections that need nothing but the files of a run: what they show is what the log says."""

import numpy as np
import pytest

from orc_jax.methods.base import Share
from orc_jax.report import collect, sections
from orc_jax.workdir import metrics
from tests.report.reading import Reader

pytestmark = pytest.mark.usefixtures("toy_set")
NAMES = ("0_tiny_a", "1_tiny_b", "2_tiny_a", "3_tiny_b")


@pytest.fixture
def logged(finished):
    return collect.read(finished, "run")


def cells(section):
    """Its table, row by row."""
    return Reader(section.html).cells


def with_shares(logged, *shares, **values):
    """The run of a method with these shares, and a log of two epochs: name of the metric = values of the members."""
    method = logged.resolved.method._replace(shares=shares)
    rows = [
        {"step": epoch, "epoch": epoch}
        | {metrics.train(metric, name): of[i] / epoch for metric, of in values.items() for i, name in enumerate(NAMES)}
        for epoch in (1, 2)
    ]
    return logged._replace(resolved=logged.resolved._replace(method=method), rows=rows)


def test_results(logged):
    """The last epoch beside the best of the target student, here the one before it."""
    rows = [dict(row) for row in logged.rows]
    rows[0]["eval/top1/3_tiny_b"], rows[1]["eval/top1/3_tiny_b"], rows[0]["eval/loss/1_tiny_b"] = 0.75, 0.5, 1.25
    shown = cells(sections.results(logged._replace(rows=rows)))
    shown.insert(-6, "")  # the parameters of the ensemble
    shown = np.array(shown).reshape(6, 9)
    assert shown[1:, 0].tolist() == [*NAMES, "ensemble"] and shown[0, 3:].tolist() == [
        *("top-1, last", "top-5, last", "loss, last"),
        *("top-1, best", "top-5, best", "loss, best"),
    ]
    assert shown[1:, 1].tolist() == ["pivot teacher", "assistant", "assistant", "target student", "all members"]
    assert shown[4, 3] == "50.00%" and shown[4, 6] == "75.00%" and shown[2, 8] == "1.2500"
    assert (
        shown[1, 3] == f"{rows[1]['eval/top1/0_tiny_a']:.2%}" and shown[1, 6] == f"{rows[0]['eval/top1/0_tiny_a']:.2%}"
    )


def test_shares_that_add_up_are_those_of_the_students(logged):
    run = with_shares(logged, Share("led", "Leaders", "Who led.", adds_up=True), led=[0.0, 0.2, 0.0, 0.8])
    section = sections.roles(run)
    assert section.title == "Roles over time" and section.text == "Who led. From train/led of the log."
    assert cells(section) == [
        "member",
        "of all iterations",
        *NAMES[1:2],
        "15.0 %",
        NAMES[2],
        "0.0 %",
        NAMES[3],
        "60.0 %",
    ]
    assert section.drawn[0].figure.axes[0].get_title() == "Leaders"


def test_other_shares_are_those_of_all_members(logged):
    run = with_shares(logged, Share("slept", "Asleep", "Who slept."), slept=[1.0, 0.0, 0.0, 0.5])
    section = sections.roles(run)
    assert section.title == "Asleep over time" and "Who slept." in section.text
    assert cells(section)[2:] == [NAMES[0], "75.0 %", NAMES[1], "0.0 %", NAMES[2], "0.0 %", NAMES[3], "37.5 %"]
    lines = {line.get_label(): line.get_ydata() for line in section.drawn[0].figure.axes[0].lines}
    np.testing.assert_allclose(lines[NAMES[0]], [100, 50])


def test_roles_that_there_are_none_of(logged):
    share = Share("led", "Leaders", "Who led.", adds_up=True)
    for run, text in (
        (with_shares(logged), "In orc no member changes its role."),
        (with_shares(logged, share), "No epoch has been logged yet."),
        (with_shares(logged, share, led=[0.0] * 4), "No member was ever in this role (train/led of the log)."),
    ):
        section = sections.roles(run)
        assert section.is_left_out and section.text == text


def test_speed(logged):
    """Two epochs of 90 images at 30 and 45 a second: three and two seconds; a row without its epoch does not count."""
    rows = [{"step": 5, "epoch": 1}, {"step": 11, "epoch": 2}]
    timing = [{"step": 5, metrics.SPEED: 30.0}, {"step": 11, metrics.SPEED: 45.0}, {"step": 17, metrics.SPEED: 1.0}]
    section = sections.speed(logged._replace(rows=rows, timing=timing))
    assert "The epochs shown took 5 seconds" in section.text and "4 x cpu" in section.text
    (line,) = section.drawn[0].figure.axes[0].lines
    np.testing.assert_array_equal(line.get_xydata(), [[1, 30], [2, 45]])
    section = sections.speed(logged._replace(rows=rows, timing=[{"step": 5, metrics.SPEED: 0.25}]))
    assert "took 6 minutes" in section.text
    assert sections.speed(logged._replace(timing=[])).is_left_out


def test_the_config(logged):
    """Fields that differ, with the default beside them; one of a later or an earlier version has none."""
    config = logged.record.config | {"gone": 3}
    shown = cells(sections.configuration(logged._replace(record=logged.record._replace(config=config))))
    assert shown[:3] == ["field", "value", "default"]
    at = shown.index("num_epochs")
    assert shown[at + 1 : at + 3] == ["2", "240"]
    at = shown.index("gone")
    assert shown[at + 1 : at + 3] == ["3", sections.NONE]
    assert "orc.beta" in shown and shown.count("orc.beta") == 1, "among all fields alone"
    one = logged._replace(record=logged.record._replace(num_train=1))
    assert "90 training images of 8x8x1" in sections.configuration(logged).text
    assert "1 training image of" in sections.configuration(one).text


def test_the_comparison(logged):
    """A run that was not evaluated yet has a row as well."""
    early = logged._replace(label="early", rows=[])
    table, curves = sections.comparison([logged, early])
    shown = np.array(cells(table)).reshape(3, 13)
    assert shown[1:, 0].tolist() == ["run", "early"] and set(shown[2, 4:]) == {sections.NONE}
    best = metrics.best(logged.rows, NAMES[-1])
    assert shown[1, 8] == str(best["epoch"]) and shown[1, 9] == f"{best['eval/top1/3_tiny_b']:.2%}"
    assert shown[1, 12] == f"{logged.rows[-1]['eval/top1/ensemble']:.2%}"
    assert len(curves.drawn[0].figure.axes[0].lines) == 1
    assert len(sections.comparison([early])) == 1
