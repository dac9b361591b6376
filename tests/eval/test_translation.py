"""Translation judged: asked as it is taught, scored as sacrebleu scores, with intervals."""

import dataclasses
import json

import numpy as np
import pytest
import sacrebleu

from medkor_jax.data import embedded
from medkor_jax.data.pairs import Pair, both_ways
from medkor_jax.data.style import Plain
from medkor_jax.eval.scoring import Continuation
from medkor_jax.eval.translation import evaluate_translation
from medkor_jax.eval.translation_report import TranslationReport, change_lines

PAIRS = [Pair(*row) for row in embedded.pairs("valid")[:40]]


class Translator:
    """Answers each training prompt with its taught target, or with what `spoil(target, number)` makes of it."""

    def __init__(self, tokenizer, pairs, spoil=lambda text, number: text):
        self.tokenizer, self.style, self.asked = tokenizer, Plain(tokenizer), []
        self.known = {}
        for number, pair in enumerate(pairs):
            for example in both_ways(pair):
                (prompt, _), (target, _) = example.parts
                self.known[prompt] = spoil(target, number)

    def complete(self, prompts, *, max_new_tokens, stop):
        self.asked.append((len(prompts), max_new_tokens, stop, [p[0] for p in prompts]))
        return [self._made(self.known[self.tokenizer.decode(p)]) for p in prompts]

    def _made(self, text):
        return text if isinstance(text, Continuation) else Continuation(text, len(text), True)


def cut_words(text, number):
    """Loses every word but the first of each third sentence."""
    return " ".join(text.split()[:1]) if number % 3 == 0 else text


def test_asked_as_it_is_taught_and_a_perfect_translator_scores_100(tokenizer):
    scorer, seen = Translator(tokenizer, PAIRS), []
    report = evaluate_translation(
        scorer, PAIRS, source="embedded", split="valid", batch_size=7, max_new_tokens=50, n_resamples=20,
        on_progress=lambda *at: seen.append(at),
    )  # fmt: skip
    assert [(one.id, one.given, one.target) for one in report.outputs] == [
        (pair.id, given, target) for given, target in (("en", "ko"), ("ko", "en")) for pair in PAIRS
    ]
    assert all(
        one.output == one.reference and one.text == getattr(pair, one.given)
        for one, pair in zip(report.outputs, PAIRS * 2)
    )
    assert all(
        asked[0] <= 7 and asked[1:3] == (50, ("\n",)) and set(asked[3]) == {tokenizer.bos_id}
        for asked in scorer.asked
    )
    assert seen[-1] == (80, 80)
    assert [(s.direction, s.metric, s.n) for s in report.scores] == [
        ("en-ko", "chrf", 40),
        ("en-ko", "bleu", 40),
        ("ko-en", "chrf", 40),
        ("ko-en", "bleu", 40),
    ]
    assert all(s.score == pytest.approx(100) and s.low == pytest.approx(100) for s in report.scores)


def test_scores_are_those_of_sacrebleu_with_their_signatures(tokenizer):
    report = evaluate_translation(Translator(tokenizer, PAIRS, cut_words), PAIRS, n_resamples=200)
    for direction in ("en-ko", "ko-en"):
        outputs = report.of(direction)
        said, wanted = [one.output for one in outputs], [[one.reference for one in outputs]]
        chrf, bleu = report.score(direction), report.score(direction, "bleu")
        assert chrf.score == pytest.approx(sacrebleu.corpus_chrf(said, wanted).score)
        tokenize = "char" if direction == "en-ko" else "13a"
        assert bleu.score == pytest.approx(
            sacrebleu.corpus_bleu(said, wanted, tokenize=tokenize).score
        )
        assert f"tok:{tokenize}|" in bleu.signature and chrf.signature.startswith(
            "nrefs:1|case:mixed|eff:yes|nc:6|nw:0|"
        )
        for score in (chrf, bleu):
            assert f"version:{sacrebleu.__version__}" in score.signature
            assert score.low < score.score < score.high


