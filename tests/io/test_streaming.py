import pathlib
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from medkor_jax.io import streaming
from medkor_jax.io.hf import HfSource
from medkor_jax.io.streaming import load_base, needed_keys
from medkor_jax.model.params import abstract_base, leaf_paths

# How each kind of leaf may be cut: [L, in, out], [L, D], [V, D], [D].
LAYOUTS = {
    "replicated": {3: P(), 2: P(), "embed": P(), 1: P()},
    "tensor": {3: P(None, None, "tensor"), 2: P(), "embed": P("tensor"), 1: P()},
    "fsdp": {
        3: P(None, ("fsdp", "tensor")),
        2: P(None, "fsdp"),
        "embed": P(None, "fsdp"),
        1: P("tensor"),
    },
    "both": {
        3: P(None, "fsdp", "tensor"),
        2: P(None, "tensor"),
        "embed": P("tensor", "fsdp"),
        1: P("tensor"),
    },
}


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((2, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto, AxisType.Auto))


def make_shardings(config, mesh, layout):
    def one(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, layout["embed" if name == "embed" else len(leaf.shape)])

    return jax.tree_util.tree_map_with_path(one, abstract_base(config, jnp.float32))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("chunk_bytes", [300, streaming.CHUNK_BYTES])
def test_shards_hold_what_one_device_would(
    text_directory, text_base, mesh, layout, chunk_bytes, monkeypatch
):
    monkeypatch.setattr(streaming, "CHUNK_BYTES", chunk_bytes)
    source = HfSource.open(text_directory)
    shardings = make_shardings(source.config, mesh, LAYOUTS[layout])
    base = load_base(source, dtype=jnp.float32, shardings=shardings)
    expected, wanted = leaf_paths(text_base), leaf_paths(shardings)
    for path, leaf in leaf_paths(base).items():
        assert leaf.sharding.is_equivalent_to(wanted[path], leaf.ndim), path
        for shard in leaf.addressable_shards:
            np.testing.assert_array_equal(
                np.asarray(shard.data), expected[path][shard.index], err_msg=path
            )


@pytest.mark.parametrize("layout", ["replicated", "both"])
def test_bfloat16_shards_hold_the_rounded_values(
    text_directory, text_base, mesh, layout, monkeypatch
):
    monkeypatch.setattr(streaming, "CHUNK_BYTES", 2000)
    source = HfSource.open(text_directory)
    base = load_base(
        source, dtype=jnp.bfloat16, shardings=make_shardings(source.config, mesh, LAYOUTS[layout])
    )
    for path, expected in leaf_paths(text_base).items():
        found = leaf_paths(base)[path]
        assert found.dtype == jnp.bfloat16, path
        np.testing.assert_array_equal(
            np.asarray(found), expected.astype(jnp.bfloat16), err_msg=path
        )


def test_layers_may_be_split_too(tmp_path, checkpoints):
    import transformers

    model = transformers.Gemma3ForCausalLM(checkpoints.text_config(num_hidden_layers=4))
    checkpoints.randomise(model).save_pretrained(tmp_path)
    mesh = jax.make_mesh((4,), ("stage",), axis_types=(AxisType.Auto,))
    source = HfSource.open(tmp_path)
    shardings = make_shardings(
        source.config, mesh, {3: P("stage"), 2: P("stage"), "embed": P(), 1: P()}
    )
    base = load_base(source, dtype=jnp.float32, shardings=shardings)
    assert base["layers"]["q"].addressable_shards[0].data.shape == (1, 32, 64)
    jax.tree.map(np.testing.assert_array_equal, base, load_base(source, dtype=jnp.float32))


def test_only_the_rows_that_a_device_holds_are_read(text_directory, mesh, monkeypatch):
    """Cut by output features, the two halves of a matrix are each read once, though four devices hold them."""
    source, read = HfSource.open(text_directory), {}
    whole = source.read_rows

    def counted(key, start, stop):
        read[key] = read.get(key, 0) + stop - start
        return whole(key, start, stop)

    monkeypatch.setattr(source, "read_rows", counted)
    load_base(
        source, dtype=jnp.float32, shardings=make_shardings(source.config, mesh, LAYOUTS["tensor"])
    )
    assert read == {key: shape[0] for key, shape in needed_keys(source.config).items()}


def test_one_program_for_each_distinct_shape(text_directory):
    source = HfSource.open(text_directory)
    streaming._writer.cache_clear()
    streaming._allocator.cache_clear()
    load_base(source, dtype=jnp.float32)
    # Shapes: q = gate = up, k = v, o = down; norms of the width, of the head; embed; final_norm.
    kinds = ((True, True), (True, False), (False, False))
    writers = [
        streaming._writer(*kind, jnp.dtype("float32"), jnp.dtype("float32"), None) for kind in kinds
    ]
    assert sum(writer._cache_size() for writer in writers) == 7
    load_base(source, dtype=jnp.float32)
    assert sum(writer._cache_size() for writer in writers) == 7


def test_what_cannot_be_placed_is_refused(text_directory):
    source = HfSource.open(text_directory)
    with pytest.raises(ValueError, match="float16 overflows"):
        load_base(source, dtype=jnp.float16)
    one_device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    single = jax.tree.map(lambda _: one_device, abstract_base(source.config, jnp.float32))
    with pytest.raises(ValueError, match="SingleDeviceSharding; give a NamedSharding"):
        load_base(source, dtype=jnp.float32, shardings=single)


def test_host_peak_is_what_stays_and_a_third_of_the_largest_tensor_more(tmp_path, checkpoints):
    """A 260 MB checkpoint, measured in a process of its own; its embedding is the largest tensor."""
    if not pathlib.Path("/proc/self/status").is_file():
        pytest.skip("the peak is read from /proc, which is not here")
    sizes = dict(
        hidden_size=512,
        intermediate_size=2048,
        head_dim=128,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    checkpoints.write_sparse(tmp_path / "large", **sizes, vocab_size=131_072, num_hidden_layers=16)
    checkpoints.write_sparse(tmp_path / "small", **sizes, vocab_size=64, num_hidden_layers=1)
    program = textwrap.dedent(
        """
        import pathlib, re, sys
        import jax, jax.numpy as jnp
        from medkor_jax.io.hf import HfSource
        from medkor_jax.io.streaming import load_base

        def peak():
            # Not getrusage: its maximum counts the parent's memory at the fork.
            return int(re.search(r"VmHWM:\\s*(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]) * 1024

        # A small model first, so that the libraries' and the compiler's own memory is not counted.
        load_base(HfSource.open(sys.argv[2]), dtype=jnp.bfloat16)
        before = peak()
        base = load_base(HfSource.open(sys.argv[1]), dtype=jnp.bfloat16)
        jax.block_until_ready(base)
        stays = sum(leaf.nbytes for leaf in jax.tree.leaves(base))
        print(peak() - before, stays, base["embed"].nbytes)
        """
    )
    command = [sys.executable, "-c", program, str(tmp_path / "large"), str(tmp_path / "small")]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    grown, stays, largest = map(int, run.stdout.split())
    assert stays > 250e6
    assert grown < stays + 1.3 * largest, (grown / 2**20, stays / 2**20, largest / 2**20)
    # Far below the bound, in fact: chunks, not tensors, pass through the host.
    assert grown < stays + 0.5 * largest, (grown / 2**20, stays / 2**20, largest / 2**20)
