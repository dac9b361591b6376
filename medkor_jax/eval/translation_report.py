r"""Translations and the scores drawn from them: chrF and BLEU, each with its interval, count and signature.

    report = TranslationReport.read("translations.jsonl")
    print(report.table())
    print("\n".join(change_lines(before, report)))      # en-ko chrF 8.1 -> 61.0 (+52.9 [+50.2, +55.6]), ...

Scores are sacrebleu's, 0 to 100, each with its signature, so that they can be quoted.
Korean BLEU counts n-grams of characters ("tok:char"): sacrebleu's own Korean tokenizer needs mecab installed,
its multilingual one a download. It is higher than BLEU over words and comparable with "tok:char" only; English
is tokenized by "13a" as usual. chrF needs no tokenizer; where the two disagree on Korean, trust chrF.

Intervals are of a percentile bootstrap over the pairs; a change is taken on the same draws (paired), so what
both models find hard does not blur it. Only outputs are stored, scores are computed from them.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from typing import Any

import numpy as np

from medkor_jax.data.language import has_hangul
from medkor_jax.data.style import PLAIN
from medkor_jax.eval.lines import read_lines, write_lines
from medkor_jax.eval.stats import Interval

METRICS = ("chrf", "bleu")
METRIC_NAMES = {"chrf": "chrF", "bleu": "BLEU"}
_BLEU_TOKENIZER = {"ko": "char", "en": "13a"}
_DESCRIBED = (
    "source",
    "split",
    "max_new_tokens",
    "confidence",
    "n_resamples",
    "seed",
    "style",
)


@dataclasses.dataclass(frozen=True)
class Translated:
    """One sentence translated. is_whole: the model ended it, so it was not cut by length."""

    id: str
    given: str  # language of `text`
    target: str
    text: str
    reference: str
    output: str
    is_whole: bool
    n_tokens: int

    @property
    def is_wrong_language(self) -> bool:
        """Whether the output holds Hangul in English, or none in Korean, where the reference does not."""
        return bool(self.output) and has_hangul(self.output) != has_hangul(self.reference)


@dataclasses.dataclass(frozen=True)
class TranslationScore:
    """One direction under one metric, with what is needed to quote it."""

    direction: str  # "en-ko": from English into Korean
    metric: str  # chrf | bleu
    score: float  # 0 to 100
    low: float
    high: float
    n: int
    signature: str  # sacrebleu's


@dataclasses.dataclass(frozen=True)
class TranslationReport:
    """Every output, and the scores drawn from them. The same seed and pairs give the same draws."""

    source: str
    split: str
    outputs: tuple[Translated, ...]
    max_new_tokens: int
    confidence: float = 0.95
    n_resamples: int = 1000
    seed: int = 0
    style: str = PLAIN

    def __post_init__(self) -> None:
        if not self.outputs:
            raise ValueError(
                f"no translations of {self.source or 'these pairs'} {self.split}: there is nothing to score"
            )

    @functools.cached_property
    def scores(self) -> tuple[TranslationScore, ...]:
        """For each direction that was translated, chrF and then BLEU."""
        return tuple(
            self._score(direction, metric) for direction in self.directions for metric in METRICS
        )

    @property
    def directions(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(_direction(one) for one in self.outputs))

    def score(self, direction: str, metric: str = "chrf") -> TranslationScore:
        return next(
            score for score in self.scores if (score.direction, score.metric) == (direction, metric)
        )

    def of(self, direction: str) -> list[Translated]:
        return [one for one in self.outputs if _direction(one) == direction]

    def _score(self, direction: str, metric: str) -> TranslationScore:
        whole, draws, signature = self.sampled(direction, metric)
        low, high = _percentiles(draws, self.confidence)
        return TranslationScore(
            direction, metric, whole, low, high, len(self.of(direction)), signature
        )

    def sampled(self, direction: str, metric: str) -> tuple[float, np.ndarray, str]:
        """Returns the score over all pairs, the scores over resampled pairs [n_resamples], and the signature."""
        outputs = self.of(direction)
        judge = _make_metric(metric, outputs[0].target)
        hypotheses, references = (
            [one.output for one in outputs],
            [[one.reference for one in outputs]],
        )
        whole = judge.corpus_score(hypotheses, references).score
        # sacrebleu's own bootstrap gives no percentiles and takes its seed from the environment. Its sums over
        # sentences are what a resample needs; they are not public, so a test holds them to `corpus_score`.
        sums = np.asarray(judge._extract_corpus_statistics(hypotheses, references))
        rng = np.random.default_rng(self.seed)
        draws = [
            judge._compute_score_from_stats(
                sums[rng.integers(0, len(outputs), len(outputs))].sum(axis=0).tolist()
            ).score
            for _ in range(self.n_resamples)
        ]
        return whole, np.array(draws), str(judge.get_signature())

    def summary(self) -> dict[str, Any]:
        """Returns the numbers as JSON types, without the single outputs."""
        return {
            **self._described(),
            "scores": [dataclasses.asdict(score) for score in self.scores],
            "counts": {direction: self._counts(direction) for direction in self.directions},
        }

    def table(self) -> str:
        """Returns the scores as lines for a terminal, each with its interval, count and signature."""
        heading = f"{self.source} {self.split}".strip() or "pairs"
        lines = [f"{heading}: translation, greedy, {self.confidence:.0%} intervals"]
        for score in self.scores:
            found = f"{METRIC_NAMES[score.metric]:<4} {score.score:>5.1f} [{score.low:.1f}, {score.high:.1f}] over {score.n}"
            lines.append(f"  {score.direction}  {found}  ({score.signature})")
        for direction in self.directions:
            counts = ", ".join(
                f"{n} {what.replace('_', ' ')}" for what, n in self._counts(direction).items() if n
            )
            lines += [f"  {direction}: {counts}"] if counts else []
        return "\n".join(lines)

    def write(self, path: str | os.PathLike) -> None:
        """Writes one JSON line an output, atomically; each line also carries what the report says of itself."""
        write_lines(path, map(dataclasses.asdict, self.outputs), self._described())

    @classmethod
    def read(cls, path: str | os.PathLike) -> TranslationReport:
        """Returns the report that `write` stored. Raises: ValueError if the file is no such report."""
        outputs, shared = read_lines(path, _parse, "a translation")
        return cls(outputs=outputs, **shared)

    def _described(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _DESCRIBED}

    def _counts(self, direction: str) -> dict[str, int]:
        outputs = self.of(direction)
        return {
            "empty": sum(not one.output for one in outputs),
            "cut_by_length": sum(not one.is_whole for one in outputs),
            "in_the_wrong_language": sum(one.is_wrong_language for one in outputs),
            "copied_from_the_source": sum(one.output == one.text.strip() for one in outputs),
        }


def change_lines(before: TranslationReport, after: TranslationReport) -> list[str]:
    """Returns a line for each direction and metric: the score before, after, and the change with its interval.

    Raises: ValueError if the two did not translate the same pairs, or draw differently.
    """
    pairs = [
        [(one.id, one.given, one.text, one.reference) for one in report.outputs]
        for report in (before, after)
    ]
    drawn = [(report.n_resamples, report.seed, report.confidence) for report in (before, after)]
    if pairs[0] != pairs[1] or drawn[0] != drawn[1]:
        raise ValueError(
            f"the reports are over {len(pairs[0])} and {len(pairs[1])} outputs of other pairs, or other draws; "
            "evaluate both on the same pairs with the same settings"
        )
    lines = []
    for direction in after.directions:
        for metric in METRICS:
            (was, old, _), (now, new, _) = (
                report.sampled(direction, metric) for report in (before, after)
            )
            low, high = _percentiles(new - old, after.confidence)
            change = f"{now - was:+.1f} [{low:+.1f}, {high:+.1f}]"
            lines.append(
                f"{direction} {METRIC_NAMES[metric]} {was:.1f} -> {now:.1f} ({change}, {len(after.of(direction))} pairs)"
            )
    return lines


def _parse(row: dict[str, Any]) -> tuple[Translated, dict[str, Any]]:
    """Returns the translation that a line holds, and what the line says of the report."""
    row.setdefault("style", PLAIN)  # as all were before there was a choice
    shared = {name: row.pop(name) for name in _DESCRIBED}
    return Translated(**row), shared


def _direction(one: Translated) -> str:
    return f"{one.given}-{one.target}"


def _make_metric(metric: str, target: str) -> Any:
    from sacrebleu.metrics import BLEU, CHRF  # slow to import

    return CHRF() if metric == "chrf" else BLEU(tokenize=_BLEU_TOKENIZER[target])


def _percentiles(draws: np.ndarray, confidence: float) -> Interval:
    return Interval(*np.quantile(draws, [0.5 - confidence / 2, 0.5 + confidence / 2]).tolist())
