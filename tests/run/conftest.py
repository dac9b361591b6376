"""A whole run on a tiny model, made once for all files that look at one."""

import pytest

from medkor_jax.run import pipeline
from medkor_jax.run.config_file import make_recipe

from .test_pipeline import make_config


@pytest.fixture(scope="session")
def finished(tiny_base_dir, tmp_path_factory):
    """Its directory. Whoever changes something in it copies it first."""
    directory = tmp_path_factory.mktemp("finished") / "run"
    pipeline.Run(make_recipe(make_config(directory, tiny_base_dir))).all()
    return directory
