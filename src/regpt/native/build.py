"""The C kernel, compiled for this machine by its own compiler, once.

Nothing is shipped as a binary: `decode.c` is compiled with the C compiler found (cc, gcc or clang)
for exactly this processor, into the user's cache, under a name made of its source, the compiler and
the processor; from then on it is only loaded. It uses the OpenMP runtime that torch has loaded, so
both share one pool of threads. Whatever is missing (a compiler, AVX-512, a place to write) is told
in one line, and decoding goes on through torch's operators.
"""

import ctypes
import hashlib
import platform
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path

from regpt.atomic import new_file
from regpt.errors import UserError

SOURCES = ("decode.c", "adamw.c", "words.c", "products.h", "vectors.h")
FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-fopenmp", "-shared", "-fPIC")
COMPILERS = ("cc", "gcc", "clang")
NEEDED = ("avx512f", "avx512bw", "avx512vl", "avx512dq")
PATIENCE_SECONDS = 120.0


def processor() -> tuple[str, set[str]]:
    """Its name and what it can do, as Linux tells; nothing elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor(), set()
    facts = {name.strip(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
    name = " ".join(facts.get(key, "") for key in ("model name", "cpu family", "model", "stepping"))
    return name, set(facts.get("flags", "").split())


def cache_folder() -> Path:
    """Where compiled kernels are kept."""
    return Path.home() / ".cache" / "regpt"


def compile_into(folder: Path) -> Path:
    """The compiled library; compiled now if it is not there.

    Raises:
        UserError: there is no compiler, it fails, or the folder cannot be written.
    """
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise UserError(f"no C compiler ({', '.join(COMPILERS)}) is installed")
    here = Path(__file__).parent
    name, abilities = processor()
    told = [compiler, *FLAGS, name, " ".join(sorted(abilities))]
    parts = [
        *(part.encode() for part in told),
        *((here / source).read_bytes() for source in SOURCES),
    ]
    digest = hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
    path = folder / f"decode-{digest}.so"
    if path.exists():
        return path
    with new_file(path) as hidden:
        units = [str(here / source) for source in SOURCES if source.endswith(".c")]
        command = [compiler, *FLAGS, *units, "-o", str(hidden), "-lm"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            raise UserError(f"{compiler} did not finish in {PATIENCE_SECONDS:.0f} s") from None
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[0]
            raise UserError(f"{compiler} cannot compile the kernel ({last})")
    return path


@lru_cache(maxsize=1)
def load_library() -> ctypes.CDLL:
    """The kernel's library.

    Raises:
        UserError: in one line, why there is none on this machine.
    """
    import torch  # its OpenMP runtime must be the one that is found

    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.openmp.is_available():
        raise UserError("the C kernel is written for x86-64 with OpenMP")
    absent = [ability for ability in NEEDED if ability not in processor()[1]]
    if absent:
        raise UserError(f"this processor lacks {', '.join(absent)}")
    path = compile_into(cache_folder())
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise UserError(f"the compiled kernel {path} cannot be loaded ({error})") from None
    library.regpt_decode.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
    library.regpt_decode.restype = None
    library.regpt_pack_int8.argtypes = (
        ctypes.c_void_p,
        *(ctypes.c_int64,) * 2,
        *(ctypes.c_void_p,) * 3,
        ctypes.c_int64,
    )
    library.regpt_pack_int8.restype = None
    library.regpt_supports.argtypes = (ctypes.c_int64,)
    library.regpt_supports.restype = ctypes.c_int
    pointer = ctypes.c_void_p
    library.regpt_adamw.argtypes = (ctypes.c_int64, *[pointer] * 6, ctypes.c_int64)
    library.regpt_adamw.restype = None
    library.regpt_squares.argtypes = (ctypes.c_int64, pointer, ctypes.c_int64)
    library.regpt_squares.restype = ctypes.c_double
    library.regpt_words.argtypes = (pointer, ctypes.c_int64, pointer)
    library.regpt_words.restype = None
    return library
