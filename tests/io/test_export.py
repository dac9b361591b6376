"""What transformers makes of an export is what the run was: ids, logits, greedy tokens; the rest is refused by name."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medkor_jax.adapt.lora import merge
from medkor_jax.data.language import KOREAN, token_languages
from medkor_jax.data.reading import add_readings
from medkor_jax.data.rows import Source
from medkor_jax.io import export
from medkor_jax.io.bases import save_base
from medkor_jax.io.export import export_hf
from medkor_jax.io.exported import ExportError
from medkor_jax.io.files import write_json
from medkor_jax.io.hf import EXPORT_RECORD, LAYER_NAMES
from medkor_jax.io.models import open_model, save_model
from medkor_jax.io.safetensors_file import read_safetensors_header
from medkor_jax.io.shards import Planned
from medkor_jax.model.decode import Decoder
from medkor_jax.model.forward import Inputs, forward, project_logits
from medkor_jax.model.prompts import Routing
from medkor_jax.parallel.mesh import host_mesh

TEXTS = [
    "58세 남자가 쥐어짜는 듯한 가슴통증으로 병원에 왔다. 가장 가능성이 높은 진단은?\nA. 협심증\nB. 위염\n정답:",
    "A 58-year-old man has crushing chest pain.\nA. angina\nB. gastritis\nAnswer:",
    "항문열창(anal fissure)의 치료:  37.5도\n\n뷁 쮋 둘 다 드문 음절",
]
# No character but Hangul that this small vocabulary spells in bytes: see the test of the fold.


@pytest.fixture(scope="module")
def whole(save_adapted):
    """Everything at once: adapters, language vectors, two layers in front and one behind."""
    return save_adapted(lora=True, lang="vector", front=2, back=1)


@pytest.fixture(scope="module")
def exported(whole, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "model"
    export_hf(whole, out)
    return out


def reference(directory):
    """Returns the export as whoever uses it loads it: (tokenizer, model)."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model, said = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, output_loading_info=True
    )
    assert not any(said[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return transformers.AutoTokenizer.from_pretrained(directory), model.eval()


def their_logits(model, ids):
    import torch

    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0].float().numpy()


def our_logits(model, ids):
    """Returns the run's own logits, its tokens routed by their text."""
    params = model.load(jnp.float32, host_mesh())
    langs = token_languages(np.array(ids), model.tokenizer)
    tokens = jnp.array([ids], jnp.int32)
    inputs = Inputs(
        tokens, jnp.arange(len(ids))[None], jnp.ones_like(tokens), jnp.asarray(langs[None])
    )
    with jax.default_matmul_precision("highest"):
        hidden = forward(params, model.config, inputs, dtype=jnp.float32)
        return np.asarray(project_logits(params.base, hidden[0]))


def encode(model, text):
    return [model.tokenizer.bos_id, *model.tokenizer.encode(text)]


VARIANTS = {
    "base": {}, "lora": dict(lora=True), "vector": dict(lang="vector"), "table": dict(lang="table"), "front": dict(front=1),
    "back": dict(back=2), "all": dict(lora=True, lang="table", front=1, back=1),
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_transformers_gives_the_runs_logits(save_adapted, tmp_path, variant):
    model = save_adapted(**VARIANTS[variant])
    done = export_hf(model, tmp_path / "out")
    _, theirs = reference(tmp_path / "out")
    for text in TEXTS:
        ids = encode(model, text)
        ours = our_logits(model, ids)
        assert np.abs(ours).max() > 5
        np.testing.assert_allclose(their_logits(theirs, ids), ours, atol=2e-4, rtol=0)
    is_tied = json.loads((tmp_path / "out/config.json").read_text())["tie_word_embeddings"]
    assert is_tied == ("lang" not in VARIANTS[variant])
    assert ("lm_head.weight" in read_safetensors_header(tmp_path / "out/model.safetensors")) == (
        not is_tied
    )
    assert list(done.files) == ["model.safetensors"] and done.files["model.safetensors"] > 100_000


def test_the_ids_are_ours_with_bos_in_front(whole, exported):
    tokenizer, _ = reference(exported)
    odd = [
        "",
        " ",
        "   a",
        "a\n b\n\n  c\t\td",
        "뷁",
        "\u1100\u1161",
        "mg/dL±3",
        "=" * 77,
        "🏳️‍🌈",
        "𠮷",
    ]
    for text in [*TEXTS, *odd]:
        assert tokenizer(text)["input_ids"] == encode(whole, text), text
        assert tokenizer.decode(encode(whole, text), skip_special_tokens=True) == text
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (2, 1, 0)
    assert (
        len(tokenizer) == whole.tokenizer.vocab_size
    )  # a class that adds <mask> would make it one more


def test_a_base_with_a_tokenizer_json_keeps_it(whole, exported, tiny_base_dir, tmp_path):
    """A base whose tokenizer is a tokenizer.json, as of a checkpoint from the hub, exports that very file."""
    from medkor_jax.data.tokenizer import Tokenizer

    (tmp_path / "fast").mkdir()
    (tmp_path / "fast/tokenizer.json").write_bytes((exported / "tokenizer.json").read_bytes())
    base = open_model(tiny_base_dir)
    fast = Tokenizer.load(tmp_path / "fast")
    save_base(
        tmp_path / "base", base.base.load(jnp.float32), base.config, fast, {"made_by": "tests"}
    )
    export_hf(open_model(tmp_path / "base"), tmp_path / "out")
    assert (tmp_path / "out/tokenizer.json").read_bytes() == (
        exported / "tokenizer.json"
    ).read_bytes()
    made, own = (
        Tokenizer.parse_sentencepiece((d / "tokenizer.model").read_bytes())
        for d in (tmp_path / "out", exported)
    )
    assert made.pieces == own.pieces and made.encode_batch(TEXTS) == own.encode_batch(TEXTS)
    tokenizer, _ = reference(tmp_path / "out")
    assert [tokenizer(text)["input_ids"] for text in TEXTS] == [
        encode(whole, text) for text in TEXTS
    ]


def test_greedy_tokens_are_ours(whole, exported):
    import torch

    tokenizer, theirs = reference(exported)
    routing = Routing.by_token(whole.tokenizer.languages, whole.config.vocab_size)
    decoder = Decoder(
        whole.config, dtype=jnp.float32, stop_ids=(whole.tokenizer.eos_id,), routing=routing
    )
    params = whole.load(jnp.float32, host_mesh())
    for text in TEXTS[:2]:
        ids = encode(whole, text)
        ours = decoder.generate(params, [ids], max_new_tokens=20)[0].tokens
        with torch.no_grad():
            found = theirs.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=20)[
                0
            ].tolist()
        assert found == [*ids, *ours] and len(ours) == 20


def test_added_layers_are_ordinary_layers_at_both_ends(whole, exported):
    config = json.loads((exported / "config.json").read_text())
    kinds = ["sliding_attention"] * 7 + ["full_attention"] + ["sliding_attention"] * 2
    assert (config["num_hidden_layers"], config["layer_types"]) == (10, kinds)
    params = whole.load(jnp.float32, host_mesh())
    merged = merge(params.base, params.lora, scale=params.lora_scale)["layers"]
    stacks = [
        (params.expand["front"], 0),
        (params.expand["front"], 1),
        *((merged, i) for i in range(7)),
        (params.expand["back"], 0),
    ]
    _, theirs = reference(exported)
    state = {name: value.numpy() for name, value in theirs.state_dict().items()}
    for number, (stack, i) in enumerate(stacks):
        for leaf, name in LAYER_NAMES.items():
            np.testing.assert_array_equal(
                state[f"model.layers.{number}.{name}.weight"], np.asarray(stack[leaf][i]).T
            )


def test_the_fold_says_which_pieces_it_cannot_hold(whole, exported, save_adapted, tmp_path):
    record = json.loads((exported / EXPORT_RECORD).read_text())
    assert any("64 byte pieces" in note and "folded as Korean" in note for note in record["notes"])
    assert "64 byte pieces" in (exported / "README.md").read_text(encoding="utf-8")
    with pytest.raises(ExportError, match="64 byte pieces.*language that depends"):
        export_hf(whole, tmp_path / "strict", exact_bytes=True)
    assert list(tmp_path.iterdir()) == []

    _, theirs = reference(exported)
    rare_hangul, rare_other = encode(whole, "뷁 쮋"), encode(whole, "a 𠮷")
    assert (
        sum(whole.tokenizer.byte_value[rare_hangul] >= 0) == 6
        and sum(whole.tokenizer.byte_value[rare_other] >= 0) == 4
    )
    differences = [
        np.abs(their_logits(theirs, ids) - our_logits(whole, ids)).max()
        for ids in (rare_hangul, rare_other)
    ]
    assert differences[0] < 2e-4 < 0.1 < differences[1]

    # Where both languages say the same of those pieces, nothing is approximated.
    same = save_adapted(lang="table")
    params = same.load(jnp.float32, host_mesh())
    bytes_ = np.flatnonzero(same.tokenizer.byte_value >= 0x80)
    table = params.lang["table"].at[:, bytes_].set(0.0)
    again = save_model(tmp_path / "run/phase4", params.replace(lang={"table": table}), same.base)
    assert not any(
        "byte pieces" in note for note in export_hf(again, tmp_path / "out", exact_bytes=True).notes
    )


def test_zero_language_embeddings_leave_the_head_tied(save_adapted, tmp_path):
    model = save_adapted(lang="vector")
    params = model.load(jnp.float32, host_mesh())
    zero = save_model(
        tmp_path / "run/phase4",
        params.replace(lang={"vector": jnp.zeros_like(params.lang["vector"])}),
        model.base,
    )
    done = export_hf(zero, tmp_path / "out", exact_bytes=True)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["tie_word_embeddings"] is True and done.notes == ()


def test_bfloat16_rounds_what_float32_holds_once(whole, exported, tmp_path):
    import safetensors.torch
    import torch

    done = export_hf(whole, tmp_path / "narrow", dtype="bfloat16")
    assert any("bfloat16" in note for note in done.notes)
    wide = safetensors.torch.load_file(exported / "model.safetensors")
    narrow = safetensors.torch.load_file(tmp_path / "narrow/model.safetensors")
    assert wide.keys() == narrow.keys() and {t.dtype for t in narrow.values()} == {torch.bfloat16}
    for name in wide:
        if name != "model.embed_tokens.weight":  # divided by sqrt(D) as bfloat16 rounds it
            assert torch.equal(narrow[name], wide[name].to(torch.bfloat16)), name
    shape = wide["model.embed_tokens.weight"].shape
    scale = float(torch.tensor(shape[1] ** 0.5, dtype=torch.bfloat16))
    assert scale != shape[1] ** 0.5
    params = whole.load(jnp.float32, host_mesh())
    languages = np.zeros(shape[0], int)
    pieces = whole.tokenizer
    languages[: pieces.vocab_size][
        pieces.is_hangul_piece | (pieces.byte_value >= 0xEA) & (pieces.byte_value <= 0xED)
    ] = KOREAN
    languages[: pieces.vocab_size][(pieces.byte_value >= 0x80) & (pieces.byte_value <= 0xBF)] = (
        KOREAN
    )
    expected = np.asarray(params.base["embed"]) + np.asarray(params.lang["vector"])[
        languages
    ] / np.float32(scale)
    assert torch.equal(
        narrow["model.embed_tokens.weight"], torch.tensor(expected).to(torch.bfloat16)
    )


@pytest.fixture
def young_layers(tiny_base_dir, tmp_path):
    """young_layers(shift): a saved phase whose added layers have moved by no more than `shift` from where they are silent."""
    from medkor_jax.adapt.expansion import make_expansion
    from medkor_jax.io.rounding import SILENCED

    def make(shift):
        base, rng = open_model(tiny_base_dir), np.random.default_rng(0)
        params = base.load(jnp.float32, host_mesh())
        expand = make_expansion(params.base, front=1, back=1)
        for block in expand.values():
            block |= {
                name: block[name]
                + jnp.asarray(rng.uniform(-shift, shift, block[name].shape), jnp.float32)
                for name in SILENCED
            }
        return save_model(tmp_path / "run/phase4", params.replace(expand=expand), base.base)

    return make


@pytest.mark.parametrize("shift", [0.0005, 0.0017, 0.005])
def test_a_bfloat16_export_keeps_what_young_added_layers_say(young_layers, shift, tmp_path):
    """At w = -1 bfloat16 steps by 0.004: written as they are, such layers would be silent, or say something else."""
    model = young_layers(shift)
    done = export_hf(model, tmp_path / "out", dtype="bfloat16")
    record = json.loads((tmp_path / "out" / EXPORT_RECORD).read_text())
    kept = record["rounding"]["added layers"]
    assert record["stream_scale"] > 8 and abs(kept["lost"]) < 0.02 and kept["noise"] < 0.05
    assert any("added layers: rounding" in note for note in done.notes) and any(
        "residual stream is carried" in note for note in done.notes
    )
    assert "added layers: rounding" in (tmp_path / "out/README.md").read_text().lower()
    # and so it is where others load it: what its first and its last layer say there is what the added ones say here
    import torch

    ids = encode(model, TEXTS[0])
    _, theirs = reference(tmp_path / "out")
    whole = their_logits(theirs, ids)
    with torch.no_grad():
        for layer in (theirs.model.layers[0], theirs.model.layers[-1]):
            for norm in (layer.post_attention_layernorm, layer.post_feedforward_layernorm):
                norm.weight.fill_(-1.0)
    said = whole - their_logits(theirs, ids)
    ours = our_logits(model, ids) - our_logits(open_model(model.base.name), ids)
    assert np.linalg.norm(said - ours) < 0.1 * np.linalg.norm(ours)


def test_a_bfloat16_export_that_silences_a_part_is_refused_with_the_dtype_that_keeps_it(
    young_layers, tmp_path, monkeypatch
):
    monkeypatch.setattr(export, "choose_stream_scale", lambda *_: 1)  # as it was
    with pytest.raises(
        ExportError,
        match=r"does not survive bfloat16: added layers: rounding takes 100.0%.*--dtype float32",
    ):
        export_hf(young_layers(0.001), tmp_path / "out", dtype="bfloat16")
    assert not (tmp_path / "out").exists()
    export_hf(young_layers(0.001), tmp_path / "out", dtype="float32")
    assert json.loads((tmp_path / "out" / EXPORT_RECORD).read_text())["rounding"] == {}


def test_every_part_is_measured(whole, tmp_path):
    export_hf(whole, tmp_path / "out", dtype="bfloat16")
    kept = json.loads((tmp_path / "out" / EXPORT_RECORD).read_text())["rounding"]
    assert list(kept) == ["LoRA", "language embeddings", "added layers", "everything"]
    assert all(
        one["effect"] > 0.1 and abs(one["lost"]) < 0.05
        for name, one in kept.items()
        if name != "everything"
    )


def test_shards_hold_the_same_tensors_and_load(whole, exported, tmp_path):
    import safetensors.numpy

    done = export_hf(whole, tmp_path / "out", max_shard_bytes=100_000)
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert len(done.files) > 3 and set(index["weight_map"].values()) == set(done.files)
    one = safetensors.numpy.load_file(exported / "model.safetensors")
    for name, file in index["weight_map"].items():
        np.testing.assert_array_equal(
            safetensors.numpy.load_file(tmp_path / "out" / file)[name], one[name]
        )
    assert index["weight_map"].keys() == one.keys()
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in one.values())
    small = [
        n
        for file, n in done.files.items()
        if file != index["weight_map"]["model.embed_tokens.weight"]
    ]
    small = [n for n in small if n != done.files[index["weight_map"]["lm_head.weight"]]]
    assert max(small) < 100_000 + 4096  # values, and the header
    reference(tmp_path / "out")


