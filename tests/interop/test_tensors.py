"""Reading tensors from foreign files without running code from them."""

import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from safetensors.numpy import save_file

from mbti_jax.interop.tensors import read_state_dict


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="writes the PyTorch files to be read")


def test_torch_file_is_read_as_torch_reads_it(torch, tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    network = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3))
    tensors = {
        **network.state_dict(),
        "transposed": base.T,
        "slice": base[1:3, ::2],
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(base),
        "half": base.half(),
        "double": base.double(),
        "flags": base > 3,
    }
    torch.save(tensors, tmp_path / "a.pt")
    read = read_state_dict(tmp_path / "a.pt")
    assert read.keys() == tensors.keys()
    for name, value in tensors.items():
        expected = value.detach().numpy()
        assert read[name].dtype == expected.dtype, name
        assert read[name].shape == expected.shape, name
        np.testing.assert_array_equal(read[name], expected, err_msg=name)
    torch.save({"x": base.bfloat16()}, tmp_path / "b.pth")
    np.testing.assert_array_equal(
        read_state_dict(tmp_path / "b.pth")["x"].astype(np.float32), base.bfloat16().float().numpy()
    )


def test_torch_file_with_several_entries_asks_which(torch, tmp_path):
    weights = {"module.w": torch.ones(2)}
    torch.save({"epoch": 3, "state": {"ema": weights}, "opt": {}}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"`key`, one of: state, opt"):
        read_state_dict(tmp_path / "a.pt")
    with pytest.raises(ValueError, match="no entry 'emma'"):
        read_state_dict(tmp_path / "a.pt", key="emma")
    np.testing.assert_array_equal(read_state_dict(tmp_path / "a.pt", key="state.ema")["w"], [1, 1])


def test_torch_file_of_a_whole_module_is_refused(torch, tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"refers to torch\.nn.*state_dict"):
        read_state_dict(tmp_path / "a.pt")


def test_truncated_and_damaged_torch_files_are_errors(torch, tmp_path):
    torch.save({"x": torch.arange(1000.0)}, tmp_path / "a.pt")
    whole = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[:-200])
    with pytest.raises(ValueError, match=r"cut\.pt is truncated"):
        read_state_dict(tmp_path / "cut.pt")
    middle = len(whole) // 2
    (tmp_path / "bad.pt").write_bytes(whole[:middle] + b"\xff\xff\x01" + whole[middle + 3 :])
    with pytest.raises(ValueError, match=r"bad\.pt cannot be read"):
        read_state_dict(tmp_path / "bad.pt")


class RunsTouch:
    """Pickles to a call that would make a file."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def write_torch_zip(path, data_pkl: bytes):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", data_pkl)
        archive.writestr("a/byteorder", "little")
        archive.writestr("a/data/0", np.arange(4, dtype=np.float32).tobytes())


def tensor_pickle(shape: bytes, strides: bytes, tail: bytes = b"") -> bytes:
    """{"w": tensor of the 4 floats above}, in opcodes (text protocol, as pickletools shows them)."""
    storage = b"(Vstorage\nctorch\nFloatStorage\nV0\nVcpu\nI4\ntQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n" + tail + b"(" + storage
    return b"\x80\x02}Vw\n" + tensor + b"I0\n" + shape + strides + b"I00\nNtRs."


def test_handmade_torch_file(tmp_path):
    write_torch_zip(tmp_path / "a.pt", tensor_pickle(b"(I2\nI2\nt", b"(I1\nI2\nt"))
    np.testing.assert_array_equal(read_state_dict(tmp_path / "a.pt")["w"], [[0, 2], [1, 3]])


def test_malicious_pickles_are_refused_and_do_nothing(tmp_path):
    victim = tmp_path / "made"
    attacks = {
        "call": pickle.dumps({"w": RunsTouch(victim)}),
        "system": b"cos\nsystem\n(Vtouch " + str(victim).encode() + b"\ntR.",
        "eval": b"cbuiltins\neval\n(V1\ntR.",
        # Writes an attribute of the one callable that may be named.
        "attribute": tensor_pickle(b"(I2\nt", b"(I1\nt", tail=b"}V__call__\nI1\nsb"),
        "beyond_end": tensor_pickle(b"(I5\nt", b"(I1\nt"),
        "huge_stride": tensor_pickle(b"(I2\nt", b"(I99999999\nt"),
        "repeated": tensor_pickle(b"(I99999999\nt", b"(I0\nt"),
        "negative_stride": tensor_pickle(b"(I2\nt", b"(I-1\nt"),
        "no_storage": b"\x80\x02}Vw\nctorch._utils\n_rebuild_tensor_v2\n(I1\nI0\n(I1\nt(I1\nttRs.",
    }
    for name, data in attacks.items():
        write_torch_zip(tmp_path / f"{name}.pt", data)
        with pytest.raises(ValueError, match=f"{name}.pt cannot be read as tensors"):
            read_state_dict(tmp_path / f"{name}.pt")
    assert not victim.exists()
    write_torch_zip(tmp_path / "after.pt", tensor_pickle(b"(I4\nt", b"(I1\nt"))
    np.testing.assert_array_equal(read_state_dict(tmp_path / "after.pt")["w"], [0, 1, 2, 3])


def test_npz_and_safetensors_are_read(tmp_path):
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.savez(tmp_path / "plain.npz", **{"a.weight": weight})
    np.savez(tmp_path / "golden.npz", **{"param/a.weight": weight, "out": weight, "loss": 1.0})
    save_file({"a.weight": weight}, tmp_path / "a.safetensors")
    for name in ("plain.npz", "golden.npz", "a.safetensors"):
        read = read_state_dict(tmp_path / name)
        assert read.keys() == {"a.weight"}
        np.testing.assert_array_equal(read["a.weight"], weight)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pt"])
def test_other_content_is_an_error_that_names_the_file(tmp_path, suffix):
    file = tmp_path / f"file{suffix}"
    file.write_bytes(b"not what the name says" * 9)
    with pytest.raises(ValueError, match=f"file{suffix}"):
        read_state_dict(file)
    with pytest.raises(OSError, match="absent"):
        read_state_dict(tmp_path / f"absent{suffix}")


def test_pickled_objects_in_npz_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([RunsTouch(tmp_path / "made")], object))
    with pytest.raises(ValueError, match=r"a\.npz"):
        read_state_dict(tmp_path / "a.npz")
    assert not (tmp_path / "made").exists()


def write_npy(header: str, data: bytes = b"") -> bytes:
    """A .npy file of version 1 with a header of one's own."""
    text = header.encode() + b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


