"""A comparison of runs for a terminal.

    print(as_table(compare(runs)))

The runs are numbered from 1. What can be told comes first; what cannot, and why, stands with its numbers below.
"""

from __future__ import annotations

from typing import Any

from medkor_jax.bar import in_words

_SHOWN = 6  # settings in which a run differs from the first


def as_table(compared: dict[str, Any]) -> str:
    """Returns the comparison as lines for a terminal."""
    lines = _runs(compared["runs"])
    lines += ["", *_answers(compared)]
    for exam in compared["exams"]:
        lines += ["", f"exam {exam['exam']}{_asked(exam)}"]
        lines += [f"  {number}  {_exam_words(one)}" for number, one in enumerate(exam["runs"], 1)]
    for text in compared["losses"]:
        lines += ["", f"held-out loss, {text['text']}, nats a token"]
        lines += [f"  {number}  {_loss_words(one)}" for number, one in enumerate(text["runs"], 1)]
    return "\n".join([*lines, "", *_costs(compared)])


def _runs(runs: list[dict[str, Any]]) -> list[str]:
    lines = []
    for number, run in enumerate(runs, 1):
        said = "what the others are compared with"
        if number > 1:
            said = f"compared with 1{_otherwise(run)}"
            said += "; it is the same model" * (run["model"] == runs[0]["model"])
        seed = "" if run["seed"] is None else f", seed {run['seed']}"
        lines.append(f"{number}  {run['run']} ({run['phase']}, {run['state']}{seed}): {said}")
    return lines


def _otherwise(run: dict[str, Any]) -> str:
    changes = run["trained_otherwise"]
    if not changes:
        return ""
    shown = ", ".join(
        f"{one['phase']}.{one['what']} {_short(one['here'])} for {_short(one['first'])}"
        for one in changes[:_SHOWN]
    )
    more = f" and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else ""
    return f"; trained with {shown}{more}"


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _answers(compared: dict[str, Any]) -> list[str]:
    """Returns a line a run: on what it is better or worse, and on what one cannot tell."""
    sure = compared["confidence"]
    lines = [
        f"Which is better, and can one tell ({sure['together']:.0%} for all exams together, so {sure['exam']:.2%} for each; "
        f"the same for losses, {sure['loss']:.2%} for each)"
    ]
    things = [(exam["exam"], exam["runs"]) for exam in compared["exams"]]
    things += [(f"{text['text']} loss", text["runs"]) for text in compared["losses"]]
    for i in range(1, len(compared["runs"])):
        told: dict[str, list[str]] = {}
        for name, runs in things:
            beside = runs[i]["beside"]
            told.setdefault(beside["verdict"] if beside else "not compared", []).append(name)
        words = "; ".join(
            f"{verdict}: {', '.join(names)}" for verdict, names in sorted(told.items())
        )
        lines.append(f"  {i + 1} beside 1: {words or 'nothing to compare'}")
    return lines


def _asked(exam: dict[str, Any]) -> str:
    modes = {one["score"]["mode"] for one in exam["runs"] if one["score"]}
    return f" ({', '.join(sorted(modes))})" if modes else ""


def _exam_words(one: dict[str, Any]) -> str:
    if one["score"] is None:
        return one["why_not"]
    score, beside = one["score"], one["beside"]
    words = f"{score['accuracy']:.1%} of {score['n']} [{score['low']:.1%}, {score['high']:.1%}]"
    if score["alarms"]:
        words += f", ALARM: {', '.join(score['alarms'])}"
    if one["why_not"]:
        return f"{words}; not compared: {one['why_not']}"
    if beside is None:
        return words
    words += f"; {_points(beside)}, McNemar p {_p(beside['p_value'])}: {beside['verdict']}"
    if sure := beside["probability"]:
        words += f"; probability of the right option {_points(sure)}: {sure['verdict']}"
    return words


def _points(found: dict[str, Any]) -> str:
    return f"{found['points']:+.1f} points [{found['low']:+.1f}, {found['high']:+.1f}]"


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1g}"


def _loss_words(one: dict[str, Any]) -> str:
    if one["nats"] is None:
        return one["why_not"]
    words, beside = f"{one['nats']:.3f}", one["beside"]
    if beside is None:
        return f"{words}; not compared: {one['why_not']}" if one["why_not"] else words
    if beside["low"] is None:
        return f"{words}; {beside['nats']:+.3f}, {one['why_not']}"
    interval = f"[{beside['low']:+.3f}, {beside['high']:+.3f}] over {beside['n']} documents"
    return f"{words}; {beside['nats']:+.3f} {interval}: {beside['verdict']}"


def _costs(compared: dict[str, Any]) -> list[str]:
    """Returns time and tokens: tokens are counted, and a time is one measurement of one machine."""
    first = compared["costs"][0]
    lines = ["cost until then (a time is one measurement, so nothing is told from it)"]
    for number, cost in enumerate(compared["costs"], 1):
        said = f"{in_words(cost['seconds'])}, {cost['tokens']:,.0f} tokens trained"
        if number > 1 and first["seconds"] and first["tokens"]:
            shares = (cost[name] / first[name] for name in ("seconds", "tokens"))
            said += "; {:.2f} times the time, {:.2f} times the tokens".format(*shares)
        devices = compared["runs"][number - 1]["devices"]
        lines.append(f"  {number}  {said}{f'; on {devices}' if devices else ''}")
    return lines