def test_one_tensor_at_a_time_is_alive(whole, tmp_path, monkeypatch):
    """Every value is written before the next is made: the host never holds the model twice."""
    import weakref

    alive = []
    plan = export.plan_tensors

    def watched(*arguments):
        def watch(make):
            def value():
                assert not [ref for ref in alive if ref() is not None], (
                    "an earlier tensor is still held"
                )
                array = np.array(make())
                alive.append(weakref.ref(array))
                return array

            return value

        return [Planned(t.name, t.shape, watch(t.make)) for t in plan(*arguments)]

    monkeypatch.setattr(export, "plan_tensors", watched)
    export_hf(whole, tmp_path / "out")
    assert len(alive) == 10 * 13 + 3


def test_our_own_loader_takes_the_export(whole, exported):
    back = open_model(exported)
    assert not back.config.tied_head and back.config.n_layers == 10
    ids = encode(whole, TEXTS[0])
    np.testing.assert_allclose(our_logits(back, ids), our_logits(whole, ids), atol=2e-4, rtol=0)


def test_an_export_can_be_exported_again(exported, tmp_path):
    export_hf(open_model(exported), tmp_path / "again")
    ours, theirs = ((d / "model.safetensors").read_bytes() for d in (exported, tmp_path / "again"))
    assert ours == theirs


