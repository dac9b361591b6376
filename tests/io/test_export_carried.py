"""What an export takes over from its base: chat templates, defaults of generation, tokenizer.model, the vision tower."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from medkor_jax import cli
from medkor_jax.data.tokenizer import Tokenizer
from medkor_jax.io import export_carried
from medkor_jax.io.bases import open_base, save_base
from medkor_jax.io.carried import Carried, open_carried, read_carried, save_carried
from medkor_jax.io.export import export_hf
from medkor_jax.io.export_tokenizer import write_tokenizer
from medkor_jax.io.hf import HfSource
from medkor_jax.io.models import open_model, save_model
from medkor_jax.io.safetensors_file import read_safetensors_header
from medkor_jax.io.streaming import WeightsError
from medkor_jax.io.weights import open_weights
from medkor_jax.model.params import Params
from medkor_jax.parallel.mesh import host_mesh

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TEMPLATE = "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m['role'] }}\r\n{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
GENERATION = {"bos_token_id": 2, "eos_token_id": [1, 106], "pad_token_id": 0, "do_sample": True, "top_k": 64, "top_p": 0.95, "cache_implementation": "hybrid"}
IMAGE = 1000  # the token that stands for a part of the image: a row without a piece


@pytest.fixture(scope="module")
def multimodal(tiny_base_dir, checkpoints, tmp_path_factory) -> pathlib.Path:
    """A whole multimodal checkpoint, written by transformers: tower, projector, tokenizer, processor, template, defaults."""
    directory = tmp_path_factory.mktemp("multimodal") / "checkpoint"
    text = checkpoints.text_config(vocab_size=1024).to_dict()
    vision = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=IMAGE, boi_token_index=1001, eoi_token_index=1002,
    )  # fmt: skip
    checkpoints.randomise(transformers.Gemma3ForConditionalGeneration(config)).save_pretrained(directory)
    write_tokenizer(Tokenizer.load(tiny_base_dir), directory, max_positions=512, names={"processor_class": "Gemma3Processor", "image_token": "<unk>"})
    (directory / "chat_template.jinja").write_bytes(TEMPLATE.encode())
    (directory / "generation_config.json").write_text(json.dumps(GENERATION))
    (directory / "preprocessor_config.json").write_text('{"image_processor_type": "Gemma3ImageProcessor", "size": {"height": 28, "width": 28}}')
    (directory / "processor_config.json").write_text('{"processor_class": "Gemma3Processor", "image_seq_length": 4}')
    return directory


def image_logits(directory):
    """Returns float32 [1, T, V]: transformers' logits for a question with an image in it."""
    model, said = transformers.AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32, output_loading_info=True)
    assert not any(said[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), said
    ids = torch.tensor([[2, 50, 1001, *[IMAGE] * 4, 1002, 70, 80, 90]])
    pixels = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 3, 28, 28)).astype(np.float32))
    with torch.no_grad():
        there = lambda pixels: model.eval()(input_ids=ids, pixel_values=pixels, token_type_ids=(ids == IMAGE).long()).logits.numpy()  # noqa: E731
        found = there(pixels)
        assert np.abs(found - there(-pixels)).max() > 1e-3  # the image counts
    return found


def text_logits(directory, ids):
    kind = transformers.AutoConfig.from_pretrained(directory).architectures[0]
    model = getattr(transformers, kind).from_pretrained(directory, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0].numpy()


def our_logits(model, ids):
    from medkor_jax.model.forward import Inputs, forward, project_logits

    params = model.load(jnp.float32, host_mesh())
    tokens = jnp.array([ids], jnp.int32)
    with jax.default_matmul_precision("highest"):
        hidden = forward(params, model.config, Inputs(tokens, jnp.arange(len(ids))[None], jnp.ones_like(tokens), jnp.zeros_like(tokens)), dtype=jnp.float32)
        return np.asarray(project_logits(params.base, hidden[0]))


