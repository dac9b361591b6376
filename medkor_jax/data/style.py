r"""The form in which a model is asked and taught to answer: plain text here, its checkpoint's chat template in `chat`.

    style = Plain(tokenizer)                            # or ChatTemplate(template, tokenizer)
    style.prompt("Which vitamin ...?\nAnswer:")         # ids, <bos> first, up to where the model answers
    style.answer(" B")                                  # ids of the answer
    style.dialogue((("Which ...?\nAnswer:", False), (" B", True)))       # both with the end, and what carries loss

Training, exams, rewards, translation and `medkor ask` make ids of what is asked here and nowhere else, so that a model is
never taught in one form and asked in another. What it does not do: choose a form (`io.loaded_model`), or say what is
asked (`question`, `reasoning`, `pairs`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from medkor_jax.data.tokenizer import Tokenizer

AUTO, CHAT, PLAIN = "auto", "chat", "plain"
STYLES = (AUTO, CHAT, PLAIN)
Parts = Sequence[
    tuple[str, bool]
]  # (text, whether the model says it, and so whether it carries loss)


class Style(Protocol):
    """name: CHAT or PLAIN. digest: of what decides the form beside the tokenizer, "" of plain text. markup: the most tokens
    that the form adds around one part of a dialogue."""

    name: str
    digest: str
    markup: int

    @property
    def tokenizer(self) -> Tokenizer:
        """Whose ids are made."""

    def text(self, asked: str, *, system: str = "") -> str:
        """Returns what the model reads up to where it answers, as text; control tokens by their names."""

    def prompt(self, asked: str, *, system: str = "") -> list[int]:
        """Returns its ids, <bos> first."""

    def translation(self, text: str, given: str, target: str) -> list[int] | None:
        """Returns the ids of a text to translate where the form has its own way to ask for that, else None: `pairs.translation_ids`."""

    def answer(self, text: str, *, marked: bool = False) -> list[int]:
        """Returns the ids of an answer right behind a prompt, without what ends it.

        marked: code wrote it, and the marks of a thought in it are the model's control tokens (`Tokenizer.encode_marked`)."""

    def answered(self, asked: str, answer: str) -> list[int]:
        """Returns the ids of prompt and answer made of one text: to see whether they are those of the two apart."""

    def dialogue(self, parts: Parts, *, marked: bool = False) -> tuple[list[int], list[bool]]:
        """Returns the ids of a whole dialogue without its <bos>, and which of them carry loss: the model's, with the token
        that ends them. marked: as in `answer`, for what the model says."""

    def may_cut(self, splittable: bool, is_dialogue: bool) -> bool:
        """Returns whether a document that may be cut as text may be cut in this form."""


def check_style(style: str) -> None:
    """Raises: ValueError for a name that is none of STYLES."""
    if style not in STYLES:
        raise ValueError(f"style is {style!r}, expected one of {', '.join(STYLES)}")


class Plain:
    """Text goes on as text."""

    name, digest, markup = PLAIN, "", 1

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def text(self, asked: str, *, system: str = "") -> str:
        return f"{system.rstrip()}\n\n{asked}" if system else asked

    def prompt(self, asked: str, *, system: str = "") -> list[int]:
        return [self.tokenizer.bos_id, *self.answer(self.text(asked, system=system))]

    def translation(self, text: str, given: str, target: str) -> None:
        return None

    def answer(self, text: str, *, marked: bool = False) -> list[int]:
        if marked:
            return self.tokenizer.encode_marked(text)
        return self.tokenizer.encode_batch([text])[0]

    def answered(self, asked: str, answer: str) -> list[int]:
        return self.prompt(asked + answer)

    def dialogue(self, parts: Parts, *, marked: bool = False) -> tuple[list[int], list[bool]]:
        """Parts are tokenised apart: a prompt's tokens do not depend on its answer. <eos> ends the last."""
        ids: list[int] = []
        loss: list[bool] = []
        for text, is_said in parts:
            part = self.answer(text, marked=marked and is_said)
            ids += part
            loss += [is_said] * len(part)
        return [*ids, self.tokenizer.eos_id], [*loss, parts[-1][1]]

    def may_cut(self, splittable: bool, is_dialogue: bool) -> bool:
        return splittable
