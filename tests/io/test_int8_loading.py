"""A base that comes from the disk in int8: the same on any mesh, from any kind of weights, a few rows at a time."""

import pathlib
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medkor_jax.io import bases, streaming
from medkor_jax.io.bases import open_base
from medkor_jax.io.checkpoint import restore_leaf
from medkor_jax.io.hf import HfSource
from medkor_jax.io.streaming import load_base, needed_keys
from medkor_jax.io.weights import open_weights
from medkor_jax.model.params import ADAPTABLE, abstract_base, leaf_paths, matrix_paths
from medkor_jax.model.quantized import Quantized, quantize
from medkor_jax.parallel.mesh import MeshShape, make_mesh, one_device, shard_tree

MESHES = {
    "one": MeshShape(data=-1),
    "fsdp": MeshShape(data=1, fsdp=4),
    "tensor": MeshShape(data=1, tensor=4),
    "both": MeshShape(data=1, fsdp=2, tensor=2),
}


def expected_of(base):
    """Returns the base in int8, made of all of it at once."""
    layers = base["layers"]
    matrices = {name: quantize(jnp.asarray(layers[name])) for name in ADAPTABLE}
    rounded = jax.tree.map(lambda leaf: jnp.asarray(leaf).astype(jnp.bfloat16), base)
    return {**rounded, "layers": rounded["layers"] | matrices}


def assert_same(found, expected):
    found, expected = leaf_paths(found), leaf_paths(expected)
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        assert found[path].dtype == leaf.dtype, path
        np.testing.assert_array_equal(np.asarray(found[path]), np.asarray(leaf), err_msg=path)


@pytest.mark.parametrize("layout", MESHES)
@pytest.mark.parametrize("chunk_bytes", [300, streaming.CHUNK_BYTES])
def test_every_mesh_holds_the_same_values_and_scales(
    text_directory, text_base, layout, chunk_bytes, monkeypatch
):
    """Also where a channel's inputs are cut over devices: its scale is that of all of them."""
    monkeypatch.setattr(streaming, "CHUNK_BYTES", chunk_bytes)
    source, mesh = HfSource.open(text_directory), make_mesh(MESHES[layout])
    shardings = shard_tree(abstract_base(source.config, jnp.int8), mesh)
    base = load_base(source, dtype=jnp.int8, shardings=shardings)
    assert_same(base, expected_of(text_base))
    wanted = leaf_paths(shardings)
    for path, leaf in leaf_paths(base).items():
        assert leaf.sharding.is_equivalent_to(wanted[path], leaf.ndim), path


def test_without_a_mesh_too(text_directory, text_base):
    base = load_base(HfSource.open(text_directory), dtype="int8")
    assert_same(base, expected_of(text_base))


def test_each_row_is_read_once_and_never_lies_on_a_device_as_a_float(text_directory, monkeypatch):
    source, read, written = HfSource.open(text_directory), {}, set()
    whole, writer = source.read_rows, streaming._writer

    def counted(key, start, stop):
        read[key] = read.get(key, 0) + stop - start
        return whole(key, start, stop)

    def seen(*arguments):
        write = writer(*arguments)

        def noting(leaf, piece, layer, row):
            written.add((leaf.ndim, str(piece.dtype)))
            return write(leaf, piece, layer, row)

        return noting

    monkeypatch.setattr(source, "read_rows", counted)
    monkeypatch.setattr(streaming, "_writer", seen)
    load_base(source, dtype=jnp.int8)
    assert read == {key: shape[0] for key, shape in needed_keys(source.config).items()}
    assert {dtype for ndim, dtype in written if ndim == 3} == {"int8"}


def test_a_merged_base_comes_back_in_int8_a_matrix_at_a_time(tiny_base_dir, monkeypatch):
    weights = open_base(tiny_base_dir)
    restored = []

    def noting(directory, path, abstract):
        restored.append(path)
        return restore_leaf(directory, path, abstract)

    monkeypatch.setattr(bases, "restore_leaf", noting)
    monkeypatch.setattr(bases, "restore_tree", None)
    for mesh in (one_device(), make_mesh(MESHES["both"])):
        base = weights.load(jnp.int8, shard_tree(abstract_base(weights.config, jnp.int8), mesh))
        restored_once, restored = restored, []
        assert sorted(restored_once) == sorted(matrix_paths(base))
        monkeypatch.undo()
        full = weights.load(jnp.bfloat16)
        assert_same(base, expected_of(full))
        monkeypatch.setattr(bases, "restore_leaf", noting)


def test_a_leaf_that_is_not_there_is_named(tiny_base_dir):
    with pytest.raises(ValueError, match="lacks \\['layers/nothing'\\]"):
        restore_leaf(tiny_base_dir / "tree", "layers/nothing", jax.ShapeDtypeStruct((1,), "int8"))


def test_random_weights_are_the_same_numbers_rounded():
    weights = open_weights("random:tiny")
    full, base = weights.load(jnp.bfloat16), weights.load(jnp.int8)
    assert_same(base, expected_of(full))


def test_a_model_in_int8_reads_its_adapters_as_ever(save_adapted):
    model = save_adapted(lora=True, front=1, back=1)
    params = model.load(jnp.int8, one_device())
    assert isinstance(params.base["layers"]["q"], Quantized)
    assert params.lora["q"]["a"].dtype == params.expand["front"]["q"].dtype == jnp.float32


def test_other_names_are_refused_before_anything_is_read(text_directory):
    source = HfSource.open(text_directory)
    for dtype, words in (
        (jnp.int4, "8 bits at least"),
        (jnp.int16, "expected 'float32', 'bfloat16' or 'int8'"),
    ):
        with pytest.raises(ValueError, match=words):
            load_base(source, dtype=dtype)


def test_host_peak_is_the_int8_base_and_some_chunks(tmp_path, checkpoints):
    """A checkpoint of 270 MB in float32 matrices, in a process of its own: less than half of its float form is ever held."""
    if not pathlib.Path("/proc/self/status").is_file():
        pytest.skip("the peak is read from /proc, which is not here")
    sizes = dict(
        hidden_size=512,
        intermediate_size=4096,
        head_dim=128,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
    )
    checkpoints.write_sparse(tmp_path / "large", **sizes, num_hidden_layers=32)
    checkpoints.write_sparse(tmp_path / "small", **sizes, num_hidden_layers=1)
    program = textwrap.dedent(
        """
        import pathlib, re, sys
        import jax, jax.numpy as jnp
        from medkor_jax.io.hf import HfSource
        from medkor_jax.io.streaming import load_base

        def peak():
            return int(re.search(r"VmHWM:\\s*(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]) * 1024

        load_base(HfSource.open(sys.argv[2]), dtype=jnp.int8)
        before = peak()
        base = load_base(HfSource.open(sys.argv[1]), dtype=jnp.int8)
        jax.block_until_ready(base)
        stays = sum(leaf.nbytes for leaf in jax.tree.leaves(base))
        print(peak() - before, stays, sum(leaf.size for leaf in jax.tree.leaves(base)) * 4)
        """
    )
    command = [sys.executable, "-c", program, str(tmp_path / "large"), str(tmp_path / "small")]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    grown, stays, in_float = map(int, run.stdout.split())
    assert stays > 200e6
    # the largest stacked matrix is 67 MB; chunks of 8 MB of the file, and what quantising them takes, pass through the host
    assert grown < stays + 120e6 < 0.5 * in_float, (grown / 2**20, stays / 2**20, in_float / 2**20)
