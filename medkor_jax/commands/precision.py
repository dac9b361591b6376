"""`medkor precision`: what it costs to hold a model's weights in fewer bits, in nats a token and in letters.

    found = compare_forms("embedded", exams=["embedded"], texts=["embedded"], forms=("float32", "int8"))
    print(table(found))

The same weights are held in one form after another and asked the same; activations are computed in one dtype throughout, so
that what differs is what the weights lost. Every form is compared with the first, text by text and question by question:
the intervals are of paired differences. A form is loaded as a run would load it, but for the two that no run has: the
tables in int8 as well, and the matrices in 4 bits.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medkor_jax.commands.arguments import add_dtype, whole
from medkor_jax.commands.opening import asking_mesh, shown
from medkor_jax.data.question import Question
from medkor_jax.data.rows import EMBEDDED, Example, Source
from medkor_jax.data.sources import load_examples, load_questions
from medkor_jax.eval.exam import evaluate
from medkor_jax.eval.scorer import ModelScorer
from medkor_jax.eval.scores import Answer
from medkor_jax.eval.stats import Interval, PairedCounts, bootstrap_mean, paired_difference, wilson
from medkor_jax.io.loaded_model import load
from medkor_jax.io.models import Model
from medkor_jax.model.params import ADAPTABLE, Tree
from medkor_jax.model.quantized import rounded
from medkor_jax.parallel.hosts import say
from medkor_jax.run.named_model import open_model

TEXT_TOKENS = 256  # of each text, at most
_BATCH = 16
_LARGEST_OF_4_BITS = 7


@dataclasses.dataclass(frozen=True)
class Form:
    """How weights are held. param_dtype: that they are loaded in; change: what is done to the base then, None nothing."""

    words: str
    param_dtype: str
    change: Callable[[Tree], Tree] | None = None


def _tables_in_int8(base: Tree) -> Tree:
    """Returns the base with its embedding, and a head of its own, rounded to int8 by row: what int8 tables would give."""

    def one(table: jax.Array) -> jax.Array:
        values, scale = rounded(table, axis=-1)
        return values.astype(jnp.float32) * scale

    return base | {name: one(base[name]) for name in ("embed", "head") if name in base}


def _matrices_in_4_bits(base: Tree) -> Tree:
    """Returns the base with its layers' matrices rounded to -7 .. 7 by output channel."""

    def one(w: jax.Array) -> jax.Array:
        values, scale = rounded(w, axis=-2, largest=_LARGEST_OF_4_BITS)
        return (values.astype(jnp.float32) * scale).astype(w.dtype)

    layers = base["layers"]
    return base | {"layers": layers | {name: one(layers[name]) for name in ADAPTABLE}}


FORMS = {
    "float32": Form("float32", "float32"),
    "bfloat16": Form("bfloat16", "bfloat16"),
    "int8": Form("int8 matrices, bfloat16 tables", "int8"),
    "int8-tables": Form("int8 matrices and tables", "int8", _tables_in_int8),
    "4-bit": Form("4-bit matrices, by channel", "bfloat16", _matrices_in_4_bits),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", required=True, help="any weights, or a run")
    words = "a file, a hub id or embedded (both languages); letters are compared; may be repeated"
    parser.add_argument("--exam", action="append", default=[], help=words)
    words = "a file, a hub id or embedded (both languages); nats are compared; may be repeated"
    parser.add_argument("--text", action="append", default=[], help=words)
    parser.add_argument("--split", default="valid", help="of exams and texts (default: valid)")
    words = "first N questions of each exam (default 50)"
    parser.add_argument("--limit", type=whole(1), default=50, help=words)
    words = f"first N texts of each, {TEXT_TOKENS} tokens of each at most (default 100)"
    parser.add_argument("--texts", type=whole(2), default=100, help=words)
    words = f"which of {', '.join(FORMS)}; all are compared with the first (default: all)"
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS), help=words)
    add_dtype(parser)
    parser.add_argument("--json", action="store_true")


