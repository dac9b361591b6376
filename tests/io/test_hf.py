import json
import pathlib
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from medkor_jax import cli
from medkor_jax.io import hf
from medkor_jax.io.download import download
from medkor_jax.io.hf import HfSource
from medkor_jax.io.safetensors_file import read_safetensors_header
from medkor_jax.io.streaming import WeightsError, load_base

FILE, INDEX = "model.safetensors", "model.safetensors.index.json"


def assert_same_tree(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, a), b in zip(
        jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_array_equal(
            np.asarray(a), np.asarray(b), err_msg=jax.tree_util.keystr(path)
        )


@pytest.fixture
def copied(text_directory, tmp_path) -> pathlib.Path:
    """A copy of the text checkpoint to damage."""
    return shutil.copytree(text_directory, tmp_path / "copy")


def rewrite(directory: pathlib.Path, change) -> None:
    """Replaces the directory's tensors by change(tensors)."""
    tensors = safetensors.numpy.load_file(directory / FILE)
    safetensors.numpy.save_file(change(tensors), directory / FILE)


def rewrite_header(path: pathlib.Path, change) -> None:
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    change(header)
    new = json.dumps(header).encode()
    path.write_bytes(len(new).to_bytes(8, "little") + new + raw[8 + length :])


def test_text_checkpoint_equals_torch(text_directory, text_base):
    source = HfSource.open(text_directory)
    assert source.config.layer_kinds == ("local",) * 5 + ("global", "local")
    assert_same_tree(load_base(source, dtype=jnp.float32), text_base)


@pytest.mark.parametrize("stored", ["bfloat16", "float16"])
def test_half_precision_is_read_and_converted(text_model, text_base, tmp_path, stored):
    import copy

    import torch

    copy.deepcopy(text_model).to(getattr(torch, stored)).save_pretrained(tmp_path)
    base = load_base(HfSource.open(tmp_path), dtype=jnp.float32)
    assert_same_tree(
        base, jax.tree.map(lambda x: x.astype(jnp.dtype(stored)).astype(np.float32), text_base)
    )
    narrow = load_base(HfSource.open(tmp_path), dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(narrow)} == {jnp.dtype(jnp.bfloat16)}
    assert_same_tree(narrow, jax.tree.map(lambda x: x.astype(jnp.bfloat16), base))


def test_shards_equal_one_file(text_model, text_base, tmp_path):
    text_model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert_same_tree(load_base(HfSource.open(tmp_path), dtype=jnp.float32), text_base)

    listed = json.loads((tmp_path / INDEX).read_text())
    shard = sorted(set(listed["weight_map"].values()))[1]
    (tmp_path / shard).rename(tmp_path / "elsewhere")
    with pytest.raises(WeightsError, match=f"names {shard}, which is not there"):
        HfSource.open(tmp_path)
    (tmp_path / "elsewhere").rename(tmp_path / shard)
    moved = next(name for name, file in listed["weight_map"].items() if file != shard)
    listed["weight_map"][moved] = shard
    (tmp_path / INDEX).write_text(json.dumps(listed))
    with pytest.raises(WeightsError, match=f"(?s)against {INDEX}.*{moved}"):
        HfSource.open(tmp_path)
    listed["weight_map"][moved] = "../model.safetensors"
    (tmp_path / INDEX).write_text(json.dumps(listed))
    with pytest.raises(WeightsError, match="expected the name of a .safetensors file beside it"):
        HfSource.open(tmp_path)


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_text_tower_of_a_multimodal_checkpoint(prefix, tmp_path, checkpoints):
    import transformers

    vision = dict(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14,
    )  # fmt: skip
    text = checkpoints.text_config().to_dict()
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4
    )
    model = checkpoints.randomise(transformers.Gemma3ForConditionalGeneration(config))
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    model.save_pretrained(tmp_path)

    def rename(tensors):
        prefixes = ("language_model.model.", "model.language_model.")
        written = next(p for p in prefixes if any(n.startswith(p) for n in tensors))
        outer = "model." if prefix == "model.language_model." else ""

        def new(name: str) -> str:
            if name.startswith(written):
                return prefix + name.removeprefix(written)
            return outer + name.removeprefix("model.")

        return {new(name): tensor for name, tensor in tensors.items()}

    rewrite(tmp_path, rename)
    names = read_safetensors_header(tmp_path / FILE)
    assert any("vision_tower" in n for n in names) and any(
        "multi_modal_projector" in n for n in names
    )
    source = HfSource.open(tmp_path)
    assert_same_tree(
        load_base(source, dtype=jnp.float32), checkpoints.base_of(state, "model.language_model.", 7)
    )


