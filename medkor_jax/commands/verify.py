"""`medkor verify`: do these weights read texts as `transformers` reads them, give the logits that it gives, and the same greedy text?

    result = verify("embedded")                                                # needs torch and transformers
    result = verify("runs/quickstart", export="medkor-hf", n_greedy=200)       # a run against its own export
    print(result.table())

Texts come first (`text_parity`): each side makes ids of them with its own tokenizer, from the checkpoint's own files. Where
they differ nothing else is compared. Then fixed Korean and English prompts, one of them longer than the sliding window,
ours in float32, the reference in float64 where memory allows: on a text that repeats itself the rounding of two float32
computations adds up to more than the bound, although each is within it. A run's adapters have no counterpart in
transformers until exported, so a run is compared with its export, to transformers or to PEFT. A bfloat16 export holds rounded
weights: it is compared with itself, loaded here, and with the run within what it says that rounding did to it (`io.rounding`).
Greedy text is compared three ways: written with the cache, by full passes over what was written, and by the
reference. Where two ways part, what counts is how far below the best logit the token taken was: its regret.
The reference answers first and is let go before our weights are loaded: one model is in memory at a time.
"""

from __future__ import annotations

import argparse
import functools
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medkor_jax.commands.arguments import above_zero, add_mesh, whole
from medkor_jax.commands.opening import check_mesh, open_scorer
from medkor_jax.commands.text_parity import compare_texts
from medkor_jax.commands.verification import (
    COMPARED_POSITIONS,
    NEW_TOKENS,
    Comparison,
    Greedy,
    Rounded,
    Verification,
)
from medkor_jax.data import embedded
from medkor_jax.data.question import prompt as exam_prompt
from medkor_jax.data.tokenizer import Tokenizer
from medkor_jax.eval.scorer import ModelScorer, read_prompts
from medkor_jax.io.hf import EXPORT_RECORD
from medkor_jax.io.models import Model
from medkor_jax.io.reference import load_reference_tokenizer, reference_answers
from medkor_jax.io.rounding import EVERYTHING, rms
from medkor_jax.model.config import ModelConfig
from medkor_jax.model.forward import project_logits
from medkor_jax.model.params import Params, new_head_rows
from medkor_jax.model.prompts import Prompt, pad_prompts
from medkor_jax.parallel.mesh import MeshShape
from medkor_jax.run.named_model import open_model

BOUND = 1e-3
"""Largest logit difference allowed, where logits are about 40 in size; two logits may each be off by it in a regret."""

PROMPTS = {
    "english": "A 58-year-old man has crushing chest pain. The most likely diagnosis is",
    "korean": "58세 남자가 쥐어짜는 듯한 가슴통증으로 병원에 왔다. 가장 가능성이 높은 진단은",
    "mixed": "항문열창(anal fissure)의 치료로 옳은 것은?\nA. 수술\nB. 좌욕\n정답：",
}
LONG = "The patient was given aspirin. 환자는 아스피린을 복용하였다. "
_BATCH = 16
_GREEDY = (
    "also write N mixed Korean and English continuations: "
    "with the cache, by full passes, and in transformers"
)
_LONG_EVERY = 20  # one greedy prompt in so many is longer than the window


def add_arguments(parser: argparse.ArgumentParser) -> None:
    words = "embedded, a directory, a .gguf file, a hub id, or with --export a run"
    parser.add_argument("--weights", required=True, help=words)
    words = "compare with this export of the weights instead of the weights themselves"
    parser.add_argument("--export", default="", metavar="DIR", help=words)
    parser.add_argument("--greedy", type=whole(0), default=0, metavar="N", help=_GREEDY)
    words = "largest logit difference allowed (default 1e-3)"
    parser.add_argument("--bound", type=above_zero, default=BOUND, help=words)
    add_mesh(parser)
    parser.add_argument("--json", action="store_true")


def run(arguments: argparse.Namespace, _: Sequence[str]) -> int:
    result = verify(
        arguments.weights,
        export=arguments.export,
        n_greedy=arguments.greedy,
        bound=arguments.bound,
        mesh=arguments.mesh,
    )
    print(json.dumps(result.to_json()) if arguments.json else result.table())
    return 0 if result.passed else 1


