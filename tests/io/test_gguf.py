import hashlib
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medkor_jax.io.gguf import GgufSource
from medkor_jax.io.gguf_header import read_header
from medkor_jax.io.streaming import WeightsError, load_base
from medkor_jax.io.weights import open_weights

gguf = pytest.importorskip("gguf")

L, D, F, N, K, H, V = 7, 64, 96, 2, 1, 32, 300
MATRICES = {
    "attn_q": (N * H, D), "attn_k": (K * H, D), "attn_v": (K * H, D), "attn_output": (D, N * H),
    "ffn_gate": (F, D), "ffn_up": (F, D), "ffn_down": (D, F),
}  # fmt: skip
NORMS = {
    "attn_norm": D, "post_attention_norm": D, "ffn_norm": D, "post_ffw_norm": D, "attn_q_norm": H, "attn_k_norm": H,
}  # fmt: skip


def write_gguf(path, *, change=lambda fields, tensors: None, blocks=gguf.GGMLQuantizationType.Q8_0):
    """Writes a random Gemma 3 of seven layers, matrices in block format, norms in float32."""
    rng = np.random.default_rng(0)
    tensors = {"token_embd": (V, D), "output_norm": (D,)}
    for i in range(L):
        tensors |= {f"blk.{i}.{n}": s for n, s in MATRICES.items()} | {
            f"blk.{i}.{n}": (s,) for n, s in NORMS.items()
        }
    tensors = {f"{n}.weight": rng.normal(size=s).astype(np.float32) for n, s in tensors.items()}
    fields = {
        "context_length": 4096, "embedding_length": D, "block_count": L, "feed_forward_length": F,
        "attention.head_count": N, "attention.head_count_kv": K, "attention.key_length": H, "attention.value_length": H,
        "attention.sliding_window": 128, "attention.layer_norm_rms_epsilon": 1e-6, "rope.freq_base": 5e5,
        "tokenizer.ggml.tokens": [f"piece {i}" for i in range(V)],
    }  # fmt: skip
    change(fields, tensors)
    writer = gguf.GGUFWriter(path, fields.pop("architecture", "gemma3"))
    for name, value in fields.items():
        key = name if name.startswith("tokenizer.") else f"gemma3.{name}"
        add = {
            int: writer.add_uint32,
            float: writer.add_float32,
            str: writer.add_string,
            list: writer.add_array,
        }
        add[type(value)](key, value)
    for name, value in tensors.items():
        if value.ndim == 2:
            writer.add_tensor(name, gguf.quants.quantize(value, blocks), raw_dtype=blocks)
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def path(tmp_path):
    return write_gguf(tmp_path / "tiny.gguf")


