"""The sections that need networks and images."""

import numpy as np
import pytest

from orc_jax import config as configs
from orc_jax import samples
from orc_jax.report import collect, measures, network_sections
from orc_jax.report.write import write_report
from tests.helpers import train
from tests.report.reading import read

pytestmark = pytest.mark.usefixtures("toy_set")


@pytest.mark.parametrize("method", ["pcl", "switokd"])
def test_methods_with_heads_and_with_expert_mode(method, config, console, tmp_path, not_drawn):
    config.method, config.num_networks, config.num_epochs, config.crop_padding = method, 3, 1, 1
    config.teacher = config.assistants = config.student = "tiny_b"
    config.switokd.teacher_must_lead = False  # or these two would never be in expert mode
    train(config, tmp_path / "run", console)
    shown = read(write_report([tmp_path / "run"], None, "latest", 100, pytest.fail))
    assert {"Agreement", "Calibration", "Left out"} <= set(shown.titles)
    assert ("Expert mode over time" in shown.titles) == (method == "switokd")
    assert ("The ensemble is that of pcl." in shown.text) == (method == "pcl")
    logged = collect.read(tmp_path / "run", "run")
    predicted = collect.predictions(collect.restore(logged, collect.load(logged, pytest.fail), "latest"), 100)
    joint = (predicted.ensemble.argmax(-1) == predicted.labels).mean()
    np.testing.assert_allclose(joint, logged.rows[-1]["eval/top1/ensemble"], rtol=1e-6)


def test_a_diverged_member_does_not_stop_the_report(finished):
    """Its logits are NaN: nothing is drawn of it, and the others are."""
    logged = collect.read(finished, "run")
    predicted = collect.predictions(collect.restore(logged, collect.load(logged, pytest.fail), "latest"), 100)
    predicted.logits[0] = np.nan
    predicted.features[0][:] = np.nan
    assert network_sections.correlations(logged, predicted).is_left_out
    assert [one.name for one in network_sections.features(logged, predicted).drawn] == ["features-3"]
    assert "0_tiny_a" not in network_sections.calibration(logged, predicted).text
    values = measures.agreement(measures.predictions(predicted.logits))
    assert values[0].max() == 0 and values[1, 1] == 1
    for make in (network_sections.classes, network_sections.agreement):
        assert make(logged, predicted).drawn


def test_the_pivot_teacher_on_hard_samples(finished, toy):
    """Those samples on which the students' mean loss is highest; before is as it was pre-trained, after as it is."""
    logged = collect.read(finished, "run")
    networks = collect.restore(logged, toy, "latest")
    predicted = collect.predictions(networks, 100)
    section = network_sections.pivot(logged, networks, predicted, 100)
    losses = measures.losses(predicted.logits[1:], toy.test.labels).mean(0)
    hard = np.argsort(-losses)[:6]
    before = collect.pivot_before(networks, finished, 100)
    right = [logits.argmax(-1) == toy.test.labels for logits in (before, predicted.logits[0])]
    for values in ([x[hard].mean() for x in right], [x.mean() for x in right]):
        assert all(f">{value:.2%}<" in section.html for value in values), section.html
    assert "6 of 30 evaluation samples" in section.text and [one.name for one in section.drawn] == ["pivot"]
    # A run whose teacher does not learn has no such section.
    (stage,) = networks.run.method.stages
    frozen = networks.run.resolved.method._replace(frozen=(0,))
    still = networks._replace(run=networks.run._replace(resolved=networks.run.resolved._replace(method=frozen)))
    assert network_sections.pivot(logged, still, predicted, 100).is_left_out
    assert not collect.learns_on(still.run, 0) and collect.learns_on(networks.run, 0) and stage.members == (0,)
    assert not collect.learns_on(networks.run, 1), "it has not been trained before"


@pytest.mark.parametrize(
    ("crop_padding", "flip", "text"),
    [
        (0, False, "as the students see it, not augmented."),
        (2, True, "as the students see it, cropped and flipped at random."),
    ],
)
def test_pictures_are_called_what_they_are(crop_padding, flip, text, finished, config, toy):
    config.crop_padding, config.flip = crop_padding, flip
    logged = collect.read(finished, "run")._replace(resolved=configs.resolve(config))
    networks = collect.restore(logged, toy, "latest")
    assert text in network_sections.feedback(logged, networks).text
    section = network_sections.training_images(logged, networks)
    assert text.replace("the students see it", "the networks see them")[:-1] in section.text
    shown = [axes for axes in section.drawn[0].figure.axes if axes.images]
    assert len(shown) == 12
    expected = samples.first(networks.run, 12)
    for axes, image, label in zip(shown, expected.images, expected.labels, strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), image[..., 0])
        assert axes.get_title() == toy.class_names[label]


def test_what_of_the_networks_is_missing_is_told(finished, tmp_path):
    """No checkpoint; no images; a set that is another one now."""
    logged = collect.read(finished, "run")
    told = []
    ((section,), line) = network_sections.of_networks(logged._replace(workdir=tmp_path), "latest", 100, pytest.fail)
    assert section.is_left_out and "no checkpoint yet" in line
    for change, text in (
        ({"class_names": ("top", "middle", "floor")}, "toy has other classes now"),
        ({"image_shape": (9, 8, 1)}, "toy has images of another size now"),
    ):
        other = logged._replace(record=logged.record._replace(**change))
        ((section,), line) = network_sections.of_networks(other, "latest", 100, told.append)
        assert section.is_left_out and text in section.text and text in told.pop() and line == "without images"
