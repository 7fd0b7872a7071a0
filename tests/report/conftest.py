"""Figures that are not drawn."""

import pytest

from orc_jax.report import figures


@pytest.fixture
def not_drawn(monkeypatch):
    """Figures are made, but not turned into files, which takes the most time of a report."""
    monkeypatch.setattr(figures, "as_png", lambda figure: b"")
    monkeypatch.setattr(figures, "as_svg", lambda figure, name, description: f'<svg id="{name}"></svg>')
