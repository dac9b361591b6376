"""`--mesh`: the same answers however devices share the model, and a mesh that cannot be is refused before weights are opened."""

import json

import jax
import numpy as np
import pytest

from medkor_jax import cli
from medkor_jax.commands import data_translate, opening, verify
from medkor_jax.commands import eval as evaluating
from medkor_jax.commands.ask import ask
from medkor_jax.commands.eval import evaluate_file, evaluate_pairs
from medkor_jax.commands.opening import asking_mesh, open_scorer
from medkor_jax.data import embedded
from medkor_jax.io.loaded_model import load as loaded
from medkor_jax.io.models import open_model
from medkor_jax.parallel.mesh import MeshShape, read_mesh

ONE, SHARED = None, "fsdp=4"
MESHES = ("fsdp=4", "data=2,fsdp=2", "tensor=2", "data=4")


def shape_of(text):
    return text and read_mesh(text)


def test_the_words_of_a_mesh():
    assert read_mesh("fsdp=8") == MeshShape(data=-1, fsdp=8)
    assert read_mesh("data=2, fsdp=4") == MeshShape(data=2, fsdp=4)
    assert read_mesh("tensor=2,fsdp=-1") == MeshShape(data=1, fsdp=-1, tensor=2)


@pytest.fixture
def sizes(monkeypatch):
    """On how many devices each model was loaded, in order."""
    found = []
    for module in ("opening", "ask"):
        place = f"medkor_jax.commands.{module}.load"

        def load(model, dtype, mesh, **rest):
            found.append(mesh.size)
            return loaded(model, dtype, mesh, **rest)

        monkeypatch.setattr(place, load)
    return found


COMMANDS = {
    "eval": ["eval", "--weights", "WEIGHTS", "--exam", "embedded", "--limit", "2"],
    "pairs": ["eval", "--weights", "WEIGHTS", "--pairs", "embedded", "--limit", "2"],
    "ask": ["ask", "--weights", "WEIGHTS", "--exam", "embedded", "--mode", "letter"],
    "translate": ["data", "translate", "--weights", "WEIGHTS", "--exam", "embedded", "--to", "en", "--out", "OUT"],
    "verify": ["verify", "--weights", "WEIGHTS"],
}  # fmt: skip


@pytest.mark.parametrize(
    "mesh, words",
    [
        ("fsd=4", "'fsd' is no axis of a mesh; nearest: 'fsdp'"),
        ("fsdp=0", "fsdp=0 is given; expected a number of devices, at least 1"),
        ("fsdp=two", "fsdp=two is given"),
        ("fsdp=2,fsdp=2", "fsdp is given twice"),
        ("fsdp=8", "does not use the 4 devices present: their product must be 4"),
        ("data=2,fsdp=3", "does not use the 4 devices present"),
    ],
)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_mesh_that_cannot_be_is_refused_before_weights_are_opened(
    command, mesh, words, monkeypatch, tmp_path, capsys
):
    for module in (evaluating, data_translate, verify):
        monkeypatch.setattr(module, "open_model", lambda name: pytest.fail("weights were opened"))
    monkeypatch.setattr(
        "medkor_jax.commands.ask.open_model", lambda name: pytest.fail("weights were opened")
    )
    places = {"WEIGHTS": "no/weights", "OUT": str(tmp_path / "out.jsonl")}
    arguments = [places.get(word, word) for word in COMMANDS[command]]
    try:
        code = cli.main([*arguments, "--mesh", mesh])
    except SystemExit as stopped:  # argparse
        code = stopped.code
    assert code == 2 and words in capsys.readouterr().err


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("mode", ["letter", "cloze", "reason"])
def test_an_exam_has_the_same_answers_on_any_mesh(mesh, mode, save_adapted, sizes):
    weights = str(save_adapted(lora=True, lang="vector", front=1, back=1).directory)
    asked = dict(mode=mode, language="en", limit=5, batch_size=3, max_new_tokens=6)
    alone = evaluate_file(weights, "embedded", **asked).answers
    shared = evaluate_file(weights, "embedded", mesh=shape_of(mesh), **asked).answers
    assert sizes == [1, 4]
    for one, other in zip(alone, shared, strict=True):
        assert (one.predicted, one.text) == (other.predicted, other.text)
        np.testing.assert_allclose(one.probabilities or 0, other.probabilities or 0, atol=2e-5)


