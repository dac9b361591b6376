"""What the Hugging Face hub gives, and why it does not.

    download("google/medgemma-4b-it")           # a directory; WeightsError: the name, the licence or the network?
    facts_of("sean0042/KorMedMCQA", "dataset")  # revision, licence, gate and size; fetches nothing

Fetches config, tokenizer and safetensors only; `huggingface_hub` keeps them, and resumes what was cut off.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import pathlib
from collections.abc import Iterator, Mapping

from medkor_jax.io.streaming import WeightsError

_DOWNLOADED = ["*.json", "*.jinja", "tokenizer.model", "model*.safetensors"]
_PATIENCE_S = 10.0  # in which the hub says what it has
_pinned: dict[str, str] = {}  # revisions of models, by id: see `pin`


class HubUnreachableError(WeightsError):
    """The hub did not answer: what it would have said of anything else need not be waited for."""


@dataclasses.dataclass(frozen=True)
class HubFacts:
    """What the hub says of a model or data set. revision: the commit. licence: its card's, "" where it has none.
    size_bytes: of what would be fetched of a model, of all files of a data set; 0 where it does not say."""

    revision: str
    licence: str
    is_gated: bool
    size_bytes: int


def facts_of(repository: str, kind: str = "model", revision: str = "") -> HubFacts:
    """Returns what the hub says of a "model" or "dataset"; fetches nothing.

    Raises: WeightsError; HubUnreachableError where there is no network.
    """
    import huggingface_hub

    api = huggingface_hub.HfApi()
    ask = api.dataset_info if kind == "dataset" else api.model_info
    with asking_the_hub(repository, kind):
        info = ask(repository, revision=revision or None, files_metadata=True, timeout=_PATIENCE_S)
    wanted = _DOWNLOADED if kind == "model" else ["*"]
    sizes = (
        file.size or 0
        for file in info.siblings or ()
        if any(fnmatch.fnmatch(file.rfilename, pattern) for pattern in wanted)
    )
    card = info.card_data.to_dict() if info.card_data else {}
    licence = card.get("license_name") or card.get("license") or ""
    return HubFacts(info.sha or "", _in_words(licence), bool(info.gated), sum(sizes))


def page(repository: str, kind: str = "model") -> str:
    return f"https://huggingface.co/{'datasets/' if kind == 'dataset' else ''}{repository}"


def pin(revisions: Mapping[str, str]) -> None:
    """Makes `download` give these revisions of models, by id, in this process."""
    _pinned.update(revisions)


@contextlib.contextmanager
def without_network() -> Iterator[None]:
    """While it lasts, the hub's libraries take what is cached and ask nothing."""
    import datasets
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def download(repository: str) -> pathlib.Path:
    """Returns the local directory of a hub checkpoint, fetching config, tokenizer and safetensors only.

    Raises: WeightsError saying whether the name, the licence or the network was in the way.
    """
    import huggingface_hub

    with asking_the_hub(repository):
        return pathlib.Path(
            huggingface_hub.snapshot_download(
                repository, allow_patterns=_DOWNLOADED, revision=_pinned.get(repository)
            )
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
        hint = f"accept its licence at {page(repository, kind)}, then run `hf auth login` or set HF_TOKEN"
        raise WeightsError(
            f"the hub refused {repository}: its licence gate is closed to you; {hint}"
        ) from error
    except errors.RepositoryNotFoundError as error:
        hint = "check the spelling; if it is private, run `hf auth login`"
        raise WeightsError(
            f"the hub has no {repository}, or does not show it to you; {hint}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise WeightsError(
            f"the hub has {repository}, but not the revision that is asked for ({_first_line(error)}); take another"
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
        raise HubUnreachableError(
            f"the hub could not be reached for {repository} ({_first_line(error)}), and no whole copy is "
            f"cached; {hint}"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _in_words(licence: object) -> str:
    return ", ".join(map(str, licence)) if isinstance(licence, list) else str(licence)
