"""Where randomness comes from: one seed for each thing of a run that draws, by its name.

    seed_of(recipe.seed, "phase3", "train")

The same parts give the same seed on every machine; nothing else counts.
"""

from __future__ import annotations

import hashlib
from typing import Any


def seed_of(*parts: Any) -> int:
    """Returns a 31-bit seed that depends on all parts and on nothing else."""
    return (
        int.from_bytes(hashlib.sha256(" ".join(map(str, parts)).encode()).digest()[:4], "little")
        >> 1
    )
