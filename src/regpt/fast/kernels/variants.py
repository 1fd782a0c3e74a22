"""Which instructions the kernels are compiled for: the best this processor has, or those asked for.

The C is one; a variant is a set of compiler flags, and `vectors.h` takes the header that fits. What
the environment variable `REGPT_CPU` names is taken instead, for tests and reports of faults.
"""

import os
import platform
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from regpt.system.errors import UserError

X86, ARM = ("x86_64", "AMD64"), ("aarch64", "arm64")
AVX2 = ("avx2", "fma")
AVX512 = ("avx512f", "avx512bw", "avx512vl", "avx512dq")
AMX = ("amx_tile", "amx_bf16", "amx_int8")


@dataclass(frozen=True)
class Variant:
    """A way to compile the kernels."""

    name: str
    machines: tuple[str, ...]
    """What `platform.machine()` may say; anything, if empty."""
    needs: tuple[str, ...]
    """Abilities, as Linux calls them."""
    flags: tuple[str, ...]

    def lacking(self) -> str | None:
        """What this machine lacks for it, in words; None if nothing."""
        machine = platform.machine()
        if self.machines and machine not in self.machines:
            return f"this is no {self.machines[0]}, but {machine}"
        absent = [ability for ability in self.needs if ability not in processor()[1]]
        return f"this processor lacks {', '.join(absent)}" if absent else None


VARIANTS = (
    Variant("amx", X86, (*AVX512, *AMX), ("-march=native",)),
    Variant("avx512", X86, AVX512, ("-march=native", "-DREGPT_NO_AMX")),
    Variant(
        "avxvnni",
        X86,
        (*AVX2, "avx_vnni"),
        ("-march=native", "-mno-avx512f", "-DREGPT_NO_AMX"),
    ),
    Variant("avx2", X86, AVX2, ("-mavx2", "-mfma", "-mtune=native")),
    Variant("neon", ARM, (), ("-mcpu=native",)),
    Variant("portable", (), (), ("-DREGPT_PORTABLE",)),
)
"""From the best on."""


@lru_cache(maxsize=1)
def processor() -> tuple[str, frozenset[str]]:
    """Its name and what it can do, as Linux tells; nothing elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor(), frozenset()
    facts = {name.strip(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
    name = " ".join(facts.get(key, "") for key in ("model name", "cpu family", "model", "stepping"))
    return name, frozenset(facts.get("flags", facts.get("Features", "")).split())


def chosen_variant() -> Variant:
    """The best variant for this machine, or the one that `REGPT_CPU` names.

    Raises:
        UserError: the machine cannot run it, or there is none of that name.
    """
    name = os.environ.get("REGPT_CPU")
    if not name:
        return next(variant for variant in VARIANTS if variant.lacking() is None)
    for variant in VARIANTS:
        if variant.name == name:
            if reason := variant.lacking():
                raise UserError(f"REGPT_CPU={name}: {reason}")
            return variant
    names = ", ".join(variant.name for variant in VARIANTS)
    raise UserError(f"REGPT_CPU={name} is not one of {names}")


def why_not_better(variant: Variant) -> str | None:
    """Why the kernels are not compiled for more, in words; None where there is no more."""
    better = VARIANTS[: VARIANTS.index(variant)]
    reasons = {each.name: each.lacking() for each in better if platform.machine() in each.machines}
    if None in reasons.values():
        return f"REGPT_CPU={variant.name} asks for no more"
    return next((f"{reason} for {name}" for name, reason in reversed(reasons.items())), None)
