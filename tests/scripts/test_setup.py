"""scripts/setup.sh: which Python it takes, what it says, and when it installs; with interpreters that only pretend."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# It answers what setup.sh asks, makes an environment of a copy of itself, and notes what would be installed.
PRETENDED = """#!/bin/bash
case "$*" in
  *print*) [ {runs} = yes ] || exit 127 ;;
  *"not (3, 11)"*) [ {minor} -ge 11 ] && [ {minor} -le 14 ] || exit 1 ;;
  *ensurepip*) [ {venv} = yes ] || exit 1 ;;
  --version) echo "Python 3.{minor}.0" ;;
  "-m venv "*) mkdir -p "$3/bin" && [ "$0" -ef "$3/bin/python" ] || cp "$0" "$3/bin/python" ;;
  scripts/told.py*) echo "3.{minor}: $*" >>installed.log; exit {status} ;;
esac
"""

PRETENDED_SETUP = """#!/bin/bash
bin=${VENV:-.venv}/bin
mkdir -p $bin
printf '#!/bin/bash\\necho "%s"; echo "$*"\\n' "${VENV:-.venv}: ${JAX-unset}" >$bin/python
chmod +x $bin/python
"""


@pytest.fixture
def setup(tmp_path):
    """Runs setup.sh in a folder of its own where only pretended interpreters are on PATH."""
    house, path = tmp_path / "house", tmp_path / "bin"
    (house / "scripts").mkdir(parents=True)
    path.mkdir()
    shutil.copy(ROOT / "scripts" / "setup.sh", house / "scripts")
    for file, text in {"requirements.txt": "jax[cuda12]>=1\nflax\n", "pyproject.toml": "", "setup.py": ""}.items():
        (house / file).write_text(text)
    for tool in ("bash", "basename", "cat", "cksum", "cp", "dirname", "env", "mkdir", "rm", "sed"):
        (path / tool).symlink_to(shutil.which(tool))

    def run(pythons=(), **environment):
        for minor, fields in dict(pythons).items():
            answers = {"runs": "yes", "venv": "yes", "status": 0, "minor": minor} | fields
            (path / f"python3.{minor}").write_text(PRETENDED.format(**answers))
            (path / f"python3.{minor}").chmod(0o755)
        done = subprocess.run(
            [path / "bash", house / "scripts" / "setup.sh"],
            env={"PATH": str(path)} | environment,
            capture_output=True,
            text=True,
        )
        log = house / "installed.log"
        installed = log.read_text() if log.exists() else ""
        log.unlink(missing_ok=True)
        return done, installed

    run.house = house
    return run


def test_the_newest_python_that_can_make_an_environment_is_taken(setup):
    done, installed = setup({14: {"venv": "no"}, 13: {"runs": "no"}, 12: {}, 11: {}})
    assert done.returncode == 0, done.stderr
    assert installed.startswith("3.12: ") and installed.endswith("-r .venv/wanted.txt --editable .\n")
    assert "into .venv with Python 3.12.0, JAX for cpu" in done.stdout and not done.stderr
    assert (setup.house / ".venv" / "wanted.txt").read_text() == "jax>=1\nflax\n"


def test_without_a_python_one_message_says_why(setup):
    done, installed = setup({14: {"venv": "no"}, 13: {"runs": "no"}})
    assert (done.returncode, installed) == (2, "") and done.stderr == (
        "setup.sh: needs a Python 3.11 to 3.14 on PATH, or as PYTHON=...; python3.14: it cannot make environments "
        "(Debian, Ubuntu: apt install python3.14-venv); python3.13: it does not run\n"
    )


@pytest.mark.parametrize(
    ("python", "reason"),
    [
        ("python3.10", "it is Python 3.10.0"),
        ("python3.14", "it cannot make environments (Debian, Ubuntu: apt install python3.14-venv)"),
        ("nowhere", "it does not run"),
    ],
)
def test_a_python_that_is_given_is_taken_or_refused(setup, python, reason):
    done, installed = setup({14: {"venv": "no"}, 12: {}, 10: {}}, PYTHON=python)
    message = f"setup.sh: PYTHON={python}: must be a Python 3.11 to 3.14, and {reason}\n"
    assert (done.returncode, installed, done.stderr) == (2, "", message)


def test_nothing_is_installed_twice(setup):
    assert setup({12: {}, 11: {}})[1].count("3.12: ") == 1
    done, installed = setup()
    assert done.returncode == 0 and not installed and not done.stdout
    (setup.house / "pyproject.toml").write_text("[project.scripts]")
    assert setup()[1].count("3.12: ") == 1, "it may have further commands"
    for build in ("cuda12", "tpu", "cuda12,tpu"):
        assert setup(JAX=build)[1] and f"jax[{build}]>=1" in (setup.house / ".venv" / "wanted.txt").read_text()


def test_an_environment_keeps_its_python_unless_another_is_asked_for(setup):
    setup({11: {}})
    done, installed = setup({12: {}})
    assert not installed and not done.stdout
    done, installed = setup(PYTHON="python3.12")
    assert installed.startswith("3.12: ") and ".venv has another Python: it is made anew" in done.stdout
    (setup.house / ".venv" / "bin" / "python").unlink()  # as when what it was made with is gone
    done, installed = setup({13: {}})
    assert installed.startswith("3.13: ") and "it is made anew" in done.stdout


def test_what_pip_cannot_install_is_not_taken_for_installed(setup):
    for _ in range(2):
        done, installed = setup({12: {"status": 1}})
        assert done.returncode == 2 and installed
        assert done.stderr == "setup.sh: pip failed with Python 3.12.0; PYTHON=... takes another\n"
    assert setup(JAX="rocm")[0].stderr == "setup.sh: JAX=rocm: must be cpu, cuda12, tpu, or cuda12,tpu\n"


@pytest.mark.parametrize(
    ("arguments", "build", "installed"),
    [
        (["-k", "conv"], None, ".venv: unset"),
        (["-m", "aot"], None, ".venv-aot: tpu"),
        (["-m", "aot"], "cuda12", ".venv-aot: cuda12,tpu"),
        (["-m", "aot"], "cpu", ".venv-aot: cpu"),
    ],
)
def test_the_tests_of_compilers_have_them(arguments, build, installed, tmp_path):
    """In a folder of their own. Here setup.sh makes a Python that says what it was to install, and its arguments."""
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    shutil.copy(ROOT / "scripts" / "test.sh", scripts)
    (scripts / "setup.sh").write_text(PRETENDED_SETUP)
    (scripts / "setup.sh").chmod(0o755)
    environment = {key: value for key, value in os.environ.items() if key not in ("JAX", "VENV")}
    environment |= {"JAX": build} if build else {}
    command = ["bash", scripts / "test.sh", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [installed, f"-m pytest {' '.join(arguments)}"]


def told(code, *, status=0):
    program = [sys.executable, ROOT / "scripts" / "told.py", sys.executable, "-u", "-c", code]
    done = subprocess.run(program, capture_output=True, text=True, env=os.environ)
    assert done.returncode == status
    return done


def test_pip_is_told_in_short():
    code = """
import time
print("Collecting flax>=0.12 (from -r wanted.txt)")
time.sleep(0.5)
print("Installing collected packages: a, b, c")
time.sleep(2.7)
"""
    done = told(code)
    assert "unpacking 3 packages" in done.stdout and "installed in 3 s" in done.stdout
    assert len(done.stdout.splitlines()) <= 4 and not done.stderr


def test_the_end_of_what_pip_said_is_shown_if_it_fails():
    done = told("print('x\\n' * 100 + 'ERROR: no matching distribution'); raise SystemExit(3)", status=3)
    assert done.stderr.endswith("x\nERROR: no matching distribution\n") and len(done.stderr.splitlines()) == 25
    assert "installed" not in done.stdout
