"""The README says what is true: every config field is in its table with its default, and its files exist."""

import re
import runpy
from pathlib import Path

import pytest

from orc_jax.config import default, flat, validate

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def documented():
    """Field -> default as written in the table; a row may hold several fields with several defaults, or one for all."""
    fields = {}
    section = README.split("## Config\n")[1].split("\n## ")[0]
    for names, defaults in re.findall(r"^\| (`[\w.]+`(?:, `[\w.]+`)*) \|([^|]*)\|", section, re.MULTILINE):
        names = re.findall(r"`([\w.]+)`", names)
        values = re.findall(r"`([^`]+)`", defaults) or [""]
        fields |= dict(zip(names, values if len(values) > 1 else values * len(names), strict=True))
    return fields


def test_every_field_is_in_the_table_with_its_default():
    table = documented()
    for name, value in flat(default().to_dict()).items():
        assert name in table, f"config.{name} is not in the README"
        assert table[name] == str(value) or float(table[name]) == value, name
    assert set(table) <= {name for name, _ in flat(default().to_dict()).items()}, "fields that do not exist"


def test_linked_files_and_configs_exist():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README) + re.findall(r"configs/\w+\.py|scripts/\w+\.sh", README)
    assert len(links) > 5
    for link in links:
        assert (ROOT / link).exists(), link


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/*.py")), ids=lambda path: path.stem)
def test_every_config_is_valid_and_says_how_to_run_it(path):
    module = runpy.run_path(str(path))
    validate(module["get_config"](), 1)
    assert f"--config configs/{path.name}" in module["__doc__"]
