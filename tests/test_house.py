"""The order of imports, as docs/contributing.md draws it: every file has its place, and no circle can arise."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "orc_jax"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def rows():
    """The rooms of each row of the map: files and folders of the package, from the ground up."""
    table = (ROOT / "docs" / "contributing.md").read_text().split("| files in `orc_jax/`")[1].split("\n\n")[0]
    cells = (line.split("|")[1] for line in table.splitlines()[2:])
    return [re.findall(r"`([\w.]+)/?`", cell) for cell in cells]


ROWS = rows()
FLOOR = {room: floor for floor, row in enumerate(ROWS) for room in row}


def room(path):
    """The file or the folder of the package that `path` is, or is in."""
    return path.relative_to(PACKAGE).parts[0]


def modules():
    """Files by the names of their modules."""
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in FILES}
    return {name.removesuffix(".__init__"): path for name, path in names.items()}


MODULES = modules()


def imported(path):
    """The files of the package that a file imports, wherever in it: at the top, in a function, under a condition."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return {MODULES[name] for name in found & MODULES.keys()} - {path}


def test_every_file_is_on_the_map_once():
    listed = [name for row in ROWS for name in row]
    assert len(listed) == len(set(listed)) and set(listed) == {room(path) for path in FILES}


def test_imports_go_down():
    assert sum(len(imported(path)) for path in FILES) > 200, "the test needs imports to mean anything"
    for path in FILES:
        for other in imported(path):
            if room(other) != room(path):
                assert FLOOR[room(other)] < FLOOR[room(path)], f"{path.name} imports {other.relative_to(PACKAGE)}"


def test_no_circle_within_a_folder():
    done, path = set(), []

    def visit(file):
        assert file not in path, f"circle: {[one.name for one in path]}"
        if file in done:
            return
        path.append(file)
        for other in imported(file):
            visit(other)
        done.add(path.pop())

    for file in FILES:
        visit(file)


def test_nothing_of_the_package_is_imported_for_the_type_checker_alone():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
                assert "orc_jax" not in ast.dump(node), path
