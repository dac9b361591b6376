"""A saved model is the model; one of which a part was exchanged is refused."""

import json
import shutil

import jax
import jax.numpy as jnp
import pytest

from medkor_jax.adapt.expansion import make_expansion
from medkor_jax.adapt.language import make_language
from medkor_jax.adapt.lora import make_lora
from medkor_jax.io.bases import save_base
from medkor_jax.io.checkpoint import digest_tree, save_tree
from medkor_jax.io.files import read_sealed, write_json, write_sealed
from medkor_jax.io.hf import EXPORT_RECORD
from medkor_jax.io.models import open_model, save_model, style_of_phase
from medkor_jax.io.streaming import WeightsError
from medkor_jax.io.weights import _said_by_export
from medkor_jax.parallel.mesh import MeshShape, make_mesh


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshShape())


@pytest.fixture(scope="module")
def adapted(tiny_base_dir, mesh):
    """Parameters with LoRA and language vectors of random numbers."""
    params = open_model(tiny_base_dir).load(jnp.float32, mesh)
    lora = make_lora(params.base, jax.random.key(0), rank=2, targets=("q", "up"))
    lang = make_language(open_model(tiny_base_dir).config, kind="vector")
    lora, lang = jax.tree.map(
        lambda x: jax.random.normal(jax.random.key(x.size), x.shape, x.dtype), (lora, lang)
    )
    return params.replace(lora=lora, lang=lang, lora_scale=3.5)


@pytest.fixture
def phase(tmp_path, tiny_base_dir, adapted):
    """A run directory with one finished phase on a base of its own, as a merge leaves it."""
    shutil.copytree(tiny_base_dir, tmp_path / "run/phase0/base")
    save_model(tmp_path / "run/phase0", adapted, open_model(tmp_path / "run/phase0/base").base)
    write_json(
        tmp_path / "run/ledger.json",
        [{"phase": "phase0", "event": "started"}, {"phase": "phase1", "event": "started"}],
    )
    return tmp_path / "run/phase0"


def test_a_saved_model_comes_back_whole(phase, adapted, mesh):
    model = open_model(phase)
    back = model.load(jnp.float32, mesh)
    for name in ("base", "lora", "lang", "expand"):
        assert digest_tree(getattr(back, name)) == digest_tree(getattr(adapted, name)), name
    assert back.lora_scale == 3.5
    assert model.tokenizer.encode("Answer: A") == open_model(phase / "base").tokenizer.encode(
        "Answer: A"
    )


def test_added_layers_come_back_whole_with_the_side_they_stand_on(
    tmp_path, adapted, mesh, tiny_base_dir
):
    base = open_model(tiny_base_dir).base
    expand = jax.tree.map(lambda x: x + 0.25, make_expansion(adapted.base, front=2, back=1))
    model = save_model(tmp_path / "phase4", adapted.replace(expand=expand), base)
    back = model.load(jnp.float32, mesh)
    assert digest_tree(back.expand) == digest_tree(expand) and set(back.expand) == {"front", "back"}
    assert digest_tree(back.lora) == digest_tree(adapted.lora)
    one_sided = save_model(
        tmp_path / "one", adapted.replace(lora={}, lang={}, expand={"back": expand["back"]}), base
    )
    back = one_sided.load(jnp.float32, mesh)
    assert digest_tree(back.expand) == digest_tree({"back": expand["back"]}) and not back.lora
    assert (
        len({model.digest, one_sided.digest, save_model(tmp_path / "none", adapted, base).digest})
        == 3
    )


def test_a_base_stored_in_float32_loads_as_bfloat16(tiny_base_dir, mesh):
    model = open_model(tiny_base_dir)
    low, full = model.load(jnp.bfloat16, mesh).base, model.load(jnp.float32, mesh).base
    assert digest_tree(low) == digest_tree(jax.tree.map(lambda x: x.astype(jnp.bfloat16), full))


def test_the_digest_changes_with_the_base_the_adapters_and_the_scale(
    phase, adapted, tmp_path, tiny_base_dir
):
    plain = open_model(tiny_base_dir)
    other_base = jax.tree.map(lambda x: x, adapted.base) | {
        "final_norm": adapted.base["final_norm"] + 1e-3
    }
    variants = [
        save_model(tmp_path / "run/a", adapted.replace(lora_scale=3.0), plain.base),
        save_model(tmp_path / "run/b", adapted.replace(lang={}), plain.base),
        save_model(
            tmp_path / "run/c",
            adapted,
            save_base(tmp_path / "other", other_base, plain.config, plain.tokenizer, {}),
        ),
        open_model(phase),
        plain,
    ]
    assert len({model.digest for model in variants}) == len(variants)
    assert save_model(tmp_path / "run/d", adapted, plain.base).digest == open_model(phase).digest
    assert (
        save_model(tmp_path / "run/e", adapted.replace(lora={}, lang={}), plain.base).digest
        == plain.digest
    )