def test_pairs_and_one_question_have_the_same_answers_shared(tiny_base_dir, sizes):
    weights, question = str(tiny_base_dir), embedded.questions("valid", "en")[0]
    pairs = [
        [one.output for one in evaluate_pairs(
            weights, "embedded", split="test", limit=3, batch_size=4, max_new_tokens=8, mesh=shape_of(mesh)
        ).outputs]
        for mesh in (ONE, SHARED)
    ]  # fmt: skip
    assert pairs[0] == pairs[1] and len(pairs[0]) == 6
    for mode in ("letter", "reason"):
        alone, shared = (
            ask(weights, question, mode=mode, write=lambda part: None, max_new_tokens=8, mesh=shape_of(mesh))
            for mesh in (ONE, SHARED)
        )  # fmt: skip
        assert alone.text == shared.text and sizes == [1, 4] * (len(sizes) // 2)
        np.testing.assert_allclose(alone.probabilities, shared.probabilities, atol=2e-5)


def test_an_exam_is_translated_alike_shared(tiny_base_dir, tmp_path, sizes):
    written = []
    for mesh in (ONE, SHARED):
        out = tmp_path / f"{mesh}.jsonl"
        how = dict(to="en", limit=2, max_new_tokens=6, mesh=shape_of(mesh))
        try:
            data_translate.translate_exam(str(tiny_base_dir), "embedded", out=out, **how)
        except ValueError as error:  # random weights translate nothing; what they wrote is kept
            assert "row" in str(error) or "passe" in str(error)
        lines = out.with_name(f"{out.name}.work.jsonl").read_text().splitlines()
        written.append([json.loads(line) for line in lines[1:]])
    assert written[0] == written[1] and written[0] and sizes == [1, 4]


def test_the_logits_that_verify_compares_are_the_same_shared(tiny_base_dir):
    model, ids = open_model(tiny_base_dir), list(range(5, 30))
    found = []
    for mesh in (ONE, SHARED):
        how = dict(dtype="float32", batch_size=4, mesh_shape=shape_of(mesh))
        with open_scorer(model, **how) as scorer, jax.default_matmul_precision("highest"):
            found.append(verify.our_logits(scorer, ids))
            assert scorer.params.base["embed"].sharding.num_devices == (4 if mesh else 1)
    np.testing.assert_allclose(found[0], found[1], atol=1e-4)


class Device:
    def __init__(self, memory):
        self.memory = memory

    def memory_stats(self):
        return {"bytes_limit": self.memory}


@pytest.mark.parametrize(
    "share, expected", [(0.3, (4, 1)), (0.9, (1, 4)), (3.9, (1, 4)), (4.1, None)]
)
def test_by_default_nothing_is_copied_that_does_not_fit(
    share, expected, tiny_base_dir, monkeypatch
):
    """share: of one device's memory, that the weights take."""
    model = open_model(tiny_base_dir)
    memory = 4 * model.config.n_params / share
    monkeypatch.setattr(opening.jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(opening.jax, "local_devices", lambda: [Device(memory)])
    if expected is None:
        with pytest.raises(ValueError, match=r"takes .* GB in float32, and 4 devices that share it have .*--dtype bfloat16"):  # fmt: skip
            asking_mesh(model, "float32")
        return
    made = asking_mesh(model, "float32")
    assert (made.shape["data"], made.shape["fsdp"]) == expected
    if share > 1:
        with pytest.raises(ValueError, match="1 device that holds it have .*--mesh fsdp=4"):
            asking_mesh(model, "float32", MeshShape())
