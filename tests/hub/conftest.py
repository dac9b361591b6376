"""The stand-ins of the hub's data sets, in the working directory; nothing is asked of the network."""

import collections
import shutil

import pytest

from .standins import write_standins


@pytest.fixture(autouse=True)
def a_large_disk(monkeypatch):
    """What a run of MedGemma needs is there, whatever this machine has left."""
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2e12, 1e12, 1e12))


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
