"""Files of a workdir: one run at a time, replaced in one move, and a message where they cannot be written."""

import os

import pytest

from orc_jax.errors import UserError
from orc_jax.workdir.files import locked, replace_text, writing
from tests.helpers import train

pytestmark = pytest.mark.usefixtures("toy_set")


def test_a_workdir_has_one_run_at_a_time(config, console, tmp_path):
    config.method, config.num_networks, config.assistants, config.num_epochs = "independent", 2, "", 1
    workdir = tmp_path / "run"
    text = rf"is in use by another run, process {os.getpid()} on .*another --workdir"
    with locked(workdir), pytest.raises(UserError, match=text):
        train(config, workdir, console)
    train(config, workdir, console)


@pytest.mark.parametrize("workdir", ["file/run", "file"])
def test_a_workdir_that_cannot_be_written(workdir, config, console, tmp_path):
    (tmp_path / "file").write_text("something")
    with pytest.raises(UserError, match=f"--workdir=.*{workdir}.*cannot be written"):
        train(config, tmp_path / workdir, console)
    assert (tmp_path / "file").read_text() == "something"


def test_a_file_is_replaced_in_one_move(tmp_path, monkeypatch):
    replace_text(tmp_path / "a", "old")
    replace_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "new" and [path.name for path in tmp_path.iterdir()] == ["a"]


def test_errors_of_writing_name_what_is_written(tmp_path):
    with pytest.raises(UserError, match=r"^--out=x: cannot be written: No such file or directory$"), writing("--out=x"):
        (tmp_path / "none" / "file").write_text("")