def test_every_key_must_match_both_ways(copied):
    def change(tensors):
        tensors["model.layers.3.self_attn.q_proj.lora"] = tensors.pop(
            "model.layers.3.self_attn.q_proj.weight"
        )
        del tensors["model.norm.weight"]
        return tensors

    rewrite(copied, change)
    with pytest.raises(WeightsError) as caught:
        HfSource.open(copied)
    message = str(caught.value)
    assert "93 needed tensors 2 are missing and 1 present ones are not used" in message
    assert "missing: model.layers.3.self_attn.q_proj.weight, model.norm.weight" in message
    assert "not used: model.layers.3.self_attn.q_proj.lora" in message


def test_a_long_difference_is_counted_and_capped(copied):
    rewrite(
        copied,
        lambda tensors: {
            n: t for n, t in tensors.items() if "layers.5." not in n and "layers.6." not in n
        },
    )
    with pytest.raises(WeightsError, match="(?s)26 are missing.*, and 18 more"):
        HfSource.open(copied)
    rewrite(copied, lambda tensors: {f"x.{n}": t for n, t in tensors.items()})
    with pytest.raises(WeightsError, match="holds no text decoder: no tensor begins model.layers"):
        HfSource.open(copied)


def test_an_output_head_must_be_the_embedding(copied, text_base):
    rewrite(
        copied,
        lambda tensors: tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].copy()},
    )
    assert_same_tree(load_base(HfSource.open(copied), dtype=jnp.float32), text_base)
    rewrite(
        copied,
        lambda tensors: tensors | {"lm_head.weight": tensors["lm_head.weight"] + np.float32(1e-3)},
    )
    with pytest.raises(WeightsError, match="lm_head.weight differs from the embedding"):
        load_base(HfSource.open(copied), dtype=jnp.float32)


def test_shape_and_vocabulary_must_be_those_of_the_config(copied):
    rewrite(
        copied,
        lambda tensors: tensors | {"model.embed_tokens.weight": np.zeros((64, 32), np.float32)},
    )
    with pytest.raises(
        WeightsError, match=r"embed_tokens.weight is \[64, 32\], its config asks for \[96, 32\]"
    ):
        HfSource.open(copied)


