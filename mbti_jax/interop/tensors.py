"""Named tensors out of files that others wrote: PyTorch's, safetensors, NumPy's.

PyTorch is not needed, and nothing in a file is ever executed. A `.pt` file is a zip archive of raw
tensor bytes and one pickle that says which bytes are which tensor. The pickle is read by an
unpickler that knows only what tensors and dicts are made of, and that makes immutable records of
them; any other class or function in it is refused.
"""

import math
import os
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import ml_dtypes
import numpy as np
from safetensors import SafetensorError
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


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except (zipfile.BadZipFile, ValueError, EOFError) as error:
        raise ValueError(f"{path} is no complete .npz file of plain arrays: {error}") from error
    prefixed = {k for k in arrays if k.startswith(_GOLDEN_PREFIX)}
    return {k.removeprefix(_GOLDEN_PREFIX): arrays[k] for k in prefixed or arrays}


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
                byteorder = archive.read(f"{root}byteorder")
                if byteorder != b"little":
                    raise ValueError(f"{path} has {byteorder!r} byte order; only little is read")
            with archive.open(index) as file:
                content = _unpickle(cast(BinaryIO, file))
            refs = _select(content, key, path)
            return {
                name: _to_array(ref, archive.read(f"{root}data/{ref.storage.record}"))
                for name, ref in refs.items()
            }
    except (zipfile.BadZipFile, pickle.UnpicklingError, EOFError, KeyError) as error:
        raise ValueError(f"{path} cannot be read as tensors: {error}") from error


def _unpickle(file: BinaryIO) -> Any:
    try:
        return _TensorUnpickler(file).load()
    except Exception as error:  # A damaged or hostile pickle may fail in any way.
        raise pickle.UnpicklingError(str(error)) from error


def _select(content: Any, key: str, path: Path) -> Mapping[str, _Tensor]:
    """The mapping of names to tensors at `key`; a ValueError lists what there is instead."""
    for part in key.split(".") if key else ():
        if not isinstance(content, Mapping) or part not in content:
            raise ValueError(f"{path} has no entry {key!r}")
        content = content[part]
    where = f"{path}, entry {key!r}," if key else f"{path}"
    if not isinstance(content, Mapping):
        raise ValueError(f"{where} holds a {type(content).__name__}, not named tensors")
    if not all(isinstance(value, _Tensor) for value in content.values()):
        nested = [str(k) for k, value in content.items() if isinstance(value, Mapping)]
        raise ValueError(
            f"{where} holds more than named tensors; name the entry to read with `key`, "
            f"one of: {', '.join(nested) or '(there is none)'}"
        )
    return content


def _to_array(ref: _Tensor, data: bytes) -> np.ndarray:
    dtype = np.dtype(ml_dtypes.bfloat16 if ref.storage.dtype == "bfloat16" else ref.storage.dtype)
    if len(data) % dtype.itemsize:
        raise pickle.UnpicklingError(f"{len(data)} bytes are no whole number of {dtype} values")
    values = np.frombuffer(data, dtype)
    if len(ref.shape) != len(ref.strides) or min((ref.offset, *ref.shape, *ref.strides)) < 0:
        raise pickle.UnpicklingError(f"impossible tensor {ref}")
    if 0 in ref.shape:
        return np.empty(ref.shape, dtype)
    last = ref.offset + sum((n - 1) * s for n, s in zip(ref.shape, ref.strides, strict=True))
    if last >= len(values) or math.prod(ref.shape) > len(values):
        raise pickle.UnpicklingError(f"tensor {ref} reaches beyond its {len(values)} values")
    strides = [stride * dtype.itemsize for stride in ref.strides]
    view = np.lib.stride_tricks.as_strided(values[ref.offset :], ref.shape, strides)
    return np.ascontiguousarray(view).reshape(ref.shape)
