"""Named tensors out of files that others wrote: PyTorch's, safetensors, NumPy's.

PyTorch is not needed, and nothing in a file is ever executed. A `.pt` file is a zip archive of raw
tensor bytes and one pickle that says which bytes are which tensor. The pickle is read by an
unpickler that knows only what tensors and dicts are made of, and that makes immutable records of
them; any other class or function in it is refused.
"""

import io
import math
import os
import pickle
import pickletools
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file

_STORAGE_DTYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
# Trained weights hardly compress. Smaller files than _MIN_BYTES harm nobody.
_MAX_COMPRESSION, _MIN_BYTES = 16, 2**26
_MAX_PICKLE_BYTES, _MAX_OPCODES = 2**24, 10**6
# Of a message that a file can make.
_MAX_TEXT = 500
_GOLDEN_PREFIX = "param/"
_DATA_PARALLEL_PREFIX = "module."


def read_state_dict(path: str | os.PathLike, key: str = "") -> dict[str, np.ndarray]:
    """The named tensors in a file.

    Args:
        path: `.pt`, `.pth`, `.safetensors` or `.npz`. Where an `.npz` has names `param/NAME`, only
            those are taken. The prefix `module.` of data-parallel models is removed.
        key: for `.pt` and `.pth` files that hold several things, which of them; dots lead deeper.

    Returns:
        Arrays by name, in the dtypes of the file.

    Raises:
        ValueError: the file is damaged, holds something else than named tensors, or more than that.
        OSError: it cannot be opened.
    """
    path = Path(path)
    if path.suffix in (".pt", ".pth"):
        tensors = _read_torch(path, key)
    elif path.suffix == ".safetensors":
        tensors = read_safetensors(path)
    elif path.suffix == ".npz":
        tensors = _read_npz(path)
    else:
        raise ValueError(f"{path}: need a .pt, .pth, .safetensors or .npz file")
    if not tensors:
        raise ValueError(f"{path} holds no tensors")
    if all(name.startswith(_DATA_PARALLEL_PREFIX) for name in tensors):
        tensors = {k.removeprefix(_DATA_PARALLEL_PREFIX): v for k, v in tensors.items()}
    return tensors


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file; ValueError if it is truncated or of another kind."""
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is no complete safetensors file: {error}") from error


def safetensors_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes in the header of a safetensors file; ValueError as `read_safetensors`."""
    try:
        with safe_open(path, "np") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is no complete safetensors file: {error}") from error


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _check_unpacked(path, sum(member.file_size for member in members))
            for member in members:
                with archive.open(member) as file:
                    announced = _announced_bytes(file)
                if announced > member.file_size:
                    raise ValueError(f"{member.filename} announces {announced:,} bytes")
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, NotImplementedError) as error:
        raise ValueError(f"{path} is no complete .npz file of plain arrays: {error}") from error
    prefixed = {k for k in arrays if k.startswith(_GOLDEN_PREFIX)}
    return {k.removeprefix(_GOLDEN_PREFIX): arrays[k] for k in prefixed or arrays}


def _announced_bytes(file: IO[bytes]) -> int:
    """The size of the array in a .npy file, by its header."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0
    if version != (1, 0):
        read = np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return math.prod(shape) * dtype.itemsize


def _check_unpacked(path: Path, size: int) -> None:
    """Raises a BadZipFile where a file makes far more of itself than weights do."""
    own = path.stat().st_size
    if size > max(_MIN_BYTES, _MAX_COMPRESSION * own):
        raise zipfile.BadZipFile(
            f"it has {own:,} bytes and would become {size:,}, and weights do not compress so well"
        )


class _Storage(NamedTuple):
    dtype: str
    record: str


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _StateDict(dict):
    """Stands in for OrderedDict; what else torch attaches to a state dict is dropped."""

    __slots__ = ()

    def __setstate__(self, state):
        pass


class _Callable(NamedTuple):
    """A function that the pickle may call. It could try to write attributes: tuples refuse."""

    function: Callable[..., Any]

    def __call__(self, *args):
        return self.function(*args)


def _make_tensor(storage, offset, shape, strides, *_):
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("a tensor without storage")
    return _Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


_ALLOWED = {
    ("collections", "OrderedDict"): _Callable(lambda *items: _StateDict(*items)),
    ("torch._utils", "_rebuild_tensor_v2"): _Callable(_make_tensor),
    ("torch._utils", "_rebuild_parameter"): _Callable(lambda tensor, *_: tensor),
    **{("torch", storage): dtype for storage, dtype in _STORAGE_DTYPES.items()},
}


class _TensorUnpickler(pickle.Unpickler):
    """Makes `_Tensor` records, containers and plain values; anything else is an error."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it refers to {module}.{name}, and only tensors are read. Load it where you trust it "
                "and save model.state_dict() by itself"
            ) from None

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, record, *_ = pid
        if kind != "storage" or not isinstance(dtype, str):
            raise pickle.UnpicklingError(f"it refers to unknown outside data {kind!r}")
        return _Storage(dtype, str(record))