@pytest.fixture(scope="module")
def adapted(multimodal, make_adapters, make_blocks, tmp_path_factory):
    """A run's phase on the multimodal base, with LoRA and one added layer at each end."""
    base = open_model(multimodal)
    tree = base.base.load(jnp.float32)
    lora = jax.tree.map(jnp.asarray, make_adapters(tree))
    return save_model(tmp_path_factory.mktemp("run") / "phase3", Params(tree, lora=lora, expand=make_blocks(tree), lora_scale=0.5), base.base)


def test_a_multimodal_base_without_adapters_comes_out_as_it_was(multimodal, tmp_path):
    export_hf(open_model(multimodal), tmp_path / "out")
    own, out = (safetensors.numpy.load_file(d / "model.safetensors") for d in (multimodal, tmp_path / "out"))
    assert own.keys() == out.keys()
    assert all(own[name].tobytes() == out[name].tobytes() and own[name].dtype == out[name].dtype for name in own)
    np.testing.assert_array_equal(image_logits(tmp_path / "out"), image_logits(multimodal))
    for name in ("preprocessor_config.json", "processor_config.json", "generation_config.json", "chat_template.jinja", "tokenizer.model"):
        assert (tmp_path / "out" / name).read_bytes() == (multimodal / name).read_bytes(), name
    config, before = (json.loads((d / "config.json").read_text()) for d in (tmp_path / "out", multimodal))
    assert config["vision_config"] == before["vision_config"] and config["image_token_index"] == IMAGE
    said = json.loads((tmp_path / "out/tokenizer_config.json").read_text())
    assert said["processor_class"] == "Gemma3Processor" and said["image_token"] == "<unk>"


def test_with_adapters_the_tower_is_carried_and_text_logits_are_ours(adapted, multimodal, tmp_path):
    export_hf(adapted, tmp_path / "out", max_shard_bytes=100_000)
    own = read_safetensors_header(multimodal / "model.safetensors")
    listed = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    out = {name: safetensors.numpy.load_file(tmp_path / "out" / file)[name] for name, file in listed["weight_map"].items()}
    base = safetensors.numpy.load_file(multimodal / "model.safetensors")
    tower = [name for name in own if not name.startswith("language_model.")]
    assert len(tower) > 30 and all(out[name].tobytes() == base[name].tobytes() for name in tower)
    assert listed["metadata"]["total_size"] == sum(t.nbytes for t in out.values())
    ids = [2, *adapted.tokenizer.encode("58세 남자가 가슴이 아프다. The diagnosis is")]
    np.testing.assert_allclose(text_logits(tmp_path / "out", ids), our_logits(adapted, ids), atol=2e-4, rtol=0)
    assert np.abs(image_logits(tmp_path / "out") - image_logits(multimodal)).max() > 1e-2  # the adapters count there too
    back = open_weights(str(tmp_path / "out"))
    assert back.config.n_layers == 9 and len(back.carried.tower) == len(tower)


@pytest.mark.parametrize("names", ["as first published", "as transformers >= 4.52 writes them"])
def test_the_text_tensors_take_the_names_of_the_tower_s_style(multimodal, tmp_path, names):
    directory = shutil.copytree(multimodal, tmp_path / "copy")
    tensors = safetensors.numpy.load_file(directory / "model.safetensors")
    if names != "as first published":
        tensors = {"model." + name.replace("language_model.model.", "language_model."): value for name, value in tensors.items()}
        safetensors.numpy.save_file(tensors, directory / "model.safetensors")
    export_hf(open_model(directory), tmp_path / "out")
    assert safetensors.numpy.load_file(tmp_path / "out/model.safetensors").keys() == tensors.keys()
    np.testing.assert_array_equal(image_logits(tmp_path / "out"), image_logits(multimodal))