def run(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    found = compare_forms(
        arguments.weights,
        exams=arguments.exam,
        texts=arguments.text,
        forms=arguments.forms,
        split=arguments.split,
        n_questions=arguments.limit,
        n_texts=arguments.texts,
        dtype=arguments.dtype,
    )
    print(json.dumps(found, ensure_ascii=False) if arguments.json else table(found))


def compare_forms(
    name: str,
    *,
    exams: Sequence[str],
    texts: Sequence[str],
    forms: Sequence[str] = tuple(FORMS),
    split: str = "valid",
    n_questions: int = 50,
    n_texts: int = 100,
    dtype: str = "float32",
) -> dict[str, Any]:
    """Returns what each form of `name` gives, beside the first: plain values, as `table` reads them.

    n_questions, n_texts: taken from the head of each exam and text. dtype: of activations.

    Raises: ValueError if nothing is to be asked, before the weights are loaded; BadDataError, WeightsError.
    """
    if not exams and not texts:
        raise ValueError(
            "nothing is to be measured: give --exam or --text, such as --text embedded"
        )
    questions = dict(_questions(exams, split, n_questions))
    told = dict(_texts(texts, split, n_texts))
    model = open_model(name)
    asked = [_ask(model, FORMS[form], questions, told, dtype) for form in forms]
    rows = [_beside(one, asked[0]) for one in asked]
    return {"weights": name, "dtype": dtype, "first": forms[0], "forms": dict(zip(forms, rows))}


def _questions(
    names: Sequence[str], split: str, limit: int
) -> Iterator[tuple[str, list[Question]]]:
    for name in names:
        for language in ("ko", "en") if name == EMBEDDED else ("",):
            source = Source(name, "exam", name, split=split, language=language, limit=limit)
            yield f"{name} {language}".strip(), shown(name, load_questions(source, drop_bad=False))


def _texts(names: Sequence[str], split: str, limit: int) -> Iterator[tuple[str, list[Example]]]:
    for name in names:
        for language in ("ko", "en") if name == EMBEDDED else ("",):
            subset = split if name == EMBEDDED else ""
            source = Source(
                name, "text", name, split=split, subset=subset, language=language, limit=limit
            )
            yield f"{name} {language}".strip(), shown(name, load_examples(source, drop_bad=False))


@dataclasses.dataclass(frozen=True)
class _Asked:
    """What one form gave. bytes: of the base, 0 of a form that no run has; nats: of each text, [texts]; tokens: of each, the same in all forms; answers: of each exam."""

    form: Form
    bytes: int
    nats: dict[str, np.ndarray]
    tokens: dict[str, np.ndarray]
    answers: dict[str, tuple[Answer, ...]]


def _ask(
    model: Model,
    form: Form,
    questions: dict[str, list[Question]],
    told: dict[str, list[Example]],
    dtype: str,
) -> _Asked:
    say(f"{model.name}: {form.words}")
    mesh = asking_mesh(model, form.param_dtype)
    with jax.set_mesh(mesh):
        loaded = load(model, form.param_dtype, mesh)
        n_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(loaded.params.base))
        if form.change is not None:
            params = loaded.params.replace(base=form.change(loaded.params.base))
            loaded, n_bytes = dataclasses.replace(loaded, params=params), 0
        scorer = ModelScorer(loaded, dtype=jnp.dtype(dtype), mesh=mesh, batch_size=_BATCH)
        nats, tokens = {}, {}
        for name, examples in told.items():
            ids = [_ids(scorer, example) for example in examples]
            start = [[scorer.tokenizer.bos_id]] * len(ids)
            found = scorer.continuation_nats(start, [[row] for row in ids])
            nats[name], tokens[name] = np.concatenate(found), np.array([len(row) for row in ids])
        answers = {
            name: evaluate(scorer, asked, mode="letter", source=name, batch_size=_BATCH).answers
            for name, asked in questions.items()
        }
    return _Asked(form, n_bytes, nats, tokens, answers)


def _ids(scorer: ModelScorer, example: Example) -> list[int]:
    text = "".join(part for part, _ in example.parts)
    return scorer.tokenizer.encode(text)[:TEXT_TOKENS]


def _beside(one: _Asked, first: _Asked) -> dict[str, Any]:
    """Returns a form's figures, and their differences from those of the first form."""
    texts, exams = {}, {}
    for name, nats in one.nats.items():
        n = one.tokens[name]
        # a text's share of the difference a token of all texts; their number is resampled, not their lengths' sum
        each = (nats - first.nats[name]) / n.mean()
        texts[name] = {
            "texts": len(nats),
            "tokens": int(n.sum()),
            "nats": float(nats.sum() / n.sum()),
            "more": float(each.mean()),
            "interval": bootstrap_mean(each),
        }
    for name, answers in one.answers.items():
        right, before = ([a.correct for a in of] for of in (answers, first.answers[name]))
        same = sum(
            a.predicted == b.predicted for a, b in zip(answers, first.answers[name], strict=True)
        )
        exams[name] = {
            "questions": len(right),
            "right": sum(right),
            "interval": wilson(sum(right), len(right)),
            "same_letter": same,
            "more": (sum(right) - sum(before)) / len(right),
            "more_interval": paired_difference(PairedCounts.of(right, before)),
        }
    return {"words": one.form.words, "bytes": one.bytes, "texts": texts, "exams": exams}


def table(found: dict[str, Any]) -> str:
    """Returns the figures as lines for a terminal, the names of forms as the command takes them."""
    lines = [
        f"{found['weights']}, activations in {found['dtype']}; differences from {found['first']}, with 95 % intervals of pairs"
    ]
    for form, row in found["forms"].items():
        size = f", {row['bytes'] / 1e6:.0f} MB" if row["bytes"] else ", rounded after loading"
        lines.append(f"{form}: {row['words']}{size}")
        for name, text in row["texts"].items():
            lines.append(
                f"  {name}: {text['nats']:.4f} nats a token ({text['tokens']} tokens, {text['texts']} texts); "
                f"{text['more']:+.4f} {_signed(text['interval'], '.4f')}"
            )
        for name, exam in row["exams"].items():
            share = exam["right"] / exam["questions"]
            low, high = exam["interval"]
            lines.append(
                f"  {name}: {exam['right']} of {exam['questions']} right, {share:.1%} [{low:.1%}, {high:.1%}]; "
                f"{exam['more']:+.1%} {_signed(exam['more_interval'], '.1%')}; the same letter in {exam['same_letter']}"
            )
    return "\n".join(lines)


def _signed(interval: Interval, form: str) -> str:
    return f"[{interval[0]:+{form}}, {interval[1]:+{form}}]"
