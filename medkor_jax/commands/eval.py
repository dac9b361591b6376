"""`medkor eval`: any weights, any exam or pairs of sentences, one report.

    report = evaluate_file("embedded", "doctor/valid.csv", mode="harness", fewshot="doctor/fewshot.csv", n_shots=5)
    report = evaluate_pairs("runs/quickstart", "embedded", split="test")

It neither trains nor changes what it asks.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

from medkor_jax.bar import Bar
from medkor_jax.commands.arguments import (
    WEIGHTS,
    add_dtype,
    add_mesh,
    add_part,
    add_style,
    add_tags,
    add_thinking,
    whole,
)
from medkor_jax.commands.exam_parts import Part, known_split, read_parts, usual
from medkor_jax.commands.opening import check_mesh, open_scorer, shown
from medkor_jax.data.contents import checksum
from medkor_jax.data.leakage import find_leaks
from medkor_jax.data.named_exams import NAMED
from medkor_jax.data.pairs import Pair, load_pairs
from medkor_jax.data.question import Question
from medkor_jax.data.reasoning import ReasoningFormat
from medkor_jax.data.rows import EMBEDDED, Source
from medkor_jax.data.style import AUTO
from medkor_jax.data.thinking import check_thinking, switch
from medkor_jax.eval.asked import contexts_digest
from medkor_jax.eval.exam import MAX_REASONING_TOKENS, READ_VERSION, evaluate
from medkor_jax.eval.report import Report
from medkor_jax.eval.scorer import ModelScorer
from medkor_jax.eval.translation import MAX_TRANSLATION_TOKENS, evaluate_translation
from medkor_jax.eval.translation_report import TranslationReport
from medkor_jax.io.loaded_model import style_of
from medkor_jax.io.models import Model
from medkor_jax.parallel import hosts
from medkor_jax.parallel.hosts import say
from medkor_jax.parallel.mesh import MeshShape
from medkor_jax.run.corpora import describe_leak, documents_read
from medkor_jax.run.named_model import open_model

_KEYS = "what number keys count from, if the exam does not tell"
_LONGEST = "reason mode (default 512) and --pairs (default 256): longest answer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", required=True, help=WEIGHTS)
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--exam", help=f"a file, a hub id, embedded, or {', '.join(NAMED)}")
    words = "sentence pairs, translated both ways and scored: a file, a hub id, or embedded"
    asked.add_argument("--pairs", help=words)
    add_part(parser, "", "valid, or the exam's own")
    words = "default: read from the text"
    parser.add_argument("--language", default="", choices=("", "ko", "en"), help=words)
    parser.add_argument("--answers-from", type=int, choices=(0, 1), help=_KEYS)
    parser.add_argument("--fewshot", help="a file or hub id whose first questions are the shots")
    modes = ("letter", "harness", "cloze", "cloze_norm", "reason")
    words = "default: letter, or as the named exam is asked"
    parser.add_argument("--mode", default="", choices=modes, help=words)
    words = "default: 0, or as the named exam is asked"
    parser.add_argument("--shots", type=whole(0), help=words)
    parser.add_argument("--max-new-tokens", type=whole(1), help=_LONGEST)
    add_thinking(parser)
    add_tags(parser, "reason mode: ")
    words = "first N questions (of each subset) or pairs (default: all)"
    parser.add_argument("--limit", type=whole(0), default=0, help=words)
    add_style(parser)
    add_dtype(parser)
    add_mesh(parser)
    parser.add_argument("--batch-size", type=whole(1), default=16)
    parser.add_argument("--out", help="write one JSON line a question here")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    parser.add_argument("--drop-bad", action="store_true")


def run(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    # What was noted on reading is for a person; with --json standard output holds JSON alone.
    aside = contextlib.redirect_stdout(sys.stderr) if arguments.json else contextlib.nullcontext()
    with aside:
        report = _report(arguments)
    if arguments.out:
        report.write(arguments.out)
    say(json.dumps(report.summary(), ensure_ascii=False) if arguments.json else report.table())
    named = NAMED.get(arguments.exam)
    if named and not arguments.json and arguments.mode in ("", named.mode):
        say(f"  may stand beside {named.beside}")


def _report(arguments: argparse.Namespace) -> Report | TranslationReport:
    names = (
        "split",
        "subset",
        "limit",
        "dtype",
        "batch_size",
        "drop_bad",
        "max_new_tokens",
        "style",
        "mesh",
    )
    shared = {name: getattr(arguments, name) for name in names}
    if shared["max_new_tokens"] is None:
        del shared["max_new_tokens"]
    if arguments.pairs:
        shared["split"] = shared["split"] or "valid"
        return evaluate_pairs(arguments.weights, arguments.pairs, **shared)
    return evaluate_file(
        arguments.weights,
        arguments.exam,
        language=arguments.language,
        fewshot=arguments.fewshot,
        mode=arguments.mode,
        n_shots=arguments.shots,
        answers_from=arguments.answers_from,
        form=ReasoningFormat(*arguments.tags or ()),
        max_thinking_tokens=arguments.max_thinking_tokens,
        **shared,
    )


def evaluate_file(
    weights: str,
    exam: str,
    *,
    mode: str = "",
    split: str = "",
    subset: str = "",
    language: str = "",
    fewshot: str | None = None,
    n_shots: int | None = None,
    limit: int = 0,
    dtype: str = "float32",
    batch_size: int = 16,
    drop_bad: bool = False,
    max_new_tokens: int = MAX_REASONING_TOKENS,
    max_thinking_tokens: int = 0,
    form: ReasoningFormat = ReasoningFormat(),
    answers_from: int | None = None,
    style: str = AUTO,
    mesh: MeshShape | None = None,
) -> Report:
    """Returns every answer of `weights` to the questions of `exam` (a file, a hub id, "embedded" or an exam's name).

    Its parameters are the options of `medkor eval`, one for one: so they are many. mode, split, n_shots: see `exam_parts.usual`.
    answers_from: what the numbers of the exam's keys count from (see `Source`).
    max_new_tokens, form: for reason mode, how long an answer may be and between which tags it reasons.
    max_thinking_tokens: see `eval.exam.evaluate`.

    Raises: ValueError if the shots are not there, or asked for in reason mode, before the weights are loaded;
    BadDataError, WeightsError.
    """
    check_mesh(mesh)
    mode, split, n_shots = usual(exam, mode, split, n_shots)
    _check_mode(mode, n_shots)
    check_thinking(max_thinking_tokens, mode)
    read: Any = dict(subset=subset, language=language, limit=limit, answers_from=answers_from)
    parts = read_parts(exam, split, fewshot=fewshot, n_shots=n_shots, drop_bad=drop_bad, **read)
    model = open_model(weights)
    seen = seen_in_training(model, weights, exam, [q for part in parts for q in part.questions])
    asked_in = style_of(
        model, style
    )  # what cannot be asked in this form is refused before the weights are read
    think = switch(max_thinking_tokens, asked_in.name)
    prompts = [contexts_digest(p.questions, mode, p.shots, asked_in, think) for p in parts]
    opened: Any = dict(dtype=dtype, batch_size=batch_size, style=style, mesh_shape=mesh)
    how: Any = dict(source=exam, split=known_split(exam, split), batch_size=batch_size)
    how |= dict(mode=mode, max_new_tokens=max_new_tokens, form=form)
    how |= dict(max_thinking_tokens=max_thinking_tokens)
    with open_scorer(model, **opened) as scorer:
        reports = [_asked(scorer, part, exam, how) for part in parts]
    made_by = _made_by(model, dtype) | {
        "limit": limit,
        "fewshot": (fewshot or exam) if n_shots else None,
        "prompts": prompts[0] if len(prompts) == 1 else checksum(prompts),
        "read_version": READ_VERSION,
        "seen_in_training": seen,
    }
    answers = tuple(answer for report in reports for answer in report.answers)
    return dataclasses.replace(reports[0], answers=answers, made_by=made_by)


def _asked(scorer: ModelScorer, part: Part, exam: str, how: dict[str, Any]) -> Report:
    """Returns the answers to one part of an exam; says meanwhile how far it is."""
    n = len(part.questions)
    with Bar(exam, total=n, unit="question", on=hosts.is_first()) as bar:
        return evaluate(
            scorer,
            part.questions,
            shots=part.shots,
            on_progress=lambda done, _: bar.to(done),
            **how,
        )


def _made_by(model: Model, dtype: str) -> dict[str, Any]:
    return {"weights": model.name, "weights_digest": model.digest, "dtype": dtype}


def _check_mode(mode: str, n_shots: int) -> None:
    if mode == "reason" and n_shots:
        raise ValueError(f"{n_shots} shots are asked for; reason mode is asked without any")


def seen_in_training(
    model: Model, weights: str, name: str, asked: Sequence[Question | Pair]
) -> dict[str, Any] | None:
    """Returns how many of what is asked these weights were trained on, as far as it is known, and says so; None if nothing is
    known of what they read: they come from no run of this program."""
    documents, lost = documents_read(model, weights)
    if not documents and not lost:
        return None
    leaks = find_leaks(documents, [(name, asked)])
    n_seen = len({leak.judged_id for leak in leaks})
    if n_seen:
        say(
            f"ALARM: {weights} was trained on {n_seen} of these {len(asked)}; its score says little. The first:"
        )
        say("\n".join(f"  {describe_leak(leak)}" for leak in leaks[:3]))
    for words in lost:
        say(f"cannot be compared with what is asked: {words}")
    return {
        "questions": n_seen,
        "sources": [name for name, _ in documents],
        "not_compared": [words.split(":")[0] for words in lost],
    }


def evaluate_pairs(
    weights: str,
    pairs: str,
    *,
    split: str = "valid",
    subset: str = "",
    limit: int = 0,
    dtype: str = "float32",
    batch_size: int = 16,
    drop_bad: bool = False,
    max_new_tokens: int = MAX_TRANSLATION_TOKENS,
    style: str = AUTO,
    mesh: MeshShape | None = None,
) -> TranslationReport:
    """Returns every pair of `pairs` (a file, a hub id or "embedded") translated both ways by `weights`, and scored.

    Its parameters are the options of `medkor eval --pairs`, one for one.

    Raises: BadDataError, WeightsError; ValueError if a pair does not fit the model.
    """
    check_mesh(mesh)
    # The embedded pairs are split by fact, which their source calls a subset, as it does for texts.
    source = Source(
        pairs,
        "translation",
        pairs,
        split=split,
        subset=subset or (split if pairs == EMBEDDED else ""),
        limit=limit,
    )
    asked = shown(source.name, load_pairs(source, drop_bad=drop_bad))
    model = open_model(weights)
    seen_in_training(model, weights, pairs, asked)
    opened: Any = dict(dtype=dtype, batch_size=batch_size, style=style, mesh_shape=mesh)
    n = 2 * len(asked)  # both ways
    with (
        open_scorer(model, **opened) as scorer,
        Bar(pairs, total=n, unit="translation", on=hosts.is_first()) as bar,
    ):
        return evaluate_translation(
            scorer,
            asked,
            source=pairs,
            split=known_split(pairs, split),
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            on_progress=lambda done, _: bar.to(done),
        )