@pytest.mark.parametrize("blocks", ["Q8_0", "Q5_0", "BF16", "F32"])
def test_tensors_equal_those_that_transformers_reads(tmp_path, blocks, checkpoints):
    """Orientation, the 1 added to norms, and the arithmetic of each block format."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    written = write_gguf(tmp_path / "tiny.gguf", blocks=gguf.GGMLQuantizationType[blocks])
    model = transformers.Gemma3ForCausalLM.from_pretrained(
        tmp_path, gguf_file="tiny.gguf", dtype=torch.float32
    )
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    base = load_base(GgufSource.open(written), dtype=jnp.float32)
    jax.tree.map(np.testing.assert_array_equal, base, checkpoints.base_of(state, "model.", L))


def test_config_is_that_of_the_metadata(path):
    config = GgufSource.open(path).config
    assert (config.vocab_size, config.d_model, config.d_ff) == (V, D, F)
    assert (config.n_heads, config.n_kv_heads, config.head_dim, config.query_pre_attn_scalar) == (
        N,
        K,
        H,
        H,
    )
    assert config.layer_kinds == ("local",) * 5 + ("global", "local")
    assert (config.sliding_window, config.max_positions, config.rms_eps) == (128, 4096, 1e-6)
    assert (config.rope_base_global, config.rope_base_local, config.rope_scaling_global) == (
        5e5,
        1e4,
        1.0,
    )


def test_config_takes_rope_scaling_and_the_layer_pattern(tmp_path):
    def change(fields, tensors):
        fields |= {
            "rope.scaling.type": "linear",
            "rope.scaling.factor": 8.0,
            "rope.freq_base_swa": 2e4,
        }
        fields["attention.sliding_window_pattern"] = [True, False] * 3 + [True]

    config = GgufSource.open(write_gguf(tmp_path / "a.gguf", change=change)).config
    assert config.layer_kinds == ("local", "global") * 3 + ("local",)
    assert (config.rope_scaling_global, config.rope_base_local) == (8.0, 2e4)
    with pytest.raises(
        WeightsError, match="gemma3.rope.scaling.type is .yarn.; expected 'none' or 'linear'"
    ):
        GgufSource.open(
            write_gguf(
                tmp_path / "b.gguf", change=lambda f, t: f.update({"rope.scaling.type": "yarn"})
            )
        )


def test_header_equals_what_the_gguf_package_reads(path):
    metadata, tensors = read_header(path)
    reader = gguf.GGUFReader(path)
    for field in reader.fields.values():
        if not field.name.startswith("GGUF."):
            assert metadata.pop(field.name) == field.contents()
    assert not metadata
    for tensor in reader.tensors:
        ours = tensors.pop(tensor.name)
        assert (ours.format, ours.offset) == (tensor.tensor_type, tensor.data_offset)
        assert ours.shape == tuple(tensor.shape[::-1])
        assert ours.row_bytes * (ours.shape[0] if len(ours.shape) == 2 else 1) == tensor.n_bytes
    assert not tensors


def test_tokenizer_comes_from_the_metadata(tmp_path):
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "\n\n", "  ", "\u2581", "열", "이", "열이"]

    def change(fields, tensors):
        fields |= {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": pieces,
            "tokenizer.ggml.scores": [0.0] * 6 + [-9.0, -9.0, -9.0, -1.0],
            "tokenizer.ggml.token_type": [3, 3, 3, 3, 4, 4, 1, 1, 1, 1],
            "tokenizer.ggml.unknown_token_id": 3,
        }

    tokenizer = GgufSource.open(write_gguf(tmp_path / "a.gguf", change=change)).make_tokenizer()
    assert tokenizer.encode("열이\n\n  이 ") == [9, 4, 5, 8, 6]
    other = write_gguf(
        tmp_path / "b.gguf", change=lambda f, t: f.update({"tokenizer.ggml.model": "gpt2"})
    )
    with pytest.raises(WeightsError, match="'gpt2'; expected 'llama'"):
        GgufSource.open(other).make_tokenizer()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda f, t: t.pop("blk.3.attn_q.weight"),
            "(?s)1 are missing and 0 .*missing: blk.3.attn_q.weight",
        ),
        (
            lambda f, t: t.update({"output.weight": t["token_embd.weight"]}),
            "(?s)and 1 .*not used: output.weight",
        ),
        (
            lambda f, t: t.update({"blk.2.ffn_norm.weight": np.ones(9, "f4")}),
            r"ffn_norm.weight is \[9\], .* \[64\]",
        ),
        (lambda f, t: t.pop("token_embd.weight"), "no token_embd.weight"),
        (lambda f, t: f.pop("attention.key_length"), "has no 'gemma3.attention.key_length'"),
        (lambda f, t: f.update(architecture="llama"), "holds a 'llama' model; expected 'gemma3'"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tmp_path, change, expected):
    path = write_gguf(tmp_path / "tiny.gguf", change=change)
    with pytest.raises(WeightsError, match=expected):
        GgufSource.open(path)


def test_a_damaged_file_is_refused_in_one_sentence(path):
    whole = path.read_bytes()

    def refused(raw: bytes) -> str:
        path.write_bytes(raw)
        with pytest.raises(WeightsError) as caught:
            GgufSource.open(path)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    ends = f"blk.6.attn_k_norm.weight ends at byte {len(whole)}, the file at {len(whole) - 1}"
    assert f"is cut short: {ends}" in refused(whole[:-1])
    assert "header" in refused(whole[:500])
    assert "header" in refused(b"")
    assert "begins b'PK" in refused(b"PK\x03\x04" + whole[4:])
    assert "version 9" in refused(whole[:4] + struct.pack("<I", 9) + whole[8:])
    at = whole.index(b"gemma3.context_length") + len("gemma3.context_length")
    assert "unknown type 77" in refused(whole[:at] + struct.pack("<I", 77) + whole[at + 4 :])


def test_infinity_is_refused_by_name(tmp_path):
    path = write_gguf(
        tmp_path / "tiny.gguf",
        change=lambda f, t: t["blk.1.ffn_up.weight"].__setitem__((4, 4), np.inf),
        blocks=gguf.GGMLQuantizationType.F32,
    )
    with pytest.raises(WeightsError, match="blk.1.ffn_up.weight holds NaN or infinity"):
        load_base(GgufSource.open(path), dtype=jnp.float32)


def test_gguf_by_file_and_by_directory(tmp_path):
    path = write_gguf(tmp_path / "one.gguf")
    by_file, by_directory = open_weights(str(path)), open_weights(str(tmp_path))
    assert by_file.config == by_directory.config
    assert (
        by_file.digest == by_directory.digest
        and by_file.make_digest() == hashlib.sha256(path.read_bytes()).hexdigest()
    )
    with pytest.raises(FileNotFoundError, match="one.gguf has no tokenizer"):
        _ = by_file.tokenizer
    write_gguf(tmp_path / "two.gguf")
    with pytest.raises(WeightsError, match="2 .gguf files .one.gguf, two.gguf.; name one of them"):
        open_weights(str(tmp_path))


def read_of(path) -> dict:
    """Returns the metadata that opening a file and its tokenizer reads."""

    class Watched(dict):
        def __init__(self, values):
            super().__init__(values)
            self.seen = set()

        def __contains__(self, key):
            self.seen.add(key)
            return super().__contains__(key)

        def get(self, key, default=None):
            self.seen.add(key)
            return super().get(key, default)

    metadata, tensors = read_header(path)
    watched = Watched(metadata)
    GgufSource(path, watched, tensors).make_tokenizer()
    return {"general.alignment": 32} | {key: metadata.get(key) for key in watched.seen}


def write_whole(path):
    """A file with a tokenizer too."""

    def change(fields, tensors):
        fields |= {
            "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": ["<pad>", "<eos>", "<bos>", "<unk>", "a"],
            "tokenizer.ggml.scores": [0.0] * 5, "tokenizer.ggml.token_type": [3, 3, 3, 2, 1], "tokenizer.ggml.unknown_token_id": 3,
        }  # fmt: skip

    return write_gguf(path, change=change)


@pytest.mark.parametrize(
    "bad",
    [
        None,
        "x",
        -1,
        0,
        float("nan"),
        float("inf"),
        True,
        [],
        [1],
        ["a"],
        10**30,
        np.zeros(2, np.float32),
    ],
    ids=repr,
)
def test_every_value_of_the_metadata_is_checked_when_it_is_read(tmp_path, bad):
    path = write_whole(tmp_path / "tiny.gguf")
    metadata, tensors = read_header(path)
    fine = []
    for key in read_of(path):
        if key == "general.alignment":
            continue  # of the header: see the test below
        try:
            GgufSource(path, metadata | {key: bad}, tensors).make_tokenizer()
            fine.append(key)
        except WeightsError as error:
            named = (
                key if key not in ("general.architecture", "tokenizer.ggml.model") else "expected"
            )
            assert (
                named in str(error)
                or "vocabulary" in str(error)
                or "pieces" in str(error)
                or "unknown_token_id" in str(error)
            ), (key, error)
    may_be = set()
    if isinstance(bad, int) and bad == 10**30:
        may_be = {
            "gemma3.rope.freq_base",
            "gemma3.rope.freq_base_swa",
            "gemma3.rope.scaling.factor",
        }
    assert set(fine) <= may_be, fine


def test_an_alignment_of_zero_is_refused(tmp_path):
    raw = write_whole(tmp_path / "tiny.gguf").read_bytes()
    at = raw.index(b"gemma3.context_length")
    field = b"\x11\0\0\0\0\0\0\0general.alignment" + struct.pack("<II", 4, 0)
    count = struct.unpack_from("<Q", raw, 16)[0]
    changed = raw[:16] + struct.pack("<Q", count + 1) + raw[24 : at - 8] + field + raw[at - 8 :]
    (tmp_path / "zero.gguf").write_bytes(changed)
    with pytest.raises(
        WeightsError, match="general.alignment is 0; expected a whole number of at least 1"
    ):
        GgufSource.open(tmp_path / "zero.gguf")
