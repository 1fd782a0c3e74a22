"""The C kernels, compiled for this machine by its own compiler, once.

Nothing is shipped as a binary: the `.c` files of `csrc` become one library, by the compiler found
(cc, gcc or clang), for exactly this processor (`variants.py`), in the user's cache, under a name
made of their text, the compiler and the processor; from then on it is only loaded. Compiled by gcc
it uses the OpenMP runtime that torch's wheels for Linux bring, so both share one pool of threads;
another compiler's runtime has a pool of its own. Whatever is missing (a compiler, a place to write)
is told in one line, and everything goes on through torch's operators.
"""

import contextlib
import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regpt.fast.kernels.variants import Variant, chosen_variant, processor
from regpt.system.cache_folder import cache_folder, file_lock, private_folder, require_own
from regpt.system.errors import UserError
from regpt.system.files import new_file

SOURCES = Path(__file__).parent / "csrc"
OPENMP = () if sys.platform == "darwin" else ("-fopenmp",)
"""Apple's compiler has no OpenMP: one thread there."""
FLAGS = ("-O3", "-ffp-contract=off", *OPENMP, "-shared", "-fPIC")
COMPILERS = ("cc", "gcc", "clang")
PATIENCE_SECONDS = 60.0
UNUSED_SECONDS = 30 * 86_400.0
"""After so long without use, a library of another version goes when a new one is made."""


def compile_into(folder: Path, variant: Variant | None = None) -> Path:
    """The compiled library, for this machine's best variant or the given one.

    It is compiled now if it is not there.

    Raises:
        UserError: there is no compiler, it fails, or the folder cannot be written or is shared.
    """
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise UserError(f"no C compiler ({', '.join(COMPILERS)}) is installed")
    name, abilities = processor()
    flags = (*(variant or chosen_variant()).flags, *FLAGS)
    told = [compiler, *flags, name, " ".join(sorted(abilities))]
    sources = sorted(SOURCES.glob("*.[ch]"))
    parts = [*(part.encode() for part in told), *(source.read_bytes() for source in sources)]
    digest = hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
    path = private_folder(folder) / f"decode-{digest}.so"
    with contextlib.suppress(OSError):  # when it was last used
        os.utime(path)
    if not path.exists():
        try:
            with file_lock(folder / "decode.so"):
                if not path.exists():  # no other process has compiled it meanwhile
                    compile_to(path, compiler, flags)
                    remove_old(folder)
        except OSError as error:
            raise UserError(f"{path}: cannot be made ({error})") from None
    require_own(path)
    return path


