"""Where we run: device, compute dtype, threads, rank. Found once, then passed as a value.

The precision policy is one small table, because guessing it wrong is the field's most frequent
support question (nanoGPT#84, #654; build-nanogpt#16):

| device | compute dtype when asked for "auto" |
|---|---|
| cuda, compute capability >= 8.0 | bfloat16 autocast |
| cuda, older | float32 (bfloat16 would be emulated; float16 needs a loss scaler we do not keep) |
| mps | float32 |
| cpu with bfloat16 dot products (AVX512-BF16, AMX) | bfloat16 autocast |
| cpu, other | float32 |

On request, `fp32` and `bf16` anywhere, and `tf32` on cuda from 8.0 on: float32 whose matrix
products read 10 bits of each mantissa (the lecture's first speed-up; bfloat16 reads 7 and is faster
still). Parameters, gradients and optimizer state stay float32 everywhere.
"""

import contextlib
import os
from dataclasses import dataclass

import torch

from regpt.system.errors import UserError

MOST_THREADS = 4096
"""More than any machine has; torch takes a number of 32 bits."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
WITH_BF16 = ("amx", "avx512")
"""What `REGPT_CPU` may name for a processor that multiplies bfloat16."""


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """The place a computation runs in: a value, passed down, never looked up again."""

    device: torch.device
    dtype: torch.dtype
    """Compute dtype of the matrix products; float32 means no autocast."""
    threads: int
    tf32: bool = False
    """Whether the products of float32 matrices are TF32 (a setting of the whole process)."""
    rank: int = 0
    world_size: int = 1

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """The autocast context of this runtime; does nothing for float32."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def synchronize(self) -> None:
        """Wait until the device has finished what it was given (for honest timing)."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    @property
    def dtype_name(self) -> str:
        """What one asks for to compute so: fp32, tf32 or bf16."""
        name = next(name for name, value in DTYPES.items() if value == self.dtype)
        return "tf32" if self.tf32 else name

    def describe(self) -> str:
        where = str(self.device)
        if self.device.type == "cuda":
            where += f" ({torch.cuda.get_device_name(self.device)})"
        elif self.device.type == "cpu":
            where += f" ({self.threads} thread{'s' if self.threads != 1 else ''})"
        return f"{where}, {self.dtype_name}"


def number_of(name: str, default: str) -> int:
    """A number that torchrun sets in the environment."""
    value = os.environ.get(name, default)
    if not value.isdecimal():
        raise UserError(f"the environment has {name}={value!r}, not a number: unset it")
    return int(value)


def find_device(request: str = "auto") -> torch.device:
    """cuda, else mps, else cpu; or the device asked for, if this machine has it."""
    if request == "auto":
        if torch.cuda.is_available():
            # torchrun numbers the processes of a machine; each takes its own device
            return torch.device("cuda", number_of("LOCAL_RANK", "0"))
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(request)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"device {request!r} is not one of auto, cpu, cuda, cuda:N, mps")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise UserError(f"device {request!r}: this machine has {count} CUDA devices; use cpu")
    elif device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("device 'mps' is not available on this machine; use cpu")
    return device


def gains_from_bf16(device: torch.device) -> bool:
    """Whether this device multiplies bfloat16 in hardware (the table above)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        if (os.environ.get("REGPT_CPU") or "amx") not in WITH_BF16:
            return False  # asked to be a processor that has less
        probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)
    return False


def find_dtype(request: str, device: torch.device) -> torch.dtype:
    """The compute dtype asked for: auto, fp32, tf32 (computed on float32) or bf16."""
    if request == "auto":
        return torch.bfloat16 if gains_from_bf16(device) else torch.float32
    if request == "tf32":
        if device.type != "cuda" or not gains_from_bf16(device):
            raise UserError("dtype 'tf32' needs cuda of compute capability 8.0 or more; use fp32")
        return torch.float32
    if request not in DTYPES:
        raise UserError(f"dtype {request!r} is not one of auto, tf32, {', '.join(DTYPES)}")
    return DTYPES[request]


def find_runtime(
    device: str = "auto", *, dtype: str = "auto", threads: int | None = None
) -> Runtime:
    """Look at the machine once. `threads` also sets torch's intra-op thread count."""
    if threads is not None:
        if threads < 1:
            raise UserError(f"threads must be at least 1, got {threads}")
        if threads > MOST_THREADS:
            raise UserError(f"threads must be at most {MOST_THREADS}, got {threads}")
        torch.set_num_threads(threads)
    found = find_device(device)
    compute = find_dtype(dtype, found)
    if found.type == "cuda":
        torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
    return Runtime(
        device=found,
        dtype=compute,
        threads=torch.get_num_threads(),
        tf32=dtype == "tf32",
        rank=number_of("RANK", "0"),
        world_size=number_of("WORLD_SIZE", "1"),
    )


def compute_dtype(device: torch.device) -> torch.dtype:
    """The dtype matrix products run in here and now: autocast's, or float32."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return torch.float32