def test_text_only_leaves_the_tower_out_and_says_so(adapted, tmp_path, capsys):
    assert cli.main(["export", "--weights", str(adapted.directory), "--to", "hf", "--out", str(tmp_path / "out"), "--text-only"]) == 0
    assert "vision tower is left out" in capsys.readouterr().out
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["architectures"] == ["Gemma3ForCausalLM"] and "vision_config" not in config
    assert not (tmp_path / "out/preprocessor_config.json").exists() and (tmp_path / "out/chat_template.jinja").exists()
    ids = [2, *adapted.tokenizer.encode("가슴이 아프다")]
    np.testing.assert_allclose(text_logits(tmp_path / "out", ids), our_logits(adapted, ids), atol=2e-4, rtol=0)


def test_a_tower_that_cannot_be_carried_is_refused_before_anything_is_written(multimodal, tmp_path):
    directory = shutil.copytree(multimodal, tmp_path / "copy")
    config = json.loads((directory / "config.json").read_text())
    del config["vision_config"]
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="has a vision tower of .* tensors, but its config.json no vision_config.*--text-only"):
        export_hf(open_model(directory), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export_hf(open_model(directory), tmp_path / "out", text_only=True)


def test_a_scaled_stream_scales_the_tower_s_joint_exactly(multimodal):
    carried = open_weights(str(multimodal)).carried
    plain, scaled = ({t.name: t.make() for t in export_carried.with_tower([], carried, stream_scale=s)} for s in (1.0, 2.0**-7))
    joint = "multi_modal_projector.mm_input_projection_weight"
    assert [name for name in plain if plain[name].tobytes() != scaled[name].tobytes()] == [joint]
    np.testing.assert_array_equal(scaled[joint].view(np.float32), plain[joint].view(np.float32) * np.float32(2.0**-7))
    with pytest.raises(WeightsError, match="cannot be scaled by 0.1 in float32 without loss"):
        export_carried.with_tower([], carried, stream_scale=0.1)


@pytest.fixture(scope="module")
def merged(multimodal, tmp_path_factory):
    """A merged base on the multimodal checkpoint, as phase 0 leaves one."""
    base = open_weights(str(multimodal))
    directory = tmp_path_factory.mktemp("run") / "bases" / "phase0-1"
    directory.mkdir(parents=True)
    return save_base(directory, base.load(jnp.float32), base.config, base.tokenizer, {"made_by": "tests"}, base.carried)


def test_a_merged_base_stands_by_itself(merged, multimodal, tmp_path):
    moved = shutil.copytree(merged.name, tmp_path / "moved")
    export_hf(open_model(moved), tmp_path / "out")
    np.testing.assert_array_equal(image_logits(tmp_path / "out"), image_logits(multimodal))
    assert json.loads((tmp_path / "out/generation_config.json").read_text()) == GENERATION
    assert (tmp_path / "out/chat_template.jinja").read_bytes() == TEMPLATE.encode()


@pytest.mark.parametrize("damage", ["chat_template.jinja", "generation_config.json", "tower.safetensors", "all"])
def test_what_a_merged_base_carries_is_checked_against_what_was_written(merged, tmp_path, damage):
    copy = shutil.copytree(merged.name, tmp_path / "copy")
    if damage == "all":
        shutil.rmtree(copy / "carried")
    else:
        raw = bytearray((copy / "carried" / damage).read_bytes())
        raw[-1] ^= 1
        (copy / "carried" / damage).write_bytes(raw)
    base = open_base(copy)
    with pytest.raises(WeightsError, match="carried is not what was written with this base"):
        _ = base.carried


def test_carried_files_are_saved_and_read_back(multimodal, tmp_path):
    carried = read_carried(multimodal, HfSource.open(multimodal).tensors)
    again = open_carried(tmp_path / "kept", save_carried(tmp_path / "kept", carried))
    assert again.files == carried.files and again.where == carried.where and again.tower.keys() == carried.tower.keys()
    assert save_carried(tmp_path / "kept", Carried("x")) and not list((tmp_path / "kept").glob("*.safetensors"))


NAMED = [{"name": "default", "template": "A {{ bos_token }}"}, {"name": "tool_use", "template": "B"}]


def as_files(directory):
    (directory / "additional_chat_templates").mkdir()
    (directory / "chat_template.jinja").write_text("A {{ bos_token }}")
    (directory / "additional_chat_templates/tool_use.jinja").write_text("B")


FORMS = {
    "a file": lambda d: (d / "chat_template.jinja").write_bytes(b"A\r\nB"),
    "files": as_files,
    "in the config": lambda d: said_in_config(d, "A\r\nB"),
    "a list in the config": lambda d: said_in_config(d, NAMED),
    "a file and in the config": lambda d: (as_files(d), said_in_config(d, "another")),
    "none": lambda d: None,
}


def said_in_config(directory, template):
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))


