"""What defends a phase's numbers beside them: every start of it, with its command, config, code, packages and machines.

    note_start(run_dir / "phase3", recipe)              # phase3/provenance.json
    read_provenance(run_dir / "phase3")["starts"][-1]["git"]    # {"commit": "1f3a...", "is_clean": True}

A phase that was stopped and resumed has several starts. Only what differs between them can make a difference: the config is
kept once, and again where a later start changed it. Nothing here decides anything: what makes a phase stale is its record
(`lineage`), by content. Environment variables are not kept: they hold tokens.
"""

from __future__ import annotations

import functools
import importlib.metadata
import pathlib
import platform
import subprocess
import sys
import time
from typing import Any

import jax

import medkor_jax
from medkor_jax.data.contents import files_digest
from medkor_jax.io.files import read_json_file, write_json
from medkor_jax.parallel import hosts
from medkor_jax.parallel.mesh import AXES, devices_in_words
from medkor_jax.run.config_text import config_file
from medkor_jax.run.defaults import plain
from medkor_jax.run.phases import Recipe

FILE, FORMAT = "provenance.json", 1
PACKAGES = (
    "medkor-jax jax jaxlib libtpu flax optax orbax-checkpoint transformers tokenizers datasets sentencepiece ml-collections "
    "numpy safetensors gguf grain"
).split()
_PACKAGE = pathlib.Path(medkor_jax.__file__).resolve().parent


def note_start(directory: pathlib.Path, recipe: Recipe) -> None:
    """Adds to the phase's provenance.json that it starts, or goes on, now. All processes call it."""
    start = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": _command(),
        "seed": recipe.seed,
        "devices": devices_in_words(),
        "mesh": dict(zip(AXES, recipe.mesh.resolve(jax.device_count()))),
        "hosts": hosts.collect("host names", platform.node()),
        "processes": hosts.n_processes(),
        **_software(),
    }
    text = config_file(plain(recipe), f"What {directory.name} ran with")
    before = hosts.first("starts before", lambda: read_provenance(directory))
    starts = before.get("starts", [])
    if starts and before["config"] != text:
        starts[-1].setdefault("config", before["config"])
    write_json(
        directory / FILE,
        {
            "format": FORMAT,
            "phase": directory.name,
            "run": [phase.name for phase in recipe.in_force],
            "config": text,
            "starts": [*starts, start],
        },
    )


def read_provenance(directory: pathlib.Path) -> dict[str, Any]:
    """Returns what `note_start` left; {} where there is nothing to read, as in a phase of an older version."""
    try:
        found = read_json_file(directory / FILE, "format", "starts", "config")
        return found if found["format"] == FORMAT and found["starts"] else {}
    except (FileNotFoundError, ValueError):
        return {}


def _command() -> list[str]:
    program, *arguments = sys.argv
    return ["medkor" if pathlib.Path(program).stem in ("medkor", "cli") else program, *arguments]


@functools.cache
def _software() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "code": files_digest(sorted(_PACKAGE.rglob("*.py")), _PACKAGE),
        "git": _git(_PACKAGE.parent),
        "platform": jax.default_backend(),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _git(directory: pathlib.Path) -> dict[str, Any] | None:
    """Returns the commit the package's files stand on, and whether they are as committed; None outside a checkout of it."""
    ask = ["git", "-C", str(directory)]
    try:
        top, commit, changed = (
            subprocess.run(
                [*ask, *words], capture_output=True, text=True, check=True, timeout=60
            ).stdout
            for words in (
                ["rev-parse", "--show-toplevel"],
                ["rev-parse", "HEAD"],
                ["status", "--porcelain", "--", _PACKAGE.name, "configs"],
            )
        )
    except (OSError, subprocess.SubprocessError):
        return None
    if pathlib.Path(top.strip()) != directory:
        return None  # installed inside somebody else's checkout
    return {"commit": commit.strip(), "is_clean": not changed.strip()}
