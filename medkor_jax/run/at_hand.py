"""What can be read without fetching anything: sources and weights that are files, embedded, or in the hub's cache.

is_here(source), is_at_hand("google/medgemma-4b-it")
"""

from __future__ import annotations

import pathlib

from medkor_jax.data.rows import BadDataError, Source, load_hub
from medkor_jax.data.rows import is_hub_id as is_hub_data
from medkor_jax.io import download
from medkor_jax.io.weights import is_hub_id


class NotHereError(ValueError):
    """What would have to be fetched first, where nothing may be fetched."""


def is_on_hub(source: Source) -> bool:
    return is_hub_data(source.path) and not pathlib.Path(source.path).exists()


def is_here(source: Source) -> bool:
    """Whether the source can be read without fetching anything; True of what is no hub's, there or not."""
    if not is_on_hub(source):
        return True
    try:
        with download.without_network():
            load_hub(source)
    except BadDataError:
        return False
    return True


def is_at_hand(weights: str) -> bool:
    """Whether the weights can be opened without fetching them."""
    return pathlib.Path(weights).exists() or not is_hub_id(weights) or download.is_cached(weights)
