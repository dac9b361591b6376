"""What the Hugging Face hub gives, and why it does not.

    download("google/medgemma-4b-it")           # a directory; WeightsError: the name, the licence or the network?

Fetches config, tokenizer and safetensors only; `huggingface_hub` keeps them, and resumes what was cut off.
"""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator

from medkor_jax.io.streaming import WeightsError

_DOWNLOADED = ["*.json", "*.jinja", "tokenizer.model", "model*.safetensors"]


def download(repository: str) -> pathlib.Path:
    """Returns the local directory of a hub checkpoint, fetching config, tokenizer and safetensors only.

    Raises: WeightsError saying whether the name, the licence or the network was in the way.
    """
    import huggingface_hub

    with asking_the_hub(repository):
        return pathlib.Path(
            huggingface_hub.snapshot_download(repository, allow_patterns=_DOWNLOADED)
        )


def check_access(repository: str, kind: str = "model") -> None:
    """Raises: WeightsError, as `download`, if the hub would not give the "model" or "dataset" and it is not cached; fetches nothing."""
    import huggingface_hub

    if not is_cached(repository, kind):
        with asking_the_hub(repository, kind):
            huggingface_hub.HfApi().auth_check(repository, repo_type=kind)


def is_cached(repository: str, kind: str = "model") -> bool:
    from huggingface_hub import constants

    snapshots = (
        pathlib.Path(constants.HF_HUB_CACHE)
        / f"{kind}s--{repository.replace('/', '--')}"
        / "snapshots"
    )
    return snapshots.is_dir() and any(snapshots.iterdir())


@contextlib.contextmanager
def asking_the_hub(repository: str, kind: str = "model") -> Iterator[None]:
    """Turns what the hub's library raises into a WeightsError: what was in the way, and what to do."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        page = f"https://huggingface.co/{'datasets/' if kind == 'dataset' else ''}{repository}"
        hint = f"accept its licence at {page}, then run `hf auth login`"
        raise WeightsError(
            f"the hub refused {repository}: its licence gate is closed to you; {hint}"
        ) from error
    except errors.RepositoryNotFoundError as error:
        hint = "check the spelling; if it is private, run `hf auth login`"
        raise WeightsError(
            f"the hub has no {repository}, or does not show it to you; {hint}"
        ) from error
    except (
        errors.HTTPError,
        errors.LocalEntryNotFoundError,
        errors.OfflineModeIsEnabled,
        OSError,
    ) as error:
        hint = (
            "check the network (and HF_HUB_OFFLINE), or fetch it elsewhere and name the directory"
        )
        raise WeightsError(
            f"the hub could not be reached for {repository} ({_first_line(error)}), and no whole copy is "
            f"cached; {hint}"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