def compile_to(path: Path, compiler: str, flags: Sequence[str]) -> None:
    """Make the library. Raises UserError if the compiler fails or the folder takes no file."""
    with new_file(path) as hidden:
        units = map(str, sorted(SOURCES.glob("*.c")))
        command = [compiler, *flags, *units, "-o", str(hidden), "-lm"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            raise UserError(f"{compiler} did not finish in {PATIENCE_SECONDS:.0f} s") from None
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no message"]
            first = next((line for line in lines if "error" in line), lines[0])
            raise UserError(f"{compiler} cannot compile the kernel ({first})")


def remove_old(folder: Path) -> None:
    """Remove libraries of other versions that nobody has loaded for `UNUSED_SECONDS`.

    The caller holds the folder's lock, so none is being made. Those of the first versions lie one
    folder higher. A process that still runs one keeps it.
    """
    for path in (*folder.glob("decode-*.so"), *folder.parent.glob("decode-*.so")):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > UNUSED_SECONDS:
                path.unlink()


class Pointer(ctypes.c_void_p):
    """An argument that is a place in memory: a tensor's numbers, or what `c_void_p` takes."""

    @classmethod
    def from_param(cls, value: Any) -> Any:
        """What ctypes hands over for it."""
        return super().from_param(value.data_ptr() if hasattr(value, "data_ptr") else value)


PLACE, COUNT, NUMBER = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
SIGNATURES = {
    "regpt_decode": (Pointer, Pointer),
    "regpt_pack_int8": (Pointer, COUNT, COUNT, Pointer, Pointer, Pointer, COUNT),
    "regpt_start": (),
    "regpt_adamw": (COUNT, *[Pointer] * 6, COUNT),
    "regpt_squares": (COUNT, Pointer, COUNT),
    "regpt_muon": (COUNT, Pointer, Pointer, COUNT, COUNT, Pointer, COUNT),
    "regpt_words": (Pointer, COUNT, Pointer),
    "regpt_portable": (COUNT, Pointer, COUNT, COUNT, COUNT),
    "regpt_draw": (Pointer,),
    "regpt_norm": (COUNT, COUNT, *[Pointer] * 5, NUMBER, Pointer, Pointer, COUNT),
    "regpt_norm_again": (COUNT, COUNT, *[Pointer] * 5, COUNT),
    "regpt_norm_backward": (COUNT, COUNT, *[Pointer] * 8, COUNT),
    "regpt_add": (COUNT, *[Pointer] * 3, COUNT),
    "regpt_gelu": (COUNT, Pointer, Pointer, COUNT),
    "regpt_gelu_backward": (COUNT, COUNT, *[Pointer] * 4, COUNT),
    "regpt_row_sums": (COUNT, COUNT, *[Pointer] * 3, COUNT),
    "regpt_causal_softmax": (*[COUNT] * 4, Pointer, COUNT),
    "regpt_causal_softmax_backward": (*[COUNT] * 4, Pointer, Pointer, COUNT),
    "regpt_loss": (*[COUNT] * 3, Pointer, Pointer, COUNT, NUMBER, Pointer, COUNT, Pointer, COUNT),
}
"""The arguments of each function of the library."""
RESULTS = {
    "regpt_start": ctypes.c_char_p,
    "regpt_squares": ctypes.c_double,
}
"""What the functions return that return numbers."""
CAN_FAIL = ("regpt_decode", "regpt_loss")
"""Those that return how it went, as vectors.h numbers it."""
DONE, OUTSIDE = range(2)


def fields(kind: Any, names: str) -> tuple[tuple[str, Any], ...]:
    """So many fields of one kind, for a `ctypes.Structure`."""
    return tuple((name, kind) for name in names.split())


def raise_failure(result: int, function: Any, arguments: tuple[Any, ...]) -> int:
    """Turn what a function of the library could not do into one line."""
    if result == OUTSIDE:
        raise UserError("a token id is outside the model's vocabulary: check the ids given")
    return result


def load_library() -> ctypes.CDLL:
    """The kernels' library.

    Raises:
        UserError: in one line, why there is none on this machine.
    """
    found = found_library()
    if isinstance(found, str):
        raise UserError(found)
    return found


TRIED: dict[str, str | None] = {}
"""Groups of kernels that were asked for in this process; what is wrong with each, in one line."""


def unavailable_reason(group: str = "", is_right: Callable[[], bool] = lambda: True) -> str | None:
    """Why kernels are not used on this machine, in one line; None where they can be.

    A compiler can be wrong, and so can a library that lies in the cache. So before a group of
    kernels is used, `is_right` tries it once on a few numbers, against torch's operators.
    """
    found = found_library()
    if isinstance(found, str):
        return found
    if group not in TRIED:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            wrong = None if is_right() else f"the compiled kernels' numbers are wrong: {group}"
        TRIED[group] = wrong
    return TRIED[group]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers for `is_right`, the same each time; nobody's generator is touched."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def near(found: Tensor, expected: Tensor, error: float) -> bool:
    """Within `error` of the norm; never, if one is no number."""
    return bool((found.float() - expected).norm() <= error * expected.norm())


def refused() -> str | None:
    """What `unavailable_reason` has said in this process, if anything; compiles nothing."""
    if found_library.cache_info().currsize and isinstance(found := found_library(), str):
        return found
    return next(filter(None, TRIED.values()), None)


@lru_cache(maxsize=1)
def found_library() -> ctypes.CDLL | str:
    """The library, or why there is none: a compiler that failed once is not asked again."""
    try:
        return open_library()
    except (UserError, OSError) as error:
        return str(error)


def open_library() -> ctypes.CDLL:
    """Compile what is not compiled, load it, and declare its functions."""
    if not torch.backends.openmp.is_available():
        raise UserError("the C kernels are written for a torch with OpenMP")
    path = compile_into(cache_folder() / "kernels")
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise UserError(f"the compiled kernels {path} cannot be loaded ({error})") from None
    for name, arguments in SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, RESULTS.get(name)
        if name in CAN_FAIL:
            function.restype, function.errcheck = ctypes.c_int, raise_failure
    library.regpt_start()
    return library
