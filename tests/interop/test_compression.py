"""Archives whose members are packed in a way that Python does not know."""

import zipfile

import pytest

from mbti_jax.interop.tensors import read_state_dict


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("a.npz", "is no complete .npz file"), ("a.pt", "cannot be read as tensors")],
)
def test_a_compression_that_python_does_not_know_is_said(tmp_path, name, sentence):
    """`zipfile` raises NotImplementedError for it."""
    path = tmp_path / name
    with zipfile.ZipFile(path, "w") as archive:
        for member in ("a/w.npy", "a/data.pkl", "a/byteorder", "a/data/0"):
            archive.writestr(member, b"little")
    content = bytearray(path.read_bytes())
    # The field of the method, in each member's header and in the directory at the end.
    for header, field in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        start = content.find(header)
        while start >= 0:
            content[start + field : start + field + 2] = (77).to_bytes(2, "little")
            start = content.find(header, start + 4)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=sentence) as error:
        read_state_dict(path)
    assert isinstance(error.value.__cause__, NotImplementedError)