def test_draws_are_scores_of_resampled_pairs(tokenizer):
    report = evaluate_translation(
        Translator(tokenizer, PAIRS, cut_words), PAIRS, n_resamples=3, seed=5
    )
    outputs, rng = report.of("en-ko"), np.random.default_rng(5)
    for metric, score in (
        ("chrf", sacrebleu.corpus_chrf),
        ("bleu", lambda *a: sacrebleu.corpus_bleu(*a, tokenize="char")),
    ):
        rng = np.random.default_rng(5)
        for draw in report.sampled("en-ko", metric)[1]:
            chosen = [outputs[i] for i in rng.integers(0, 40, 40)]
            assert draw == pytest.approx(
                score([o.output for o in chosen], [[o.reference for o in chosen]]).score
            )


def test_a_change_is_paired(tokenizer):
    """Where nothing changed, the interval of the change is zero, however wide those of the scores are."""
    before = evaluate_translation(Translator(tokenizer, PAIRS, cut_words), PAIRS, n_resamples=100)
    assert before.score("en-ko").high - before.score("en-ko").low > 5
    assert "(+0.0 [+0.0, +0.0], 40 pairs)" in change_lines(before, before)[0]
    after = evaluate_translation(Translator(tokenizer, PAIRS), PAIRS, n_resamples=100)
    line = change_lines(before, after)[0]
    assert (
        line.startswith(f"en-ko chrF {before.score('en-ko').score:.1f} -> 100.0 (+")
        and "[+" in line
    )
    with pytest.raises(ValueError, match="80 and 78 outputs of other pairs"):
        change_lines(
            before, evaluate_translation(Translator(tokenizer, PAIRS), PAIRS[1:], n_resamples=100)
        )


def test_what_went_wrong_is_counted_and_shown(tokenizer):
    def spoil(text, number):
        wrong = [
            Continuation("", 1, True),
            Continuation(text, 256, False),
            " Nothing 열.",
            *[text] * 37,
        ]
        return wrong[number]

    report = evaluate_translation(Translator(tokenizer, PAIRS, spoil), PAIRS, n_resamples=10)
    counts = report.summary()["counts"]
    # "Nothing 열." holds Hangul, so it passes for Korean.
    assert counts["en-ko"] == {
        "empty": 1,
        "cut_by_length": 1,
        "in_the_wrong_language": 0,
        "copied_from_the_source": 0,
    }
    assert counts["ko-en"]["in_the_wrong_language"] == 1
    assert "ko-en: 1 empty, 1 cut by length, 1 in the wrong language" in report.table()
    copied = Translator(tokenizer, PAIRS)
    copied.known = {prompt: prompt.split(": ", 1)[1].rsplit("\n", 1)[0] for prompt in copied.known}
    report = evaluate_translation(copied, PAIRS, n_resamples=10)
    assert all(
        c["copied_from_the_source"] == c["in_the_wrong_language"] == 40
        for c in report.summary()["counts"].values()
    )


def test_reports_survive_their_file_and_strangers_are_refused(tokenizer, tmp_path):
    report = evaluate_translation(
        Translator(tokenizer, PAIRS, cut_words), PAIRS, source="embedded", n_resamples=10
    )
    odd = dataclasses.replace(report.outputs[0], output="줄\u2028바꿈")
    report = dataclasses.replace(report, outputs=(odd, *report.outputs[1:]))
    path = tmp_path / "deep" / "t.jsonl"
    report.write(path)
    assert TranslationReport.read(path) == report
    json.dumps(report.summary())
    path.write_text(
        path.read_text("utf-8") + path.read_text("utf-8").replace('"seed": 0', '"seed": 1'), "utf-8"
    )
    with pytest.raises(ValueError, match="line 81 is from another run"):
        TranslationReport.read(path)
    path.write_text('{"id": "x"}\n')
    with pytest.raises(ValueError, match="line 1 is not a translation"):
        TranslationReport.read(path)


def test_no_pairs_is_refused(tokenizer):
    with pytest.raises(ValueError, match="nothing to score"):
        evaluate_translation(Translator(tokenizer, []), [], source="x")
