"""Adapters in the form of `peft`, on the export of their base: the run's logits, or a refusal by name."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medkor_jax.io.bases import save_base
from medkor_jax.io.export import export_hf
from medkor_jax.io.export_peft import _adapter_config, export_peft
from medkor_jax.io.exported import ExportError
from medkor_jax.io.models import open_model, save_model
from medkor_jax.model.forward import Inputs, forward, project_logits
from medkor_jax.model.params import Params
from medkor_jax.parallel.mesh import host_mesh

TOKENS = [2, 300, 17, 512, 44, 45, 46, 700, 9, 10, 11, 12, 600, 601, 33, 34, 35, 36, 37, 38]


@pytest.fixture(scope="module")
def adapted(tiny_base_dir, make_adapters, tmp_path_factory):
    """A phase with adapters on every matrix, on a merged base, as phase 2 leaves it."""
    run = tmp_path_factory.mktemp("run")
    shutil.copytree(tiny_base_dir, run / "phase0/base")
    base = open_model(run / "phase0/base").base
    tree = base.load(jnp.float32)
    lora = jax.tree.map(jnp.asarray, make_adapters(tree))
    return save_model(run / "phase2", Params(tree, lora=lora, lora_scale=0.7), base)


@pytest.fixture(scope="module")
def exported_base(adapted, tmp_path_factory):
    out = tmp_path_factory.mktemp("base") / "exported"
    export_hf(open_model(adapted.base.name), out)
    return out


@pytest.mark.parametrize("targets", [None, ("q", "down")])
def test_peft_gives_the_runs_logits(adapted, exported_base, tmp_path, targets):
    torch, transformers, peft = (
        pytest.importorskip(name) for name in ("torch", "transformers", "peft")
    )
    params = adapted.load(jnp.float32, host_mesh())
    model = adapted
    if targets:
        params = params.replace(lora={name: params.lora[name] for name in targets})
        model = save_model(tmp_path / "phase2", params, adapted.base)
    export_peft(model, tmp_path / "adapter", base=str(exported_base))

    plain = transformers.AutoModelForCausalLM.from_pretrained(exported_base, dtype=torch.float32)
    with torch.no_grad():
        without = plain(input_ids=torch.tensor([TOKENS])).logits[0].numpy()
        theirs = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
        found = theirs(input_ids=torch.tensor([TOKENS])).logits[0].numpy()
    tokens = jnp.array([TOKENS], jnp.int32)
    inputs = Inputs(
        tokens, jnp.arange(len(TOKENS))[None], jnp.ones_like(tokens), jnp.zeros_like(tokens)
    )
    with jax.default_matmul_precision("highest"):
        ours = np.asarray(
            project_logits(params.base, forward(params, model.config, inputs, dtype=jnp.float32)[0])
        )
    np.testing.assert_allclose(found, ours, atol=2e-4, rtol=0)
    assert np.abs(found - without).max() > 0.5  # the adapters do something
    loaded = {name for name, _ in theirs.named_parameters() if "lora_" in name}
    assert len(loaded) == 2 * 7 * len(params.lora)


def test_the_auto_class_finds_the_base_by_its_name(adapted, exported_base, tmp_path):
    peft = pytest.importorskip("peft")
    export_peft(adapted, tmp_path / "adapter", base=str(exported_base))
    assert (
        peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").peft_config["default"].r
        == 3
    )
    card = (tmp_path / "adapter/README.md").read_text(encoding="utf-8")
    assert "library_name: peft" in card and "PeftModel" in card and adapted.digest in card


def test_a_merged_base_must_be_exported_first(adapted, tmp_path):
    with pytest.raises(
        ExportError,
        match=r"a base that this run merged.*--weights .*phase0/base --to hf --out BASE\).*--base BASE",
    ):
        export_peft(adapted, tmp_path / "adapter")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("trees", "named"),
    [
        (dict(lang={"vector": jnp.ones((2, 32))}), "language embeddings"),
        (dict(expand={"front": {"pre_attn_norm": jnp.ones((1, 32))}}), "added layers"),
        (dict(lora={}), "no adapters"),
    ],
)
def test_what_an_adapter_cannot_hold_is_refused_by_name(
    adapted, exported_base, tmp_path, trees, named
):
    params = adapted.load(jnp.float32, host_mesh()).replace(**trees)
    model = save_model(tmp_path / "run/phase4", params, adapted.base)
    with pytest.raises(ExportError, match=named):
        export_peft(model, tmp_path / "adapter", base=str(exported_base))
    assert not (tmp_path / "adapter").exists()


def test_another_base_is_refused(adapted, tiny_base_dir, exported_base, tmp_path):
    base = open_model(tiny_base_dir)
    tree = base.base.load(jnp.float32)
    save_base(
        tmp_path / "other",
        tree | {"final_norm": tree["final_norm"] + 1e-3},
        base.config,
        base.tokenizer,
        {},
    )
    export_hf(open_model(tmp_path / "other"), tmp_path / "other-hf")
    with pytest.raises(ExportError, match="other-hf is of the weights .* stands on"):
        export_peft(adapted, tmp_path / "adapter", base=str(tmp_path / "other-hf"))
    with pytest.raises(ExportError, match="no base is called"):
        export_peft(adapted, tmp_path / "adapter", base="a/b/nowhere")
    export_hf(open_model(adapted.base.name), tmp_path / "narrow", dtype="bfloat16")
    notes = export_peft(adapted, tmp_path / "adapter", base=str(tmp_path / "narrow")).notes
    assert len(notes) == 1 and "in bfloat16" in notes[0]


def test_a_run_on_a_transformers_checkpoint_names_it(adapted, exported_base, tmp_path):
    base = open_model(exported_base)
    params = adapted.load(jnp.float32, host_mesh())
    model = save_model(tmp_path / "run/phase2", params, base.base)
    export_peft(model, tmp_path / "adapter")
    said = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert said["base_model_name_or_path"] == str(exported_base)
    assert said["lora_alpha"] / said["r"] == pytest.approx(0.7)


def test_the_text_tower_alone_is_adapted_in_a_multimodal_base():
    import re

    lora = {name: {"a": np.zeros((7, 4, 3)), "b": np.zeros((7, 3, 4))} for name in ("q", "down")}
    pattern = _adapter_config(lora, 1.0, "google/medgemma-4b-it", is_multimodal=True)[
        "target_modules"
    ]
    assert re.fullmatch(pattern, "model.language_model.layers.3.self_attn.q_proj")
    assert re.fullmatch(pattern, "model.language_model.layers.13.mlp.down_proj")
    assert not re.fullmatch(
        pattern, "model.vision_tower.vision_model.encoder.layers.3.self_attn.q_proj"
    )
    assert not re.fullmatch(pattern, "model.language_model.layers.3.mlp.up_proj")
