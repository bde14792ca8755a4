"""What ends a command, in one sentence with the way out."""

import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mbti_jax.fields import FieldError
from mbti_jax.rois.given import WHICH_ROI

_SHARED_MEMORY = "/dev/shm"
# Below this many free bytes a disk is full.
_FULL = 2**20


def explain(error: BaseException, config: Mapping[str, Any], workdir: str) -> str | None:
    """The sentence that ends a command, or None for what nobody foresaw.

    Args:
        error: what the command raised.
        config: of the command.
        workdir: the folder that it writes to.
    """
    if isinstance(error, FieldError):
        return f"FieldError: --config.{error.field} {error.problem}"
    chain = [*_chain(error)]
    for kind in (_full_disk, _open_files, _memory, _no_access):
        sentence = kind(chain, config, workdir)
        if sentence is not None:
            return sentence
    # Raised for the user to read.
    if isinstance(error, ValueError | OSError):
        sentence = f"{type(error).__name__}: {error}"
        if "roi_labels" in config:
            sentence = sentence.replace(WHICH_ROI, f"{WHICH_ROI}, --config.roi_labels=edema")
        return sentence
    return _no_device()


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what caused it."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _system_error(chain: list[BaseException], *numbers: int) -> str | None:
    """The file that an error of the operating system with one of these numbers names, "" for none."""
    for error in chain:
        if isinstance(error, OSError) and error.errno in numbers:
            return str(error.filename or "")
        # Libraries in C++ only pass the text on.
        if any(os.strerror(number) in str(error) for number in numbers):
            return ""
    return None


def _full_disk(chain: list[BaseException], config: Mapping[str, Any], workdir: str) -> str | None:
    file = _system_error(chain, errno.ENOSPC, errno.EDQUOT)
    if file is None:
        return None
    if file.startswith(_SHARED_MEMORY) or (not file and _is_full(_SHARED_MEMORY)):
        return (
            f"the shared memory {_SHARED_MEMORY} is full: free it or make it larger (in a container: "
            "--shm-size=1g), or use a single process (--config.num_workers=1 of the data command)"
        )
    folder = os.path.dirname(file) or workdir or config.get("data_dir") or os.getcwd()
    return (
        f"no space left on the disk of {os.path.abspath(folder)} (or its quota is used up): free some, "
        "or choose a folder on another disk with --workdir. What was complete is kept: the same "
        "command makes what is missing"
    )


def _is_full(folder: str) -> bool:
    try:
        state = os.statvfs(folder)
    except OSError:
        return False
    return shutil.disk_usage(folder).free < _FULL or (state.f_files > 0 and state.f_ffree == 0)


def _open_files(chain: list[BaseException], config: Mapping[str, Any], workdir: str) -> str | None:
    if _system_error(chain, errno.EMFILE, errno.ENFILE) is None:
        return None
    fewer = [name for name in ("num_workers",) if name in config]
    if "num_threads" in config.get("data", {}):
        fewer.append("data.num_threads")
    options = "".join(f", or lower --config.{name}" for name in fewer)
    return (
        "too many files are open at once for this system's limit: raise it with `ulimit -n 4096`"
        f"{options}"
    )


def _no_access(chain: list[BaseException], config: Mapping[str, Any], workdir: str) -> str | None:
    error = chain[0]
    file = getattr(error, "filename", None)
    if not isinstance(error, OSError) or not file:
        return None
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return (
            f"{file}: {error.strerror}; let this user read and write there, or choose another folder "
            "with --workdir"
        )
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return f"{file} is a file where a folder is needed; choose another folder with --workdir"
    # What some file systems (/proc, an automounter's) answer where a folder is to be made.
    made = Path(workdir).absolute()
    if error.errno == errno.ENOENT and made.is_relative_to(Path(file).absolute()):
        return f"no folder can be made at {file}; choose another one with --workdir"
    return None


def _memory(chain: list[BaseException], config: Mapping[str, Any], workdir: str) -> str | None:
    for error in chain:
        text = str(error)
        on_device = "RESOURCE_EXHAUSTED" in text or "Out of memory" in text
        if isinstance(error, MemoryError) or on_device:
            break
    else:
        return None
    where = "the device" if on_device else "this machine"
    options = [f"lower --config.{name}" for name in ("batch_size", "num_workers") if name in config]
    if "accumulation" in config:
        options.append("raise --config.accumulation, which leaves the result as it is")
        options.append("set --config.model.remat=True")
    ways = ", or ".join(options) or "close other programs"
    reason = f" ({text.splitlines()[0][:200]})" if text else ""
    return f"out of memory on {where}{reason}: {ways}"


def _no_device() -> str | None:
    """Whether JAX finds no device at all, whatever error that came out as."""
    import jax

    try:
        jax.devices()
    except Exception as error:
        reason = (str(error).splitlines() or ["there is none"])[0][:200]
        asked = os.environ.get("JAX_PLATFORMS", "")
        way = f"unset JAX_PLATFORMS (it is {asked!r})" if asked else "set JAX_PLATFORMS=cpu"
        return (
            f"JAX finds no device of the kind asked for ({reason}): {way}, or install JAX for this "
            "machine's accelerator (in the checkout: pip install -c constraints.txt -e '.[cuda13]')"
        )
    return None