def test_a_damaged_file_is_refused_in_one_sentence(copied):
    whole = (copied / FILE).read_bytes()

    def refused(raw: bytes) -> str:
        (copied / FILE).write_bytes(raw)
        with pytest.raises(WeightsError) as caught:
            HfSource.open(copied)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert f"cut short: {len(whole) - 7} bytes, its header promises {len(whole)}" in refused(
        whole[:-7]
    )
    assert "longer than its header says" in refused(whole + b"\0")
    assert "not a whole safetensors file" in refused(whole[:100])
    assert "not a whole safetensors file" in refused(b"")
    assert "header cannot be read" in refused((8).to_bytes(8, "little") + b"not json")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda entry: entry.update(shape=[32, 7]),
            r"is inconsistent: model.norm.weight \(F32 \[32, 7\]\)",
        ),
        (lambda entry: entry.update(data_offsets=[0, 128]), "is inconsistent"),
        (
            lambda entry: entry.update(dtype="BF16"),
            r"is inconsistent: model.norm.weight \(BF16 \[32\]\)",
        ),
        (
            lambda entry: entry.update(dtype="I32"),
            "model.norm.weight is stored as I32; expected F32, F16, BF16",
        ),
        (lambda entry: entry.pop("shape"), "header cannot be read"),
    ],
)
def test_an_inconsistent_header_is_refused(copied, change, expected):
    rewrite_header(copied / FILE, lambda header: change(header["model.norm.weight"]))
    with pytest.raises(WeightsError, match=expected):
        HfSource.open(copied)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_nan_and_infinity_are_refused_by_name(copied, poison):
    def change(tensors):
        tensors["model.layers.4.mlp.up_proj.weight"][3, 2] = poison
        return tensors

    rewrite(copied, change)
    with pytest.raises(
        WeightsError, match="model.layers.4.mlp.up_proj.weight holds NaN or infinity"
    ):
        load_base(HfSource.open(copied), dtype=jnp.float32)


def test_what_is_not_a_checkpoint_is_refused_with_what_is_there(copied):
    (copied / FILE).rename(copied / "pytorch_model.bin")
    with pytest.raises(
        WeightsError, match="pickle files .pytorch_model.bin., which are never opened"
    ):
        HfSource.open(copied)
    (copied / "adapter_config.json").write_text("{}")
    with pytest.raises(WeightsError, match="PEFT adapter"):
        HfSource.open(copied)
    (copied / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(WeightsError, match="'llama' is not Gemma 3"):
        HfSource.open(copied)
    (copied / "config.json").write_text("{")
    with pytest.raises(WeightsError, match="config.json cannot be read"):
        HfSource.open(copied)


@pytest.mark.parametrize(
    "key",
    ["hidden_size", "max_position_embeddings", "rms_norm_eps", "vocab_size", "sliding_window"],
)
@pytest.mark.parametrize("bad", [None, "x", [], -1])
def test_a_value_of_the_config_without_sense_is_refused_when_the_checkpoint_is_opened(
    copied, capsys, key, bad
):
    path = copied / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: bad}))
    assert (
        cli.main(["eval", "--weights", str(copied), "--exam", "embedded", "--language", "ko"]) == 1
    )
    said = capsys.readouterr()
    assert (
        said.out == ""
        and said.err.startswith(f"medkor: {path}: {key} is {json.dumps(bad)}; expected a ")
        and said.err.count("\n") == 1
    )


def hub_error(name: str) -> Exception:
    from huggingface_hub import errors

    kind = getattr(errors, name)
    response = types.SimpleNamespace(headers={}, request=None, status_code=403)
    return kind("no", response=response) if issubclass(kind, errors.HfHubHTTPError) else kind("no")


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        ("GatedRepoError", "accept its licence at https://huggingface.co/google/medgemma-4b-it"),
        ("RepositoryNotFoundError", "the hub has no google/medgemma-4b-it"),
        ("LocalEntryNotFoundError", "could not be reached"),
        ("HfHubHTTPError", "could not be reached"),
    ],
)
def test_the_hub_s_refusals_say_what_to_do(monkeypatch, error, hint):
    import huggingface_hub

    asked = {}

    def refuse(repository, **options):
        asked.update(options, repository=repository)
        raise hub_error(error)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(WeightsError, match=hint):
        download("google/medgemma-4b-it")
    assert asked["repository"] == "google/medgemma-4b-it"
    assert not any(p.endswith((".bin", ".pt", "*")) for p in asked["allow_patterns"])


def test_published_names_are_those_of_transformers(text_model):
    published = {name for name in text_model.state_dict() if name != "lm_head.weight"}
    ours = {
        f"model.{f'layers.{i}.' if path.startswith('layers/') else ''}{name}.weight"
        for path, name in hf._NAMES.items()
        for i in range(7 if path.startswith("layers/") else 1)
    }
    assert ours == published
