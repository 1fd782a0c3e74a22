"""`regpt --version` on the kernels: the instructions they use, if all of them are right."""

from regpt.fast.decoding.topk_sampling import DRAW
from regpt.fast.kernels.build import load_library, unavailable_reason
from regpt.fast.kernels.training import GELU, LOSS, NORM, SOFTMAX
from regpt.fast.kernels.variants import chosen_variant, why_not_better
from regpt.fast.training.adamw import ADAMW
from regpt.fast.training.muon import MUON

GROUPS = (ADAMW, NORM, GELU, SOFTMAX, LOSS, DRAW, MUON)


def kernels_used() -> str:
    """Which instructions the kernels use, and why no better ones; or why there are none."""
    reasons = {group[0]: unavailable_reason(*group) for group in GROUPS}
    for reason in filter(None, reasons.values()):
        return f"none: {reason}"
    variant, used = chosen_variant(), load_library().regpt_start().decode()
    reason = why_not_better(variant)
    if variant.name == "amx" and "AMX" not in used:
        reason = "AMX is unknown to the compiler, or the system does not grant it"
    return used if reason is None else f"{used} ({reason})"
