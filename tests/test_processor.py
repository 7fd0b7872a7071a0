"""Which processors multiply bfloat16, by what Linux tells of them."""

import pytest

from orc_jax import processor


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("flags : fpu avx2 avx512f avx512_vnni", False),
        ("flags : fpu avx2 avx512f avx512_bf16 avx512_vnni", True),
        ("flags : fpu amx_tile amx_bf16", True),
        ("Features : fp asimd bf16 i8mm", True),
        ("Features : fp asimd sve_bf16x", False),
        (None, False),  # no such file, as on other systems than Linux
    ],
)
def test_what_the_processor_multiplies(text, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text + "\n")
    assert processor.multiplies_bfloat16.__wrapped__() == expected