def verify(
    name: str,
    *,
    export: str = "",
    n_greedy: int = 0,
    bound: float = BOUND,
    mesh: MeshShape | None = None,
) -> Verification:
    """Returns the comparison of `name` loaded here with `export`, or itself, loaded in transformers.

    Texts that are read differently end it before any weights are loaded.
    n_greedy: prompts to continue greedily, Korean and English in turn.

    Raises, before weights are loaded: ModuleNotFoundError, with what to install, without torch; WeightsError if `name`
    cannot be opened; ValueError for random weights, which no reference has, for a run with adapters without an export
    of it, and for more greedy prompts than there are.
    """
    try:
        import transformers
    except ImportError as error:
        raise ModuleNotFoundError(
            "verify compares with transformers and needs torch: pip install 'medkor-jax[test]'"
        ) from error
    if name.startswith("random:"):
        raise ValueError(
            f"{name} exists only here; verify needs a checkpoint that transformers can load too"
        )
    check_mesh(mesh)
    opened: dict[str, Any] = dict(dtype="float32", batch_size=_BATCH, mesh_shape=mesh)
    model = open_model(name)
    if model.adapters_digest and not export:
        raise ValueError(
            f"{name} has adapters, which transformers cannot load; medkor export it, then give --export DIR"
        )
    prompts = tokenize_prompts(model)
    asked = sorted(greedy_prompts(model, n_greedy), key=len)  # neighbours pad little
    batches = [asked[at : at + _BATCH] for at in range(0, n_greedy, _BATCH)]
    against = f"{f'{export} in ' if export else ''}transformers {transformers.__version__}"
    record = export_record(export)
    texts = compare_texts(model, load_reference_tokenizer(export or name), is_export=bool(record))
    if not texts.passed:
        return Verification(name, texts, (), (), bound, against)
    is_rounded = record.get("dtype", "float32") != "float32"
    theirs, written, dtype = reference_answers(
        export or name, prompts, batches, n_logits=COMPARED_POSITIONS, max_new_tokens=NEW_TOKENS
    )
    with (
        open_scorer(open_model(export) if is_rounded else model, **opened) as scorer,
        _exactly(),
    ):
        ours = {prompt: our_logits(scorer, ids) for prompt, ids in prompts.items()}
        comparisons = tuple(
            _compare(prompt, ids, ours[prompt], theirs[prompt]) for prompt, ids in prompts.items()
        )
        greedy = _compare_greedy(scorer, batches, written) if batches else ()
    rounded = _against_run(model, record, prompts, ours, opened) if is_rounded else None
    is_another = bool(record) and record["model_digest"] != model.digest
    return Verification(
        name, texts, comparisons, greedy, bound, against, dtype, rounded, is_another
    )


def _against_run(
    model: Model,
    record: dict[str, Any],
    prompts: dict[str, list[int]],
    ours: dict[str, np.ndarray],
    opened: dict[str, Any],
) -> Rounded:
    """Returns what the export of a run keeps of it. record: what the export says of itself; ours: its logits, loaded here."""
    with open_scorer(model, **opened) as scorer, _exactly():
        of_run = {prompt: our_logits(scorer, ids) for prompt, ids in prompts.items()}
    error = max(rms(ours[prompt] - logits) / rms(logits) for prompt, logits in of_run.items())
    parts = dict(record["rounding"])
    expected = parts.pop(EVERYTHING)["error"]
    return Rounded(
        record["dtype"], float(error), expected, {part: one["lost"] for part, one in parts.items()}
    )


def _exactly():
    return jax.default_matmul_precision("highest")


def _compare(prompt: str, ids: list[int], ours: np.ndarray, theirs: np.ndarray) -> Comparison:
    theirs = theirs[:, : ours.shape[1]]
    same = np.argmax(ours, -1) == np.argmax(theirs, -1)
    return Comparison(
        prompt,
        len(ids),
        float(np.abs(ours - theirs).max()),
        float(np.abs(theirs).max()),
        float(same.mean()),
    )


def tokenize_prompts(model: Model) -> dict[str, list[int]]:
    """Returns the prompts' ids, bos first, with one prompt longer than the window by half a window."""
    tokenizer = model.tokenizer
    prompts = {name: [tokenizer.bos_id, *tokenizer.encode(text)] for name, text in PROMPTS.items()}
    return prompts | {"long": _long_prompt(tokenizer, model.config)}