@pytest.mark.parametrize("form", FORMS)
def test_chat_templates_are_carried_in_whichever_form(multimodal, tmp_path, form):
    directory = shutil.copytree(multimodal, tmp_path / "base")
    (directory / "chat_template.jinja").unlink()
    FORMS[form](directory)
    before = transformers.AutoTokenizer.from_pretrained(directory).chat_template
    carried = open_weights(str(directory)).carried.chat_templates
    assert carried == ({} if before is None else {"default": before} if isinstance(before, str) else before)
    export_hf(open_model(directory), tmp_path / "out", text_only=True)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == before


def test_a_gguf_file_s_chat_template_is_carried(tmp_path):
    from medkor_jax.io.gguf import GgufSource

    source = GgufSource.__new__(GgufSource)
    source.path, source._metadata = tmp_path / "a.gguf", {"tokenizer.chat_template": "A\r\n"}
    assert source.make_carried().chat_templates == {"default": "A\r\n"}
    source._metadata = {"tokenizer.chat_template": 3}
    with pytest.raises(WeightsError, match="tokenizer.chat_template is 3; expected a text"):
        source.make_carried()


@pytest.mark.parametrize("bad", [3, True, [], ["x"], [{"name": "a"}], {"a": 1}], ids=repr)
def test_a_chat_template_that_is_none_is_refused(bad):
    carried = Carried("base", {"tokenizer_config.json": json.dumps({"chat_template": bad}).encode()})
    with pytest.raises(WeightsError, match="base/tokenizer_config.json: chat_template is"):
        _ = carried.chat_templates


CHECKED = ["temperature", "top_p", "top_k", "max_length", "max_new_tokens", "num_beams", "do_sample", "bos_token_id", "eos_token_id", "pad_token_id"]


@pytest.mark.parametrize("bad", ["x", -1, 0, 0.5, float("nan"), [3.5], True, {"a": 1}, 10**30], ids=repr)
@pytest.mark.parametrize("key", CHECKED)
def test_generation_defaults_without_sense_are_refused(key, bad):
    carried = Carried("base", {"generation_config.json": json.dumps(GENERATION | {key: bad}).encode()})
    fine = {"temperature": [0.5, 10**30], "top_p": [0.5], "top_k": [0], "do_sample": [True], **{key_0: [0] for key_0 in CHECKED[-3:]}}
    if any(bad is one or type(bad) is type(one) and bad == one for one in fine.get(key, [])):
        assert carried.generation[key] == bad
        return
    with pytest.raises(WeightsError, match=f"base/generation_config.json: {key} is .*; expected"):
        _ = carried.generation


def test_an_end_token_without_a_row_is_refused(multimodal, tmp_path):
    directory = shutil.copytree(multimodal, tmp_path / "base")
    (directory / "generation_config.json").write_text(json.dumps(GENERATION | {"eos_token_id": [1, 5000]}))
    with pytest.raises(WeightsError, match="eos_token_id is 5000; expected a token below 1024"):
        export_hf(open_model(directory), tmp_path / "out")
