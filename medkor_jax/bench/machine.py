"""What there is to measure with: the device, the peer beside ours, and the peak that useful work is a share of.

    found = look("gemma3-4b", "", environment, "gpu")          # platform, device_kind, n_devices, dtype
    has_peer, notes = find_peer_on(found["platform"], "")

Each side is asked in a process of its own, so that no device is held here. Does not measure.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

from medkor_jax.bench.checks import BenchError
from medkor_jax.bench.peer import SETTINGS, missing_packages
from medkor_jax.bench.worker import Worker, WorkerError
from medkor_jax.data.contents import cache_directory
from medkor_jax.io.embedded_model import EMBEDDED_MODEL
from medkor_jax.io.weights import open_weights

PLATFORMS = {"cpu": "cpu", "gpu": "cuda,cpu", "tpu": "tpu,cpu"}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What every case runs with, once the device is known; written into the JSON as it is. peak: FLOP/s of all devices, None: measured."""

    weights: str
    repeats: int
    platform: str
    device_kind: str
    n_devices: int
    dtype: str
    seq_len: int
    batch_size: int
    remat: tuple[str, ...]
    against: bool
    peak: float | None
    new_tokens: int
    rank: int = 16
    learning_rate: float = 1e-3

    @property
    def is_cpu(self) -> bool:
        return self.platform == "cpu"


def look(model: str, dtype: str, environment: dict[str, str], device: str) -> dict[str, Any]:
    """Returns what our side finds: platform, kind and number of devices, and the dtype it takes."""
    try:
        with Worker(
            "ours", {"weights": f"random:{model}", "dtype": dtype, "n_devices": 0}, environment
        ) as worker:
            found = worker.call("describe")
    except WorkerError as error:
        if not device or "backend" not in str(error).lower():
            raise
        found, said = {}, f" It says: {str(error)[:400]}"
    else:
        said = ""
    if device and found.get("platform") not in {"gpu": ("gpu", "cuda")}.get(
        device, (device,)
    ):  # jax falls back to a CPU without a word
        extra = {"gpu": "cuda", "tpu": "tpu"}.get(device, "")
        advice = (
            f"; is it there, and is jax installed for it (pip install 'medkor-jax[{extra}]')?"
            if extra
            else "."
        )
        raise BenchError(f"--device {device}: jax cannot use one{advice}{said}")
    return found


def find_peer_on(platform: str, against: str) -> tuple[bool, list[str]]:
    """Returns whether transformers with PEFT can run on the platform, and what to say.

    Raises: BenchError if it was asked for and cannot.
    """
    if against == "none":
        return False, ["no peer: --against none"]
    why = ""
    if missing := missing_packages():
        why = f"{', '.join(missing)} not installed; pip install 'medkor-jax[test]'"
    elif platform not in ("cpu", "gpu", "cuda"):
        why = f"transformers with PEFT does not run on a {platform} here"
    else:
        try:
            with Worker(
                "peer", {"model": "random:tiny", "device": "cpu" if platform == "cpu" else "cuda"}
            ) as worker:
                said = worker.call("describe")
        except WorkerError as error:
            why = str(error)
    if why and against:
        raise BenchError(f"--against {against}: {why}")
    if why:
        return False, [f"no peer: {why}. Ours was measured alone."]
    how = "sdpa attention; gradient checkpointing only where nothing else fits" + (
        "" if platform == "cpu" else "; bfloat16 under autocast, adapters float32"
    )
    return True, [
        f"other: transformers {said['transformers']} with PEFT {said['peft']}, torch {said['torch']}, the same sizes made at random: {how}"
    ]


def peak_words(chip: Any, settings: Settings) -> str:
    """Returns what an MFU is a share of."""
    if chip is not None:
        words = f"{chip.flops / 1e12:,.0f} TFLOP/s, bfloat16, dense, as published for {chip.name}"
        return words + (f", x {settings.n_devices}" if settings.n_devices > 1 else "")
    what = (
        "of a CPU none is published"
        if settings.is_cpu
        else f"of {settings.device_kind!r} none is known here"
    )
    return f"{what}; a product of two {settings.dtype} matrices of 2,048 squared, measured after each case, stands in"


def find_peer(weights: str) -> tuple[str | None, list[str]]:
    """Returns (what transformers loads for the same weights, or None, and what to say about it).

    GGUF weights are converted once, into the cache directory, by transformers itself.
    """
    if missing := missing_packages():
        return None, [
            f"no peer: {', '.join(missing)} not installed; pip install 'medkor-jax[test]'. Ours was measured alone."
        ]
    if weights.startswith("random:"):
        return None, [f"no peer: {weights} exists only here. Ours was measured alone."]
    note = f"other: transformers with PEFT: {SETTINGS}"
    path = pathlib.Path(weights).expanduser()
    is_gguf = (
        weights == EMBEDDED_MODEL
        or path.suffix == ".gguf"
        or (path.is_dir() and not any(path.glob("*.safetensors")))
    )
    if not is_gguf:
        return weights, [note]
    target = cache_directory() / "bench" / open_weights(weights).digest[:16]
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with Worker("peer", {"model": str(target)}) as converter:
            converter.call("convert", weights=weights, directory=str(target))
    return str(target), [note]