def _read_torch(path: Path, key: str) -> dict[str, np.ndarray]:
    if not zipfile.is_zipfile(path):
        path.open("rb").close()  # A missing file is an OSError of its own.
        raise ValueError(
            f"{path} is truncated, or not in the zip format that PyTorch writes since 1.6; "
            "torch.load it and torch.save its state dict again"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            index = next((n for n in archive.namelist() if n.endswith("data.pkl")), None)
            if index is None:
                raise ValueError(f"{path} is a zip archive that PyTorch did not write")
            root = index.removesuffix("data.pkl")
            if f"{root}byteorder" in archive.namelist():
                with archive.open(f"{root}byteorder") as file:
                    byteorder = file.read(16)
                if byteorder != b"little":
                    raise ValueError(f"{path} has {byteorder!r} byte order; only little is read")
            if archive.getinfo(index).file_size > _MAX_PICKLE_BYTES:
                raise pickle.UnpicklingError("its list of tensors is too long")
            refs = _select(_unpickle(archive.read(index)), key, path)
            records = {name: f"{root}data/{ref.storage.record}" for name, ref in refs.items()}
            sizes = {record: archive.getinfo(record).file_size for record in records.values()}
            _check_unpacked(path, sum(sizes.values()))
            # Tensors may share bytes, as tied weights do.
            _check_unpacked(path, sum(_num_bytes(ref) for ref in refs.values()))
            return {name: _to_array(ref, archive.read(records[name])) for name, ref in refs.items()}
    except (
        zipfile.BadZipFile,
        zlib.error,
        NotImplementedError,  # What zipfile raises for a compression that it does not know.
        pickle.UnpicklingError,
        EOFError,
        KeyError,
    ) as error:
        raise ValueError(f"{path} cannot be read as tensors: {error}") from error


def _unpickle(content: bytes) -> Any:
    try:
        # A number of the memo makes room for all below it, and a length for what should follow: of
        # the first there are fewer than bytes, and `genops` finds the second.
        for number, (opcode, argument, _) in enumerate(pickletools.genops(content)):
            if number == _MAX_OPCODES or (
                "PUT" in opcode.name and int(argument or 0) > len(content)
            ):
                raise pickle.UnpicklingError(f"opcode {number} is {opcode.name} {argument}")
        return _TensorUnpickler(io.BytesIO(content)).load()
    except Exception as error:  # A damaged or hostile pickle may fail in any way.
        raise pickle.UnpicklingError(str(error)[:_MAX_TEXT]) from error


def _num_bytes(ref: _Tensor) -> int:
    return math.prod(ref.shape) * _dtype(ref).itemsize


def _dtype(ref: _Tensor) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16 if ref.storage.dtype == "bfloat16" else ref.storage.dtype)


def _select(content: Any, key: str, path: Path) -> Mapping[str, _Tensor]:
    """The mapping of names to tensors at `key`; a ValueError lists what there is instead."""
    for part in key.split(".") if key else ():
        if not isinstance(content, Mapping) or part not in content:
            raise ValueError(f"{path} has no entry {key!r}")
        content = content[part]
    where = f"{path}, entry {key!r}," if key else f"{path}"
    if not isinstance(content, Mapping):
        raise ValueError(f"{where} holds a {type(content).__name__}, not named tensors")
    tensors = [isinstance(k, str) and isinstance(v, _Tensor) for k, v in content.items()]
    if not all(tensors):
        nested = [k for k, v in content.items() if isinstance(v, Mapping) and isinstance(k, str)]
        raise ValueError(
            f"{where} holds more than named tensors; name the entry to read with `key`, "
            f"one of: {', '.join(nested[:20]) or '(there is none)'}"
        )
    return content


def _to_array(ref: _Tensor, data: bytes) -> np.ndarray:
    dtype = _dtype(ref)
    if len(data) % dtype.itemsize:
        raise pickle.UnpicklingError(f"{len(data)} bytes are no whole number of {dtype} values")
    values = np.frombuffer(data, dtype)
    if len(ref.shape) != len(ref.strides) or min((ref.offset, *ref.shape, *ref.strides)) < 0:
        raise pickle.UnpicklingError("an impossible tensor")
    if 0 in ref.shape:
        return np.empty(ref.shape, dtype)
    last = ref.offset + sum((n - 1) * s for n, s in zip(ref.shape, ref.strides, strict=True))
    if last >= len(values) or math.prod(ref.shape) > len(values):
        raise pickle.UnpicklingError(f"a tensor reaches beyond its {len(values)} values")
    strides = [stride * dtype.itemsize for stride in ref.strides]
    view = np.lib.stride_tricks.as_strided(values[ref.offset :], ref.shape, strides)
    return np.ascontiguousarray(view).reshape(ref.shape)