def write_bombs(folder: Path) -> list[Path]:
    """Small files that announce gigabytes, or become them."""
    memo = b"\x80\x02}r\xff\xff\xff\x0f."  # Number 2^28 - 1 of the memo: 2 GB of pointers.
    length = b"\x80\x05\x96" + (2**33).to_bytes(8, "little") + b"x."
    many = b"\x80\x02}" + b"".join(
        b"V%d\n" % number + tensor_pickle(b"(I1000000\nt", b"(I1\nt")[6:-2] + b"s"
        for number in range(2000)
    )
    for name, content in (("memo", memo), ("length", length)):
        write_torch_zip(folder / f"{name}.pt", content)
    # The same 4 MB two thousand times.
    with zipfile.ZipFile(folder / "shared.pt", "w") as archive:
        archive.writestr("a/data.pkl", many + b".")
        archive.writestr("a/data/0", bytes(4_000_000))
    with zipfile.ZipFile(folder / "deflated.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", tensor_pickle(b"(I30000000\nt", b"(I1\nt"))
        archive.writestr("a/data/0", bytes(120_000_000))
    with zipfile.ZipFile(folder / "list.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + b"}" * 100_000_000 + b".")
    shape = "{'descr': '<f4', 'fortran_order': False, 'shape': (%s,), }"
    for name, size, data in (("header", 2**33, b"1234"), ("zeros", 30_000_000, bytes(120_000_000))):
        with zipfile.ZipFile(folder / f"{name}.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("w.npy", write_npy(shape % size, data))
    return sorted(folder.iterdir())


READ = """
import resource, sys
from mbti_jax.interop.tensors import read_state_dict
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 64_000_000,) * 2)
for path in sys.argv[1:]:
    try:
        read_state_dict(path)
    except ValueError as error:
        print(error)
    else:
        print("was read:", path)
"""


def test_bombs_are_refused_before_they_take_memory(tmp_path):
    """In a process with 64 MB to spare."""
    bombs = write_bombs(tmp_path)
    assert len(bombs) == 7
    assert all(bomb.stat().st_size < 5_000_000 for bomb in bombs)
    result = subprocess.run(
        [sys.executable, "-c", READ, *map(str, bombs)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == len(bombs)
    for bomb, line in zip(bombs, lines, strict=True):
        assert line.startswith(f"{bomb} ")
        assert "cannot be read as tensors" in line or "no complete .npz file" in line


def test_weights_that_compress_and_tensors_that_share_bytes_are_read(tmp_path):
    weights = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    np.savez_compressed(tmp_path / "a.npz", w=weights, zeros=np.zeros((500, 500), np.float32))
    assert read_state_dict(tmp_path / "a.npz").keys() == {"w", "zeros"}
    tied = tensor_pickle(b"(I4\nt", b"(I1\nt")[6:-2]
    content = b"\x80\x02}" + b"".join(b"V%d\n" % n + tied + b"s" for n in range(3)) + b"."
    write_torch_zip(tmp_path / "a.pt", content)
    read = read_state_dict(tmp_path / "a.pt")
    assert [value.tolist() for value in read.values()] == [[0, 1, 2, 3]] * 3
