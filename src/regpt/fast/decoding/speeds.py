"""How long this machine takes to read some tokens: measured once for a model's shape, and kept.

Whether a draft pays (`drafters.py`), and which dtype is the fastest (`--dtype auto`), depends on
processor, memory, threads and shape; a rule made on one machine is wrong on the next. So a large
model reads 1, 5 and 40 tokens a few times (half a second), and the least times go into a file in
the user's cache. Another processor, torch or kernel is measured anew. No text depends on it.
"""

import contextlib
import hashlib
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from regpt.core.kv_cache import KeyValueCache
from regpt.core.model import GPT
from regpt.fast.decoding.kernel_model import KernelModel
from regpt.fast.decoding.panels import WeightFormat
from regpt.fast.kernels.build import load_library
from regpt.fast.kernels.variants import processor
from regpt.system.cache_folder import cache_folder
from regpt.system.errors import UserError
from regpt.system.files import replace_files
from regpt.system.json_text import read_json

COUNTS = (1, 5, 40)
"""Tokens read at once: one row, the lecture's five rows, and guesses of five rows being checked."""
TIMES = 6
USUAL_TOP_K = 50
LARGE = 16_000_000
"""Parameters from which on a step takes long enough to be worth choosing."""


@dataclass(frozen=True)
class Speed:
    """Seconds to read so many tokens at once, logits of all of them included."""

    seconds: tuple[float, ...]
    """For each of `COUNTS`."""

    def of(self, tokens: int) -> float:
        """Seconds for any number of tokens: along the line between the nearest two measured."""
        place = 1 if tokens <= COUNTS[1] else 2
        low, high = COUNTS[place - 1], COUNTS[place]
        share = (tokens - low) / (high - low)
        return self.seconds[place - 1] + share * (self.seconds[place] - self.seconds[place - 1])


def is_large(model: GPT) -> bool:
    """Whether a model is worth measuring."""
    return model.num_parameters() >= LARGE


def measure(kernel: KernelModel) -> Speed:
    """Read tokens and look at the clock; the least of a few times."""
    config, seconds = kernel.model.config, []
    for count in COUNTS:
        cache = KeyValueCache(config, rows=count, length=2, dtype=kernel.cache_dtype)
        idx = torch.zeros(count, 1, dtype=torch.int64)
        least = math.inf
        for _ in range(TIMES):
            cache.lengths = [1] * count
            clock = time.perf_counter()
            kernel.all_logits(idx, cache, top_k=USUAL_TOP_K)
            least = min(least, time.perf_counter() - clock)
        seconds.append(least)
    return Speed(tuple(seconds))


def facts(model: GPT, kind: WeightFormat) -> tuple[str, dict[str, object]]:
    """The name of the file that keeps a measurement, and what it holds for."""
    config = model.config
    held: dict[str, object] = {
        "dtype": kind,
        "shape": [config.n_layer, config.n_head, config.n_embd, config.vocab_size],
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "processor": processor()[0],
        "kernel": Path(load_library()._name).stem,
    }
    digest = hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()[:16]
    return f"speed-{digest}.json", held


def known_speed(model: GPT, kind: WeightFormat) -> Speed | None:
    """What was measured before; None if nothing was, or nobody can read it."""
    name, held = facts(model, kind)
    try:
        found = read_json(cache_folder() / name)
        seconds = tuple(float(found["seconds"][str(count)]) for count in COUNTS)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    sound = all(0 < second < math.inf for second in seconds)
    return Speed(seconds) if sound and found.items() >= held.items() else None


def speed_of(kernel: KernelModel) -> Speed:
    """What is known of a model; measured and kept now if nothing is."""
    known = known_speed(kernel.model, kernel.kind)
    if known is not None:
        return known
    speed = measure(kernel)
    name, held = facts(kernel.model, kernel.kind)
    table = {str(count): second for count, second in zip(COUNTS, speed.seconds, strict=True)}
    text = json.dumps(held | {"seconds": table}, indent=2) + "\n"
    with contextlib.suppress(UserError):  # a cache that cannot be written to: measured again
        replace_files(cache_folder(), {name: text.encode()})
    return speed
