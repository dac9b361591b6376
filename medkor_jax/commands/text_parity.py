"""Do the same texts become the same ids here and in `transformers`, and the same conversations the same prompts?

    parity = compare_texts(model, transformers.AutoTokenizer.from_pretrained(directory))
    parity.passed; parity.lines()

Texts, not ids: what a checkpoint's files say of its tokenizer is read by each side for itself. Control tokens are left
out of the texts, for they are never read out of text here (see `data.tokenizer`) and always are over there. Chat
templates are not used by this program; they are compared because an export hands them on.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from typing import Any

from medkor_jax.data import embedded
from medkor_jax.data.chat import render, rendered_ids
from medkor_jax.data.embedded import texts
from medkor_jax.data.question import prompt as exam_prompt
from medkor_jax.data.tokenizer import Tokenizer
from medkor_jax.io.export_tokenizer import PROBES
from medkor_jax.io.models import Model

CONVERSATION = [
    {"role": "user", "content": "58세 남자가 가슴이 아프다. What is the likely diagnosis?"},
    {"role": "assistant", "content": "협심증(angina)."},
    {"role": "user", "content": "왜?\n\n  1. Why not gastritis?"},
]
_N_QUESTIONS, _N_SCRAMBLED = 12, 200
_LONG_CHARACTERS = 4000  # more than a thousand tokens in either language
_SHOWN_IDS, _SHOWN_CHARACTERS = 8, 60


@dataclasses.dataclass(frozen=True)
class TextParity:
    """differences: what differs, the first of each kind, in words; around: what a call over there puts around a text."""

    n_texts: int
    n_same: int
    longest: int  # tokens
    templates: tuple[str, ...]
    differences: tuple[str, ...]
    around: str = ""

    @property
    def passed(self) -> bool:
        return not self.differences

    def lines(self) -> list[str]:
        lines = [
            f"  texts: {self.n_same} of {self.n_texts} become the same ids, the longest {self.longest} tokens"
        ]
        if self.templates:
            is_same = not any(
                difference.startswith("chat template") for difference in self.differences
            )
            same = "are the same, in text and rendered" if is_same else "differ"
            lines.append(f"  chat templates ({', '.join(self.templates)}) {same}")
        lines += [f"  note: {self.around}"] if self.around else []
        return [*lines, *(f"  DIFFERENT: {difference}" for difference in self.differences)]


def compare_texts(model: Model, theirs: Any, *, is_export: bool = False) -> TextParity:
    """Returns how our tokenizer and templates compare with a transformers tokenizer.

    is_export: it is one of ours, which puts bos in front of a text; of others, that is only said.
    """
    tokenizer, asked = model.tokenizer, list(compared_texts())
    ours = tokenizer.encode_batch(asked)
    found = [theirs(text, add_special_tokens=False)["input_ids"] for text in asked]
    n_same = sum(own == their for own, their in zip(ours, found))
    differences = []
    if n_same < len(asked):
        text, own, their = next(one for one in zip(asked, ours, found) if one[1] != one[2])
        differences.append(
            f"{len(asked) - n_same} texts; the first is {_first_difference(text, own, their)}"
        )
    around = _around(tokenizer, theirs)
    if around and is_export:
        differences.append(around)
    templates = model.base.carried.chat_templates
    differences += _template_differences(tokenizer, templates, theirs)
    longest = max(map(len, ours))
    return TextParity(
        len(asked),
        n_same,
        longest,
        tuple(templates),
        tuple(differences),
        "" if is_export else around,
    )


def compared_texts() -> Iterator[str]:
    """Yields odd texts, exam questions, long ones in both languages, and scrambled ones; control tokens in none."""
    yield from PROBES
    korean, english = (
        [exam_prompt(q) for q in embedded.questions("valid", code)[:_N_QUESTIONS]]
        for code in ("ko", "en")
    )
    yield from korean
    yield from english
    yield from (f"{one}\n\n{other}" for one, other in zip(korean, english))
    for code in ("ko", "en"):
        joined = "\n".join(text for _, text in texts(code))
        yield joined[:_LONG_CHARACTERS]
    rng = random.Random(0)
    pool = [
        *" \n\t\r1.<>aé가뷁중😀\u1100\u2581\uffa1/",
        "  ",
        "환자",
        "the ",
        "<b>",
        "</td>",
        "\n\n",
    ]
    for _ in range(_N_SCRAMBLED):
        yield "".join(rng.choice(pool) for _ in range(rng.randint(1, 60)))


def _first_difference(text: str, ours: list[int], theirs: list[int]) -> str:
    at = next(
        (i for i, (own, their) in enumerate(zip(ours, theirs)) if own != their),
        min(len(ours), len(theirs)),
    )
    shown = lambda ids: f"{len(ids)} ids, from place {at} {ids[at : at + _SHOWN_IDS]}"
    cut = text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."
    return f"{cut!r} ({len(text)} characters): here {shown(ours)}, in transformers {shown(theirs)}"


def _around(tokenizer: Tokenizer, theirs: Any) -> str:
    text = PROBES[0]
    found, plain = list(theirs(text)["input_ids"]), tokenizer.encode(text)
    if found == [tokenizer.bos_id, *plain]:
        return ""
    theirs = f"{found[:2]} ... {found[-2:]} of a text ({len(found)} ids)"
    return f"a call in transformers makes {theirs}; here <bos> goes before its {len(plain)} ids"


def _template_differences(tokenizer: Tokenizer, ours: dict[str, str], theirs: Any) -> list[str]:
    found = theirs.chat_template or {}
    found = {"default": found} if isinstance(found, str) else dict(found)
    if found.keys() != ours.keys():
        named = lambda names: ", ".join(sorted(names)) or "none"
        return [f"chat templates: the base has {named(ours)}, transformers reads {named(found)}"]
    differences = []
    for name, text in ours.items():
        if text != found[name]:
            at = next(
                (i for i, (a, b) in enumerate(zip(text, found[name])) if a != b),
                min(len(text), len(found[name])),
            )
            differences.append(
                f"chat template {name!r} has {len(text)} characters, in transformers {len(found[name])}; they part at {at}: "
                f"{text[at : at + 40]!r}"
            )
            continue
        rendered, there = _rendered(text), _rendered_there(theirs, name)
        if rendered != there:
            differences.append(
                f"chat template {name!r} gives {rendered!r}, in transformers {there!r}"
            )
        elif (own := rendered_ids(tokenizer, rendered)) != (
            their := theirs(there, add_special_tokens=False)["input_ids"]
        ):
            differences.append(
                f"chat template {name!r}, rendered: {_first_difference(rendered, own, their)}"
            )
    return differences[:1]


def _rendered(template: str) -> str:
    return _or_error(lambda: render(template, CONVERSATION))


def _rendered_there(theirs: Any, name: str) -> str:
    which = {"chat_template": name} if isinstance(theirs.chat_template, dict) else {}
    return _or_error(
        lambda: theirs.apply_chat_template(
            CONVERSATION, tokenize=False, add_generation_prompt=True, **which
        )
    )


def _or_error(render: Any) -> str:
    try:
        return render()
    except Exception as error:  # a template may raise what it likes; both sides must raise the same
        return f"{type(error).__name__}: {error}"
