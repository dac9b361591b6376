"""A base is read for its digest once, and again only if its file is another: whichever process or command asks."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from medkor_jax.data import contents
from medkor_jax.io import bases, models, weights
from medkor_jax.io.streaming import digest_source

from .test_gguf import write_gguf

KINDS = ("gguf", "safetensors", "merged", "hub")


@pytest.fixture
def hashed(monkeypatch, tmp_path):
    """What is read whole, in order; nothing is remembered yet, and no file is too young to be."""
    read, hash_file = [], contents.hash_file
    monkeypatch.setenv("MEDKOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(contents, "_known", {})
    monkeypatch.setattr(contents, "_TOO_YOUNG_SECONDS", -1.0)
    monkeypatch.setattr(contents, "hash_file", lambda p: read.append(str(p)) or hash_file(p))
    monkeypatch.setattr(
        weights, "digest_source", lambda source: read.append("tensors") or digest_source(source)
    )
    return read


@pytest.fixture(params=KINDS)
def base(request, tmp_path, tiny_base_dir, text_directory, monkeypatch):
    """A name of a base, and the file that holds its weights."""
    kind = request.param
    if kind == "gguf":
        path = write_gguf(tmp_path / "tiny.gguf")
        return str(path), path
    if kind == "merged":
        copied = shutil.copytree(tiny_base_dir, tmp_path / "merged")
        files = [path for path in (copied / "tree").rglob("*") if path.is_file()]
        return str(copied), max(files, key=lambda path: path.stat().st_size)
    if kind == "safetensors":
        copied = shutil.copytree(text_directory, tmp_path / "safetensors")
        return str(copied), copied / "model.safetensors"
    # a hub's download is a directory of links to files that lie beside it
    store = shutil.copytree(text_directory, tmp_path / "blobs")
    snapshot = tmp_path / "snapshots/1"
    snapshot.mkdir(parents=True)
    for file in store.iterdir():
        (snapshot / file.name).symlink_to(file)
    monkeypatch.setattr(weights, "download", lambda name: snapshot)
    return "some-org/tiny", store / "model.safetensors"


def digest_of(name):
    return models.open_model(name).base.make_digest()


def forget():
    """What this process knows is gone, as in the next command."""
    contents._known.clear()


def test_it_is_read_once_and_remembered_by_the_next_command(base, hashed):
    name, _ = base
    first = digest_of(name)
    n = len(hashed)
    assert n > 0
    assert digest_of(name) == first and len(hashed) == n
    forget()
    assert digest_of(name) == first and len(hashed) == n


def test_a_changed_file_is_read_again(base, hashed):
    name, file = base
    first, before = digest_of(name), file.stat()
    n = len(hashed)

    os.utime(file, ns=(before.st_mtime_ns + 1, before.st_mtime_ns + 1))  # touched, and the same
    assert digest_of(name) == first and len(hashed) == n + 1

    # another file of the same size and time, put in its place
    blob = bytearray(file.read_bytes())
    blob[-1] ^= 1
    beside = file.with_name("beside")
    beside.write_bytes(blob)
    os.utime(beside, ns=(before.st_mtime_ns + 1, before.st_mtime_ns + 1))
    os.replace(beside, file)
    try:
        assert digest_of(name) != first
    except bases.WeightsError as error:  # a merged base says itself what it holds
        assert "replaced or damaged" in str(error)
    except Exception:
        assert "merged" in name  # what orbax cannot read any more
    assert len(hashed) > n + 1


def test_where_nothing_can_be_remembered_on_disk_one_process_reads_it_once(base, hashed, tmp_path):
    (tmp_path / "cache").write_text("a file where the cache would be")
    name, _ = base
    first = digest_of(name)
    n = len(hashed)
    assert digest_of(name) == first and len(hashed) == n


def test_other_processes_profit(tmp_path, monkeypatch):
    """Real processes: the second one fails if it reads the file."""
    monkeypatch.setenv("MEDKOR_CACHE", str(tmp_path / "cache"))
    path = write_gguf(tmp_path / "tiny.gguf")
    script = (
        "import json, sys\n"
        "from medkor_jax.data import contents\n"
        "contents._TOO_YOUNG_SECONDS = -1.0\n"
        "if sys.argv[2] == 'must-know': contents.hash_file = lambda path: sys.exit('read again')\n"
        "from medkor_jax.io.models import open_model\n"
        "print(json.dumps(open_model(sys.argv[1]).base.make_digest()))\n"
    )
    said = [
        json.loads(
            subprocess.run(
                [sys.executable, "-c", script, str(path), how], check=True, capture_output=True
            ).stdout
        )
        for how in ("may-read", "must-know")
    ]
    assert said[0] == said[1]