def test_routing_by_document_is_refused_by_name(save_adapted, tmp_path):
    with pytest.raises(ExportError, match="routed by document"):
        export_hf(save_adapted(lang="vector", language_unit="document"), tmp_path / "out")
    export_hf(
        save_adapted(lora=True, language_unit="document"), tmp_path / "fine"
    )  # without language embeddings there is nothing to choose
    assert [p.name for p in tmp_path.iterdir()] == ["fine"]


def test_a_full_target_another_dtype_and_no_tokenizer_are_refused(whole, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/kept.txt").write_text("kept")
    with pytest.raises(ExportError, match="not empty"):
        export_hf(whole, tmp_path / "out")
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "kept.txt"]
    with pytest.raises(ExportError, match="float16"):
        export_hf(whole, tmp_path / "new", dtype="float16")
    with pytest.raises(ValueError, match="random:tiny has no tokenizer"):
        export_hf(open_model("random:tiny"), tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "empty").mkdir()
    export_hf(whole, tmp_path / "empty")
    assert (tmp_path / "empty/config.json").exists()


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_export_leaves_nothing(whole, tmp_path, monkeypatch, kind):
    def stopped(*arguments):
        assert any(
            p.name == "model.safetensors" for p in tmp_path.rglob("*")
        )  # late: all tensors are written
        raise kind("stopped")

    monkeypatch.setattr(export, "write_card", stopped)
    with pytest.raises(kind):
        export_hf(whole, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_nan_is_refused(save_adapted, tmp_path):
    model = save_adapted(lora=True)
    params = model.load(jnp.float32, host_mesh())
    broken = {
        **params.lora,
        "up": {**params.lora["up"], "b": params.lora["up"]["b"].at[3, 0, 0].set(jnp.nan)},
    }
    with pytest.raises(ValueError, match=r"model.layers.3.mlp.up_proj.weight holds NaN"):
        export_hf(
            save_model(tmp_path / "run/phase4", params.replace(lora=broken), model.base),
            tmp_path / "out",
        )
    assert not (tmp_path / "out").exists()


def test_the_config_reads_the_same_in_either_layout(exported):
    from medkor_jax.model.config import ModelConfig

    raw = json.loads((exported / "config.json").read_text())
    new = {
        k: v
        for k, v in raw.items()
        if k not in ("rope_theta", "rope_local_base_freq", "rope_scaling")
    }
    old = {k: v for k, v in raw.items() if k != "rope_parameters"}
    assert ModelConfig.from_hf(new) == ModelConfig.from_hf(old) == ModelConfig.from_hf(raw)
    assert ModelConfig.from_hf(raw).rope_scaling_global == 8.0
    generation = json.loads((exported / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [1] and generation["do_sample"] is False


def summary(phase, model, before, *, sources=(), accuracy=0.5):
    score = {
        "group": "all",
        "n": 96,
        "accuracy": accuracy,
        "low": accuracy - 0.1,
        "high": accuracy + 0.1,
    }
    exam = {
        "mode": "letter",
        "shots": 0,
        "split": "valid",
        "confidence": 0.95,
        "alarms": [],
        "scores": [score],
    }
    return {
        "phase": phase, "title": f"title of {phase}", "model": model, "sources": list(sources),
        "before": {"digest": before, "exams": {"korean": {**exam, "scores": [{**score, "accuracy": 0.21}]}}},
        "after": {"digest": model, "exams": {"korean": exam}},
    }  # fmt: skip


@pytest.fixture
def run(whole, tmp_path):
    """Three phases, of which the second is not in the line of the third."""
    params = whole.load(jnp.float32, host_mesh())
    run = tmp_path / "run"
    last = save_model(run / "phase4", params, whole.base)
    text = {
        "use": "trained on",
        "name": "kc",
        "kind": "text",
        "path": str(tmp_path / "secret/kc.csv"),
        "split": "train",
        "licence": "CC BY 4.0",
    }
    exam = {
        "use": "judged by",
        "name": "korean",
        "kind": "exam",
        "path": "org/exam",
        "split": "valid",
        "licence": "",
    }
    phases = {
        "phase0": summary("phase0", "aaa", "000", sources=[text, exam]),
        "phase2": summary("phase2", "bbb", "aaa", sources=[{**text, "name": "elsewhere"}]),
        "phase4": summary("phase4", last.digest, "aaa", sources=[text, exam], accuracy=0.625),
    }
    ledger = []
    for name, said in phases.items():
        write_json(run / name / "summary.json", said)
        write_json(
            run / name / "verdict.json",
            {
                "judgement": {"words": f"{name} opens."},
                "waiver": {"reason": "by hand"} if name == "phase4" else None,
            },
        )
        ledger += [{"phase": name, "event": "started"}, {"phase": name, "event": "finished"}]
    write_json(run / "ledger.json", ledger)
    return last


def test_the_card_tells_lineage_licences_and_scores(run, tmp_path):
    export_hf(run, tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlibrary_name: transformers")
    assert f"`{run.digest}`" in card and f"`{run.base.digest}`" in card
    assert "phase0: title of phase0. phase0 opens." in card
    assert "phase4: title of phase4. phase4 opens. Waived: by hand." in card
    assert "phase2" not in card and "elsewhere" not in card  # not in the line of this model
    assert (
        "| korean | letter, plain prompts, 0 shots, valid | 21.0% [40.0%, 60.0%] | 62.5% [52.5%, 72.5%] | 96 |"
        in card
    )
    assert (
        "| kc | text | kc.csv (train) | trained on | CC BY 4.0 |" in card
        and card.count("| kc |") == 1
    )
    assert "| korean | exam | org/exam (valid) | judged by | not stated |" in card
    assert str(tmp_path) not in card and "made_by" not in card
    assert "license_name: that-of-the-base" in card and "on-commercial" not in card
    assert "10 layers (explicit layer_types; the base has 7)" in card


@pytest.mark.parametrize("licence", ["CC BY-NC 2.0", "cc-by-nc-4.0", "for non-commercial use"])
def test_a_non_commercial_source_makes_a_non_commercial_card(run, tmp_path, licence):
    """Also where the weights that the run began with have read it."""
    read = add_readings((), [Source("before", "text", "embedded", licence=licence)], by="other")
    from_weights = dataclasses.replace(run, trained_on=read)
    export_hf(from_weights, tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    assert "license_name: non-commercial-and-that-of-the-base-model" in card
    assert f"- Non-commercial: trained on before ({licence}), so the model is for" in card

    path = run.directory / "summary.json"
    summary = json.loads(path.read_text())
    summary["sources"][0] |= {"licence": "set me", "subset": "a", "part": "train", "revision": "c"}
    path.write_text(json.dumps(summary))
    export_hf(run, tmp_path / "again")
    card = (tmp_path / "again/README.md").read_text(encoding="utf-8")
    assert "No licence is stated for kc: what the model may be used for is not known" in card


def test_weights_without_a_run_say_so(tiny_base_dir, tmp_path):
    export_hf(open_model(tiny_base_dir), tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    assert (
        "without phases of this program" in card
        and "Not measured" in card
        and "not recorded here" in card
    )
    assert pathlib.Path(tiny_base_dir).name in card
