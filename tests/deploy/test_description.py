"""What an export says of its network; files that only have the name of such a description are none."""

import pytest

from orc_jax.deploy.description import description_of


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"architecture": "plane4"}', "[" * 9999])
def test_another_file_beside_it_is_no_description(tmp_path, text):
    (tmp_path / "net.pth").write_bytes(b"")
    (tmp_path / "net.pth.json").write_text(text)
    assert description_of(tmp_path / "net.pth") is None
