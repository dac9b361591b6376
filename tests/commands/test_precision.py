"""`medkor precision` on a tiny model: every form is measured on the same texts and questions, beside the first."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medkor_jax import cli
from medkor_jax.commands import precision
from medkor_jax.commands.precision import FORMS, compare_forms, table
from medkor_jax.io.models import open_model
from medkor_jax.model.forward import Inputs, forward
from medkor_jax.model.params import ADAPTABLE
from medkor_jax.parallel.mesh import one_device
from medkor_jax.train.losses import cross_entropy


@pytest.fixture(scope="module")
def found(tiny_base_dir):
    return compare_forms(
        str(tiny_base_dir), exams=["embedded"], texts=["embedded"], n_questions=12, n_texts=6
    )


def test_every_form_is_measured_on_the_same(found):
    assert list(found["forms"]) == list(FORMS) and found["first"] == "float32"
    for row in found["forms"].values():
        assert set(row["texts"]) == set(row["exams"]) == {"embedded ko", "embedded en"}
        assert [exam["questions"] for exam in row["exams"].values()] == [12, 12]
        assert [text["texts"] for text in row["texts"].values()] == [6, 6]
    tokens = [row["texts"]["embedded ko"]["tokens"] for row in found["forms"].values()]
    assert len(set(tokens)) == 1


def test_fewer_bits_are_further_off(found):
    """On a random model the difference has no sign, but it has a size; the first form has none."""
    off = {
        form: max(max(map(abs, text["interval"])) for text in row["texts"].values())
        for form, row in found["forms"].items()
    }
    assert off["float32"] == 0 < off["bfloat16"] < off["int8"] < off["4-bit"]
    first = found["forms"]["float32"]["exams"]["embedded ko"]
    assert first["same_letter"] == 12 and first["more"] == 0
    sizes = {form: row["bytes"] for form, row in found["forms"].items()}
    assert (
        sizes["int8-tables"] == sizes["4-bit"] == 0
    )  # no run holds them: nothing is said of their size
    assert sizes["float32"] == 2 * sizes["bfloat16"] > 2 * sizes["int8"]


def test_the_nats_are_those_of_the_model(found, tiny_base_dir):
    from medkor_jax.data import embedded

    model = open_model(tiny_base_dir)
    params = model.load(jnp.float32, one_device())
    total = n = 0
    for _, text in embedded.texts("en", "valid")[:6]:
        ids = [model.tokenizer.bos_id, *model.tokenizer.encode(text)[: precision.TEXT_TOKENS]]
        tokens = jnp.asarray([ids])
        inputs = Inputs(tokens, jnp.arange(len(ids))[None], jnp.ones_like(tokens), 0 * tokens)
        hidden = forward(params, model.config, inputs, dtype=jnp.float32)[:, :-1]
        ones = jnp.ones((1, len(ids) - 1))
        total += float(cross_entropy(hidden, params.base["embed"], tokens[:, 1:], ones).loss)
        n += len(ids) - 1
    said = found["forms"]["float32"]["texts"]["embedded en"]
    assert said["tokens"] == n
    np.testing.assert_allclose(said["nats"], total / n, rtol=1e-4)


def test_forms_that_no_run_has_are_what_they_say(tiny_base_dir):
    base = open_model(tiny_base_dir).load(jnp.float32, one_device()).base
    tables = precision._tables_in_int8(base)
    off = jnp.abs(tables["embed"] - base["embed"])
    assert (
        off <= 0.51 * jnp.abs(base["embed"]).max(axis=-1, keepdims=True) / 127
    ).all() and off.any()
    assert tables["layers"] is base["layers"]
    four = precision._matrices_in_4_bits(base)["layers"]
    for name in ADAPTABLE:
        levels = np.unique(np.asarray(four[name][0, :, 0]))
        assert 1 < len(levels) <= 15, name
    jax.tree.map(
        np.testing.assert_array_equal, four["pre_attn_norm"], base["layers"]["pre_attn_norm"]
    )


def test_the_table_and_the_json_say_the_same(found, tiny_base_dir, capsys):
    printed = table(found)
    for form, row in found["forms"].items():
        assert f"{form}: {row['words']}" in printed
        assert f"{row['texts']['embedded ko']['nats']:.4f} nats a token" in printed
    arguments = ["--weights", str(tiny_base_dir), "--text", "embedded", "--texts", "2", "--json"]
    assert cli.main(["precision", *arguments, "--forms", "bfloat16", "int8"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["first"] == "bfloat16" and list(said["forms"]) == ["bfloat16", "int8"]


def test_nothing_to_measure_is_said_before_weights_are_opened(capsys):
    assert cli.main(["precision", "--weights", "nowhere"]) == 1
    assert "give --exam or --text" in capsys.readouterr().err
