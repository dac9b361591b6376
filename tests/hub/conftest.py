"""The stand-ins of the hub's data sets, in the working directory; nothing is asked of the network."""

import pytest

from .standins import write_standins


@pytest.fixture(scope="session")
def standin_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("standins")
    write_standins(root)
    return root


@pytest.fixture
def hub(standin_root, tmp_path_factory, monkeypatch):
    """Where "owner/name" names a stand-in: the working directory of the test."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf"))
    monkeypatch.setenv("MEDKOR_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.chdir(standin_root)
    return standin_root
