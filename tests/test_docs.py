"""The docs say what is true: fields and defaults, links, commands, code; and what is public has a docstring."""

import ast
import re
import runpy
import shlex
from pathlib import Path

import pytest

from orc_jax import main
from orc_jax.compare import __main__ as compare
from orc_jax.config import default, flat, resolve

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/**/*.md")])
FIELDS = flat(default().to_dict())
OWN = {"mean_teacher.temperature"}  # fields that a config file of the pages adds
# The flags of the other commands are argparse's, which their own tests know.
COMMAND = re.compile(r"(?:python -m orc_jax\.(?:main|compare)|orc-jax(?:-compare)?) (.*)")


def documented():
    """Field -> default as written in the table; a row may hold several fields with several defaults, or one for all."""
    fields = {}
    rows = re.findall(r"^\| (`[\w.]+`(?:, `[\w.]+`)*) \|([^|]*)\|", (ROOT / "docs/config.md").read_text(), re.MULTILINE)
    for names, defaults in rows:
        names = re.findall(r"`([\w.]+)`", names)
        values = re.findall(r"`([^`]+)`", defaults) or [""]
        fields |= dict(zip(names, values if len(values) > 1 else values * len(names), strict=True))
    return fields


def test_every_field_is_in_the_table_with_its_default():
    table = documented()
    for name, value in FIELDS.items():
        assert name in table, f"config.{name} is not in docs/config.md"
        assert table[name] == str(value) or float(table[name]) == value, name
    assert set(table) <= set(FIELDS), "fields that do not exist"


def anchor(heading):
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)  # not what only looks like a link, in code
    links = re.findall(r"\]\((?!http)([^)]+)\)", text)
    for link in links:
        path, _, heading = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if heading:
            assert heading in map(anchor, re.findall(r"^#+ (.*)", target.read_text(), re.MULTILINE)), link
    for path in re.findall(r"\b(?:configs|scripts|tests|orc_jax)/[\w/]+\.(?:py|sh)", text):
        assert (ROOT / path).exists() or path in ("configs/digits.py",), path


def commands(text):
    """The arguments of every call of the program in a page, in code blocks and in running text."""
    text = re.sub(r"\\\n\s*", "", text)  # continued lines
    text = re.sub(r"`([^`\n]*)\n([^`\n]*)`", r"`\1 \2`", text)  # code that runs over the end of a line
    for line in text.splitlines():
        for found in COMMAND.findall(line):
            yield shlex.split(re.split(r"`|  +#| \.\.\.", found)[0].rstrip('"'))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_name_what_exists(page):
    for arguments in commands(page.read_text()):
        for argument in arguments:
            name, _, value = argument.removeprefix("--").partition("=")
            if name.startswith("config."):
                assert name.removeprefix("config.") in FIELDS.keys() | OWN, argument
            elif argument.startswith("--"):
                assert name in ("config", "version") or name in compare.FLAGS or name in main.FLAGS, argument
            else:
                value = argument
            if value.startswith("configs/"):
                assert (ROOT / value.partition(":")[0]).exists(), argument


def test_commands_are_found():
    assert sum(len(list(commands(page.read_text()))) for page in PAGES) > 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_in_the_pages_is_python(page):
    for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        ast.parse(code)


@pytest.mark.parametrize("path", sorted(ROOT.glob("orc_jax/**/*.py")), ids=lambda path: path.stem)
def test_what_is_public_has_a_docstring(path):
    """From which the reference is made."""
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree) or not tree.body, path
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            short = isinstance(node, ast.FunctionDef) and len(node.body) == 1
            assert ast.get_docstring(node) or short or node.name in ("main", "cli"), f"{path.stem}.{node.name}"
            if isinstance(node, ast.FunctionDef):
                assert node.returns, f"{path.stem}.{node.name} does not say what it returns"


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/*.py")), ids=lambda path: path.stem)
def test_every_config_is_valid_and_says_how_to_run_it(path):
    module = runpy.run_path(str(path))
    resolve(module["get_config"](), 1)
    assert f"--config configs/{path.name}" in module["__doc__"]