def test_changed_adapters_are_refused(phase, adapted, mesh):
    changed = jax.tree.map(lambda x: x, adapted.lora)
    changed["q"]["b"] = changed["q"]["b"].at[0, 0, 0].add(1e-3)
    save_tree(phase / "adapters", {"lora": changed, "lang": adapted.lang})
    with pytest.raises(WeightsError, match="not what model.json recorded"):
        open_model(phase).load(jnp.float32, mesh)


def test_a_replaced_base_is_refused(phase, adapted):
    save_tree(phase / "base/tree", adapted.base | {"final_norm": adapted.base["final_norm"] + 1e-3})
    with pytest.raises(WeightsError, match="weights were replaced or damaged"):
        open_model(phase)


def test_a_base_that_lacks_a_part_is_refused(phase):
    (phase / "base/model_config.json").unlink()
    with pytest.raises(WeightsError, match="no model_config.json"):
        open_model(phase)


def test_a_model_of_another_format_is_refused(phase):
    said = json.loads((phase / "model.json").read_text())
    write_json(phase / "model.json", said | {"format": 99})
    with pytest.raises(WeightsError, match="changed after it was written"):
        open_model(phase)
    del said["checksum"]
    write_sealed(phase / "model.json", said | {"format": 99})
    with pytest.raises(WeightsError, match="format 99"):
        open_model(phase)


def test_lineage_keeps_what_it_was_told_and_the_dtype(tmp_path, adapted, tiny_base_dir):
    model = open_model(tiny_base_dir)
    save_base(
        tmp_path / "base",
        adapted.base,
        model.config,
        model.tokenizer,
        {"made_by": "a merge", "rank": 2},
    )
    said = json.loads((tmp_path / "base/lineage.json").read_text())
    assert (said["made_by"], said["rank"], said["dtype"]) == ("a merge", 2, "float32")
    assert said["leaves_digest"] == digest_tree(adapted.base)


def test_a_base_saved_again_keeps_its_digest(phase, adapted, mesh):
    """The digest is of the tensors: other files that hold them are the same base."""
    before = open_model(phase).digest
    save_tree(phase / "base/tree", adapted.base)
    assert open_model(phase).digest == before


@pytest.mark.parametrize("part", ["model_config.json", "tokenizer.model"])
def test_a_base_knows_its_config_and_its_tokenizer(phase, part, mesh):
    path = phase / "base" / part
    if part == "model_config.json":
        path.write_text(
            path.read_text().replace('"rope_scaling_global": 8.0', '"rope_scaling_global": 4.0')
        )
    else:
        raw = bytearray(path.read_bytes())
        raw[raw.index("정답".encode()) + 5] ^= 1
        path.write_bytes(bytes(raw))
    with pytest.raises(
        WeightsError, match=f"{part.split('.')[0].split('_')[0]}.*not.*written with this base"
    ):
        open_model(phase).load(jnp.float32, mesh)


def test_a_copied_run_stands_on_its_own_base(phase, adapted, tmp_path, mesh):
    """Two phases, the later one on the earlier one's base: copied, it reads nothing of the original."""
    save_model(phase.parent / "phase1", adapted, open_model(phase).base)
    said = json.loads((phase.parent / "phase1/model.json").read_text())
    assert said["base_is_relative"] and said["base"] == "../phase0/base"
    shutil.copytree(phase.parent, tmp_path / "copy")
    shutil.rmtree(phase.parent)
    assert open_model(tmp_path / "copy/phase1").load(jnp.float32, mesh).lora_scale == 3.5


def test_outside_weights_that_are_gone_are_named(tmp_path, tiny_base_dir, adapted):
    shutil.copytree(tiny_base_dir, tmp_path / "models/base")
    save_model(tmp_path / "run/phase1", adapted, open_model(tmp_path / "models/base").base)
    shutil.rmtree(tmp_path / "models")
    with pytest.raises(WeightsError, match="needs outside weights.*models/base.*with digest"):
        open_model(tmp_path / "run/phase1")


def test_what_was_taught_before_there_was_a_choice_was_taught_plainly(
    phase, tiny_base_dir, tmp_path
):
    assert open_model(tiny_base_dir).style == "plain"  # a merge that says nothing of it
    stored = read_sealed(phase / "model.json")
    del stored["style"]
    write_sealed(phase / "model.json", stored)
    assert open_model(phase).style == style_of_phase(phase) == "plain"
    assert style_of_phase(tmp_path / "run/phase1") == ""
    assert _said_by_export(tmp_path) == ((), "")
    (tmp_path / EXPORT_RECORD).write_text('{"read": []}')
    assert _said_by_export(tmp_path) == ((), "plain")
