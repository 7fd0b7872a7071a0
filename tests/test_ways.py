"""docs/ways: each page is walked from its first line to its last, and its tables are true.

A page's files are written, its programs and commands run, in order, in an empty folder. What would take hours is made
small by `SMALLER`; all else is run as it stands.
"""

import importlib
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from orc_jax import display
from orc_jax.report import figures
from orc_jax.workdir import metrics, record
from scripts import bench
from tests import flags
from tests.deploy.members import network_of

ROOT = Path(__file__).parent.parent
WAYS = ROOT / "docs" / "ways"
COMMANDS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
IN_PROCESS = ("orc_jax.import_torch", "orc_jax.export", "orc_jax.predict", "orc_jax.report")  # no config, no XLA flags
SHORT = "--config.num_epochs=1 --config.batch_size=8 --config.log_to="

# By page: what stands there, and what is run instead. Pools of one architecture compile soonest.
SMALLER = {
    "photos": {
        "resnet34": "plane2",
        "resnet10": "plane2",
        "--image_size 224": "--image_size 32",
        "configs/folder.py ": "configs/folder.py:32 --config.stream.num_workers=0 ",
        "--config.num_epochs=30": SHORT,
        "--config.dataset=folder": "--config.dataset=folder --config.stream.num_workers=0",
    },
    "reproduce": {
        "configs/cifar100.py": "configs/digits.py --config.num_networks=3",
        "configs/cifar100_kd.py": "configs/digits.py --config.method=kd --config.num_networks=2",
        "--config.teacher=wrn_40_2": f"--config.teacher=plane2 --config.examples_per_class=4 {SHORT}",
        "--config.student=wrn_16_2": "--config.student=plane2 --config.pretrain_epochs=1 --config.warmup_epochs=0",
        "--out runs/wrn_report": "--out runs/wrn_report --max_examples 8",
    },
    "extend": {"num_epochs=8": "num_epochs=1, examples_per_class=8, log_to=''", "--seeds 2": "--seeds 1"},
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(figures, "as_png", lambda figure: b"")  # which takes the most time of a report
    monkeypatch.setattr(figures, "as_svg", lambda figure, name, description: f'<svg id="{name}"></svg>')
    return tmp_path


@pytest.fixture
def walk(folder, programs, monkeypatch):
    """A function that walks a page."""
    kept = {"JAX_COMPILATION_CACHE_DIR": str(programs), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    environment = os.environ | kept | {"XLA_FLAGS": flags.QUICK, "PYTHONPATH": str(ROOT)}

    def start(*arguments):
        done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"

    def command(words):
        if words[0] in COMMANDS:
            module, _, function = COMMANDS[words[0]].partition(":")
            return start("-c", f"import sys, {module}; sys.exit({module}.{function}())", *words[1:])
        assert words[:2] == ["python", "-m"], words
        if words[2] not in IN_PROCESS:
            return start(*words[1:])
        monkeypatch.setattr(sys, "argv", words[2:])
        module = "orc_jax.report.__main__" if words[2] == "orc_jax.report" else words[2]
        return importlib.import_module(module).main()

    def page(name):
        text = (WAYS / f"{name}.md").read_text()
        for large, small in SMALLER[name].items():
            assert large in text, f"{name}.md has no {large!r} any more"
            text = text.replace(large, small)
        for kind, block in re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL):
            if kind == "bash":
                for line in re.sub(r"\\\n", "", block).splitlines():
                    command(shlex.split(line))
            elif file := re.match(r"# (\w+\.py)\n", block):
                (folder / file[1]).write_text(block)
            else:
                start("-c", f"import sys; sys.path[:0] = ['.']\n{block}")

    return page


def test_photos(walk, folder, capsys):
    """What the reader brings: a teacher, images, and prepare.py of another page."""
    torch.save(network_of("plane2", 3).state_dict(), "teacher.pth")
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 2)):
        for channel, name in enumerate(("blue", "green", "red")):
            (folder / "photos" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 100, (*rng.integers(30, 50, 2), 3), dtype=np.uint8)
                pixels[..., channel] += 120
                Image.fromarray(pixels).save(folder / "photos" / split / name / f"{i}.png")
    Image.fromarray(pixels).save("new.jpg")
    Path("prepare.py").write_text(re.search(r"```python\n(import numpy.*?)```", deploy_page(), re.DOTALL)[1])
    walk("photos")
    student, again = record.require(folder / "runs" / "photos"), record.require(folder / "teachers" / "student")
    assert again.class_names == student.class_names == ("blue", "green", "red")
    assert (again.image_shape, again.mean, again.std) == (student.image_shape, student.mean, student.std)
    assert again.architectures == ("plane2",) and student.eval_crop == 0.875
    assert again.eval_crop == 32 / round(32 / 0.875)  # of a short side in whole pixels
    # Two predictions, of the run and of what was exported from it and imported again, are the same.
    (told, again) = re.findall(r"new\.jpg\n *([\d.]+%  \w+)", capsys.readouterr().out)
    assert told == again


def deploy_page():
    return (ROOT / "docs" / "deploy.md").read_text()


@pytest.mark.slow
def test_reproduce(walk, folder):
    walk("reproduce")
    for run, method in (("wrn_orc", "orc"), ("wrn_kd", "kd")):
        there = record.require(folder / "runs" / run)
        assert there.config["method"] == method
        assert metrics.evaluated(metrics.read(folder / "runs" / run))
    assert not (folder / "runs" / "wrn_kd" / "pivot").exists() and (folder / "runs" / "wrn_report").is_dir()


@pytest.mark.slow
def test_extend(walk, folder):
    walk("extend")
    assert record.require(folder / "runs" / "mine").config["mean_teacher"] == {"temperature": 2.0, "weight": 1.0}


def rows(page, columns):
    """The cells of the rows of a page's tables that have so many columns, without heads."""
    lines = re.findall(r"^\| (.*) \|$", (WAYS / f"{page}.md").read_text(), re.MULTILINE)
    cells = [line.split(" | ") for line in lines]
    return [row for row in cells if len(row) == columns][1:]


def test_the_networks_of_each_size_are_made_for_it():
    sizes = []
    for size, text in rows("photos", 2):
        names = re.findall(r"`(\w+)`", text)
        sizes.append((int(size), len(names)))
        shape = (int(size), int(size), 3)
        run = SimpleNamespace(dataset=SimpleNamespace(image_shape=shape), spec=SimpleNamespace(architectures=names))
        assert not display.unusual_sizes(run)
    assert [size for size, _ in sizes] == [32, 64, 128, 224] and all(count for _, count in sizes[:3])


def test_hours_follow_from_operations_and_peaks():
    """0.11 EFLOP of the table of all rows, at a third of what the benchmark has as peak."""
    text = (ROOT / "docs" / "reproduce.md").read_text()
    row = next(line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| wrn_40_2, wrn_16_2"))
    page = (WAYS / "reproduce.md").read_text()
    teacher, student, kd, exaflop = row[1:]
    assert f"teacher {teacher}, student from the labels alone {student}, student with KD {kd}" in " ".join(page.split())
    assert f"costs {exaflop} EFLOP" in page
    for card, peak, hours in rows("reproduce", 3):
        assert float(peak) * 1e12 == bench.PEAKS[card.split()[0]]["float32"]
        assert float(hours) == round(float(exaflop) * 1e18 / (float(peak) * 1e12 / 3) / 3600, 2)
    assert "made 33 images a second" in page and "101 hours" in page and round(240 * 50_000 / 33 / 3600) == 101