def _long_prompt(tokenizer: Tokenizer, config: ModelConfig) -> list[int]:
    piece = tokenizer.encode(LONG)
    wanted = min(config.sliding_window * 3 // 2, config.max_positions - NEW_TOKENS)
    return [tokenizer.bos_id, *(piece * (wanted // len(piece) + 1))][:wanted]


def our_logits(scorer: ModelScorer, ids: list[int]) -> np.ndarray:
    """Returns float32 [positions, V] of the last positions."""
    prompt = pad_prompts([ids], scorer.routing, languages=scorer.languages_of([ids]))
    places = np.arange(max(len(ids) - COMPARED_POSITIONS, 0), len(ids))[None]
    return np.asarray(_logits_at(scorer.params, prompt, places, config=scorer.config))[0]


def _compare_greedy(
    scorer: ModelScorer, batches: list[list[list[int]]], written: list[list[list[int]]]
) -> tuple[Greedy, ...]:
    n_same, regret = np.zeros(2, int), np.zeros(2)
    for batch, theirs in zip(batches, written, strict=True):
        completions = scorer.decoder.generate(
            scorer.params, batch, max_new_tokens=NEW_TOKENS, languages=scorer.languages_of(batch)
        )
        ours = [list(completion.tokens) for completion in completions]
        regrets = _regrets(scorer, batch, ours, theirs)  # [batch, 2]
        n_same += [
            np.sum(regrets[:, 0] == 0),
            sum(own == their[: len(own)] for own, their in zip(ours, theirs)),
        ]
        regret = np.maximum(regret, regrets.max(axis=0))
    ways, n = ("full passes", "the reference's generate"), sum(map(len, batches))
    return tuple(
        Greedy(way, n, int(same), float(most)) for way, same, most in zip(ways, n_same, regret)
    )


def greedy_prompts(model: Model, n: int) -> list[list[int]]:
    """Returns the ids of n prompts: exam questions, Korean and English in turn, some longer than the window.

    Raises: ValueError if there are not that many questions.
    """
    tokenizer = model.tokenizer
    korean, english = (
        [q for split in ("train", "valid", "test") for q in embedded.questions(split, code)]
        for code in ("ko", "en")
    )
    questions = [question for pair in zip(korean, english) for question in pair]
    if not 0 <= n <= len(questions):
        raise ValueError(
            f"{n} greedy prompts are asked for; there are 0 to {len(questions)} questions to make them of"
        )
    prompts = [tokenizer.encode(exam_prompt(question)) for question in questions[:n]]
    long = _long_prompt(tokenizer, model.config)
    before = lambda number, ids: max(len(long) - len(ids), 1) if number % _LONG_EVERY == 0 else 1
    return [
        [*long[: before(number, ids)], *ids] for number, ids in enumerate(prompts)
    ]  # `long` begins with bos


def _regrets(
    scorer: ModelScorer, batch: list[list[int]], ours: list[list[int]], theirs: list[list[int]]
) -> np.ndarray:
    """Returns [batch, 2]: how far below the best logit of a full pass our tokens, and theirs where they first part, lie."""
    rows = [[*prompt, *tokens] for prompt, tokens in zip(batch, ours)]
    padded = pad_prompts(rows, scorer.routing, languages=scorer.languages_of(rows))
    places = np.zeros((len(padded.lengths), NEW_TOKENS), np.int32)
    for b, (prompt, own) in enumerate(zip(batch, ours)):
        places[b, : len(own)] = range(len(prompt) - 1, len(prompt) - 1 + len(own))
    regrets = np.zeros((len(batch), 2))
    found = np.asarray(_logits_at(scorer.params, padded, places, config=scorer.config))
    for b, logits in enumerate(found[: len(batch)]):
        for way, tokens in enumerate((ours[b], theirs[b])):
            parted = next(
                (t for t, own in enumerate(ours[b]) if tokens[t] != own), len(ours[b]) - 1
            )
            taken = logits[np.arange(parted + 1), tokens[: parted + 1]]
            regrets[b, way] = (logits[: parted + 1].max(-1) - taken).max()
    return regrets


@functools.partial(jax.jit, static_argnames=("config",))
def _logits_at(
    params: Params, prompt: Prompt, places: jax.Array, *, config: ModelConfig
) -> jax.Array:
    """Returns float32 [B, P, V]: the logits of one full pass at places [B, P]."""
    hidden = read_prompts(params, prompt, config, jnp.float32)
    hidden = jnp.take_along_axis(hidden, places[..., None], axis=1)
    return project_logits(params.base, hidden, new_head_rows(params))


def export_record(export: str) -> dict[str, Any]:
    """Returns what an export of ours says of itself; {} of anything else."""
    path = pathlib.Path(export) / EXPORT_RECORD
    return json.loads(path.read_text(encoding="utf-8")) if export and path.is_file() else {}
