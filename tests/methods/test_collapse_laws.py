"""Methods that become one another, and independent training where nobody guides."""

import pytest

from orc_jax.testing import assert_close, student_of
from tests.methods.comparison import use


def last_of(config, toy, method, *members, **options):
    """The target student of a method."""
    config = config.copy_and_resolve_references()
    if len(members) == 1:
        config.method, config.student, config.num_networks = method, *members, 1
    else:
        use(config, method, *members, **options)
    return student_of(config, toy)


def test_collapse_laws(config, toy):
    def of(*args, **options):
        return last_of(config, toy, *args, **options)

    distilled = of("kd", "tiny_a", "", "tiny_b", temperature=5.0, alpha=0.5)
    for method in ("dgkd", "takd"):  # one source
        assert_close(of(method, "tiny_a", "", "tiny_b", lam=0.5), distilled, rtol=1e-5, atol=1e-6)
    alone = of("independent", "tiny_b")
    nobody_guides = {
        "kd": of("kd", "tiny_a", "", "tiny_b", alpha=0.0),
        "dgkd": of("dgkd", "tiny_a", "tiny_b", "tiny_b", lam=0.0),
        "kdcl": of("kdcl", "tiny_a", "", "tiny_b", lam=0.0),
        "okddip": of("okddip", "tiny_a", "tiny_a", "tiny_b", weight=0.0),
    }
    for student in nobody_guides.values():
        assert_close(student, alone, rtol=1e-5, atol=1e-6)
    with pytest.raises(AssertionError):
        assert_close(distilled, alone, rtol=1e-5, atol=1e-6)
    # Two networks: SwitOKD in learning mode is DML, for a teacher that never leads by that much.
    assert_close(of("switokd", "tiny_a", "", "tiny_b"), of("dml", "tiny_a", "", "tiny_b"), rtol=1e-5, atol=1e-6)
