"""A config file and its overrides, read with ml_collections, become a Recipe.

    recipe = load_recipe("configs/phase3.py", ["--config.phase3.steps=100"])

A config file may import its neighbours (`from configs import common`). Overrides are type-checked by
ml_collections; a key that does not exist fails with the nearest one.
"""

from __future__ import annotations

import difflib
import pathlib
import sys
from typing import Any, Sequence

from medkor_jax.phases import ConfigError, Recipe, make_recipe


def load_config(path: str, overrides: Sequence[str] = ()) -> Any:
    """Returns the ConfigDict of `path` ("file.py" or "file.py:argument") with overrides applied.

    Raises: ConfigError on a missing file, a wrong override, or a file that does not build a config.
    """
    from absl import flags
    from ml_collections import config_flags

    file = pathlib.Path(path.split(":")[0])
    if not file.is_file():
        near = difflib.get_close_matches(str(file), map(str, file.parent.glob("*.py")), n=1)
        raise ConfigError(f"no config file {file}" + (f"; nearest: {near[0]}" if near else ""))
    for place in (file.resolve().parent.parent, pathlib.Path.cwd()):  # so that `from configs import common` works
        if str(place) not in sys.path:
            sys.path.insert(0, str(place))
    values, argv = flags.FlagValues(), ["medkor", f"--config={path}", *overrides]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    try:
        left = values(argv, known_only=True)[1:]
        config = values.config
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        said = str(error.args[0]) if error.args else repr(error)  # str() of a KeyError is quoted
        raise ConfigError(f"{path}: {' '.join(said.split())}") from error
    if left:
        raise ConfigError(f"not understood: {' '.join(left)}; overrides read --config.phase3.steps=100")
    return config


def load_recipe(path: str, overrides: Sequence[str] = ()) -> Recipe:
    return make_recipe(load_config(path, overrides).to_dict())
