"""What looks wrong in a report: sentences with numbers and the usual cause.

    find_alarms(report)      # (Alarm("unread answers", "no answer could be read in 12 of 40 texts, ..."),)

An alarm stops nothing; the gate decides what it forbids.
"""

from __future__ import annotations

import collections
from typing import NamedTuple

from medkor_jax.data.question import LETTERS
from medkor_jax.eval import stats
from medkor_jax.eval.scores import Scored

# A report is alarming beyond these. Published models leave far less unparsed and spread further.
DOMINANT_SHARE = 0.6  # of answers on one letter ...
DOMINANT_EXCESS = 0.2  # ... and this much more than the key has of it
DOMINANT_MIN_ANSWERS = 10
UNPARSED_SHARE = 0.1
_EVEN = 1.02  # the likeliest option's probability, as a multiple of an even share: below, none is preferred
LENGTH_EXCESS = 0.2  # answers on the shortest (or longest) option more than the key has of them, beyond guessing's error


class Alarm(NamedTuple):
    """short: what it is about, in a few words, for whoever was told of it before."""

    short: str
    words: str


def find_alarms(report: Scored) -> tuple[Alarm, ...]:
    """Returns the alarms of a report, gravest first; () if nothing looks wrong."""
    about_answers = {
        "at chance": _chance_alarm,
        "one letter": _dominance_alarm,
        "by length": _length_alarm,
        "unread answers": _unparsed_alarm,
    }
    raised = [
        Alarm(short, words) for short, find in about_answers.items() if (words := find(report))
    ]
    return (*raised, *(Alarm("prompts", words) for words in _prompt_alarms(report)))


def _chance_alarm(report: Scored) -> str | None:
    if not report.is_at_chance:
        return None
    score = report.overall
    p = stats.chance_p_value(score.correct, [a.n_options for a in report.answers])
    found = f"{score.correct} of {score.n} right is {score.accuracy:.1%} [{score.low:.1%}, {score.high:.1%}]"
    if score.high < score.chance:
        return (
            f"{found}, below what guessing gives ({score.chance:.1%}). Likely cause: key and options disagree (keys "
            "counted from 0 against 1, digits against letters, options shuffled without their key), or the prompt is "
            "not the one trained on."
        )
    return (
        f"{found}, not told apart from guessing ({score.chance:.1%}; guessing does as well with probability {p:.2f}). "
        f"Likely cause: {_cause_of_chance(report)}."
    )


def _cause_of_chance(report: Scored) -> str:
    """Returns the likeliest cause of this case first: what the probabilities say, else how many questions there are."""
    by_mode = {
        "letter": "letters compared with a space where training had none",
        "harness": "few-shot answers in digits where letters are asked",
        "reason": "a model that was never taught to reason in this form",
        "cloze": "questions that make no sense without their options",
        "cloze_norm": "questions that make no sense without their options",
    }[report.mode]
    lost = "weights not loaded, or a prompt format the model never saw"
    spread = [max(a.probabilities) * a.n_options for a in report.answers if a.probabilities]
    if spread and sum(spread) / len(spread) < _EVEN:
        return f"{lost}: it finds all options equally likely; else {by_mode}"
    n, chance = report.overall.n, report.overall.chance
    needed = _told_from(n, chance)
    few = (
        f"too few questions: of {n}, less than {needed:.0%} right can be luck; "
        if needed > chance + 0.1
        else ""
    )
    return f"{few}a model that does not know this (small, or not yet trained on it); {by_mode}; or {lost}"


def _told_from(n: int, chance: float) -> float:
    """Returns the least share right of `n` whose 95 % interval lies above `chance`."""
    return next((k / n for k in range(n + 1) if stats.wilson(k, n).low > chance), 1.0)


def _dominance_alarm(report: Scored) -> str | None:
    if report.overall.n < DOMINANT_MIN_ANSWERS:
        return None
    taken_by_letter = collections.Counter(a.predicted for a in report.answers if a.predicted)
    if not taken_by_letter:
        return None
    letter, taken = taken_by_letter.most_common(1)[0]
    share = taken / report.overall.n
    in_key = sum(a.key == letter for a in report.answers) / report.overall.n
    if share <= DOMINANT_SHARE or share - in_key <= DOMINANT_EXCESS:
        return None
    return (
        f"{share:.0%} of the answers are {letter}, which is right in {in_key:.0%} of the questions. Likely cause: the "
        "model answers by position and not by content (untrained, or trained on options that were never shuffled), or "
        "its letters all look alike to it (answer token mismatch, weights not loaded)."
    )


def _length_alarm(report: Scored) -> str | None:
    """Says when a cloze score follows the length of the options: how often the one shortest (longest) is taken."""
    for end, word, cause in (
        (min, "shortest", "a summed log-likelihood falls with every token, so short options win"),
        (
            max,
            "longest",
            "a mean over characters forgives long options, whose ends are easy to guess",
        ),
    ):
        told = []  # (this option taken, this option right), where one option alone is the shortest or longest
        for a in report.answers:
            lengths = a.option_lengths
            if lengths and lengths.count(end(lengths)) == 1:
                letter = LETTERS[lengths.index(end(lengths))]
                told.append((a.predicted == letter, a.key == letter))
        if len(told) < DOMINANT_MIN_ANSWERS:
            continue
        taken, right = (sum(column) / len(told) for column in zip(*told))
        differ = stats.paired_difference(stats.PairedCounts.of(*zip(*told)))
        if taken - right > LENGTH_EXCESS and differ.low > 0:
            other = "cloze_norm" if report.mode == "cloze" else "cloze"
            return (
                f"the {word} option is taken in {taken:.0%} of {len(told)} questions that have one and is right in {right:.0%}: "
                f"the score follows length. Likely cause: {cause}. Compare mode {other!r}, or show the options (letter mode)."
            )
    return None


def _unparsed_alarm(report: Scored) -> str | None:
    unparsed = [a.text for a in report.answers if a.predicted is None]
    if len(unparsed) / report.overall.n <= UNPARSED_SHARE:
        return None
    found = f"no answer could be read in {len(unparsed)} of {report.overall.n} texts"
    if report.thinking and report.thinking.unfinished:
        found += (
            f" ({report.thinking.unfinished:.0%} of all did not finish thinking: a larger max_thinking_tokens, "
            "or a model that goes in circles)"
        )
    if report.reasoning:
        cut = sum(not a.is_whole for a in report.answers)
        return (
            f"{found}, {cut} of them cut at {report.max_new_tokens} tokens; one ends in {unparsed[0][-60:]!r}. Likely cause: "
            "a model not taught to reason in this form (cold start first), other tags than it was taught, or, where most "
            "are cut, max_new_tokens too small or text that goes in circles."
        )
    return (
        f"{found}, for example {unparsed[0][:60]!r}. "
        "Likely cause: a chat model asked without its template or without shots, weights not loaded, or text cut "
        "before the letter."
    )


def _prompt_alarms(report: Scored) -> list[str]:
    shown, cut = (
        sum(a.among_shots for a in report.answers),
        sum(a.truncated for a in report.answers),
    )
    alarms = []
    if shown:
        alarms.append(
            f"{shown} of the {report.overall.n} questions are among the {report.shots} shots, answers included (the "
            "fewshot split of KorMedMCQA is part of its validation split): the score counts answers that were shown."
        )
    if cut:
        alarms.append(
            f"{cut} prompts were longer than the model and lost their beginning; use fewer shots."
        )
    return alarms
