"""One finished run for all files of this folder, and figures that are not drawn."""

import pytest

from orc_jax.report import figures


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Instead of a run for each file; the tests copy it before they change anything."""
    return tmp_path_factory.mktemp("trained") / "run"


@pytest.fixture
def not_drawn(monkeypatch):
    """Figures are made, but not turned into files, which takes the most time of a report."""
    monkeypatch.setattr(figures, "as_png", lambda figure: b"")
    monkeypatch.setattr(figures, "as_svg", lambda figure, name, description: f'<svg id="{name}"></svg>')
