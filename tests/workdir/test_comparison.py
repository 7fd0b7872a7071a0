"""The record of a comparison: written and read."""

import pytest

from orc_jax.errors import UserError
from orc_jax.workdir import comparison
from orc_jax.workdir.comparison import Compared, Comparison

RUNS = (
    Compared("kd", 0, "kd/seed_0", "1_a", last=0.5, best=0.75, ensemble=0.6, seconds=3.0, took=4.0, ended="2026"),
    Compared("orc", 0, "orc/seed_0", "2_a", error="it has diverged"),
    Compared("kd", 1, "kd/seed_1", "1_a"),
)
THERE = Comparison({"seed": 0}, RUNS, {"kd": 2.5}, "orc-jax-compare", {"jax": "1"}, ("cpu",), {"cores": "2"})


def test_what_is_written_is_read(tmp_path):
    assert comparison.read(tmp_path) is None
    comparison.write(tmp_path, THERE)
    assert comparison.read(tmp_path) == THERE
    assert THERE.methods == ["kd", "orc"] and THERE.of("kd") == [RUNS[0], RUNS[2]] and THERE.failed == [RUNS[1]]
    assert THERE.by_method == [RUNS[0], RUNS[2], RUNS[1]]
    assert [run.is_finished for run in RUNS] == [True, False, False]
    other = THERE.replaced(1, RUNS[0])
    assert other.runs == (RUNS[0], RUNS[0], RUNS[2]) and THERE.runs == RUNS


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"runs": [{"method": 3}]}', "[" * 9999])
def test_files_that_are_no_record(text, tmp_path):
    (tmp_path / comparison.FILE).write_text(text)
    with pytest.raises(UserError, match=r"compare\.json is not the record of a comparison: "):
        comparison.read(tmp_path)
