"""A conversation as the model was taught to read one: its checkpoint's chat template, rendered by `transformers`.

    chat = ChatTemplate(template, tokenizer)
    chat.prompt("Which vitamin ...?\\nAnswer:", system="Answer with one letter.")     # ids, up to where the model's turn begins
    chat.dialogue((("1 + 1?", False), ("2", True)))                 # a dialogue to learn from, and what carries loss
    chat.turn_end                                                                     # ids that end a turn of the model

Ids equal those of `transformers` for any content that holds no control token. Content that does (the characters
"<end_of_turn>" in a question) stays text here, while `transformers` would end the turn: control tokens come from the
template alone. A translator's template (TranslateGemma's) takes one text with the codes of its two languages, and nothing else:

    chat.translation("열이 난다.", "ko", "en")

What it does not do: choose when to chat (`io.loaded_model`), read images or call tools.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from medkor_jax.data.contents import sha256_of
from medkor_jax.data.style import CHAT, Parts
from medkor_jax.data.tokenizer import Tokenizer

SYSTEM, USER, MODEL = "system", "user", "assistant"
Message = Mapping[str, Any]  # role and content: a text, or of a translator a list of one item
# What a translator's template reads of a content's item, and so what tells one: Google's model card of TranslateGemma
GIVEN, TARGET = "source_lang_code", "target_lang_code"
# what a control token looks like; which are, the vocabulary says
_PIECE = re.compile(r"(<\w+>|\[multimodal\])")


class ChatError(ValueError):
    """The template cannot be rendered, or renders no conversation; the message says what it said."""


class ChatTemplate:
    """One template over one vocabulary; a `style.Style`.

    Raises: ChatError if the template does not begin with <bos>, does not show each turn's content once and in order, or
    does not end a turn of the model by a control token.
    """

    name = CHAT

    def __init__(self, template: str, tokenizer: Tokenizer) -> None:
        self.template, self.tokenizer = template, tokenizer
        self.digest = sha256_of([template])
        self.translates = GIVEN in template
        first = [_to_translate("1", "ko", "en")] if self.translates else _messages("1")
        asked, whole = self.render(first), self.render([*first, _said("2")], opens=False)
        if asked.count("1") != 1 or not whole.startswith(asked + "2"):
            raise ChatError(
                f"the chat template renders a question and its answer as {whole!r}; the answer was to follow {asked!r}"
            )
        self.turn_end = rendered_ids(tokenizer, whole[len(asked) + 1 :])
        if not self.turn_end or self.turn_end[0] not in tokenizer.control_ids.values():
            raise ChatError(
                f"the chat template ends a turn of the model with {whole[len(asked) + 1 :]!r}, and not with a control token"
            )
        opened = self._ids(first)
        if opened[0] != tokenizer.bos_id:
            raise ChatError(
                f"the chat template begins a conversation with {asked!r}, and not with <bos>, without which Gemma is far off"
            )
        self.markup = len(opened) + len(self.turn_end)

    def render(self, messages: Sequence[Message], *, opens: bool = True) -> str:
        """Returns the conversation as text, equal to `transformers`' character for character. opens: up to where the
        model's next turn begins.

        Raises: ChatError with the template's own words.
        """
        try:
            return render(self.template, messages, opens=opens)
        except Exception as error:  # a template may raise what it likes
            raise ChatError(f"the chat template refuses the conversation: {error}") from error

    def text(self, asked: str, *, system: str = "") -> str:
        """Returns the prompt as text. Raises: ChatError, as `prompt`."""
        self._check_converses()
        return self.render(_messages(asked, system=system))

    def prompt(
        self, asked: str, *, system: str = "", before: Sequence[tuple[str, str]] = ()
    ) -> list[int]:
        """Returns ids, <bos> first: `asked` by the user, the model's turn begun.

        before: (asked, answered) turns. system goes where the template puts it.

        Raises: ChatError if the template has no place for a system text, refuses the turns, or is a translator's.
        """
        self._check_converses()
        return self._ids(_messages(asked, system=system, before=before))

    def translation(self, text: str, given: str, target: str) -> list[int] | None:
        """By the template where it is a translator's."""
        return self._ids([_to_translate(text, given, target)]) if self.translates else None

    def answer(self, text: str, *, marked: bool = False) -> list[int]:
        """The space in front of a plain answer is no part of a turn."""
        encode = self.tokenizer.encode_marked if marked else self.tokenizer.encode
        return encode(text.strip())

    def answered(self, asked: str, answer: str) -> list[int]:
        self._check_converses()
        turns = [*_messages(asked), _said(answer.strip())]
        return self._ids(turns, opens=False)[: -len(self.turn_end)]

    def dialogue(self, parts: Parts, *, marked: bool = False) -> tuple[list[int], list[bool]]:
        """Of parts that nobody says before the first turn, the last is the user's and those before it the system's.

        Raises: ChatError if the template shows an earlier turn otherwise once a later one is there.
        """
        system, turns = _turns(parts)
        ids: list[int] = []
        loss: list[bool] = []
        for i, (asked, answer) in enumerate(turns):
            opened = self.prompt(asked, system=system, before=turns[:i])
            if opened[: len(ids)] != ids:
                raise ChatError(
                    f"the chat template shows {len(turns[:i])} turns otherwise when another follows; such dialogues cannot be taught whole"
                )
            said = self.answer(answer, marked=marked)
            loss += [False] * (len(opened) - len(ids)) + [True] * (len(said) + 1)
            loss += [False] * (len(self.turn_end) - 1)
            ids = [*opened, *said, *self.turn_end]
        return ids[1:], loss[1:]

    def may_cut(self, splittable: bool, is_dialogue: bool) -> bool:
        """A turn without its beginning is none."""
        return splittable and not is_dialogue

    def _check_converses(self) -> None:
        if self.translates:
            raise ChatError(
                f"the chat template is a translator's (it reads {GIVEN}): it takes a text to translate and no other question; "
                "set style to 'plain' to ask it something else"
            )

    def _ids(self, messages: Sequence[Message], *, opens: bool = True) -> list[int]:
        mark = _Mark(self.tokenizer.control_ids)
        hidden = [
            {**message, "content": mark.hide_content(message["content"])} for message in messages
        ]
        return rendered_ids(self.tokenizer, self.render(hidden, opens=opens), mark.show)


def _turns(parts: Parts) -> tuple[str, list[tuple[str, str]]]:
    """Returns the system's text, and (asked, answered) of each turn; neighbours of one speaker are joined."""
    turns: list[tuple[list[str], list[str]]] = [([], [])]
    for text, is_said in parts:
        if not is_said and turns[-1][1]:
            turns.append(([], []))
        turns[-1][is_said].append(text.strip())
    *before, asked = turns[0][0]
    turns[0] = ([asked], turns[0][1])
    return "\n".join(before), [("\n".join(asked), "\n".join(said)) for asked, said in turns]


class _Mark:
    """Writes the control tokens that are text in a content so that nothing takes them for control tokens, and back."""

    def __init__(self, control_ids: Mapping[str, int]) -> None:
        self._control, self._hidden = control_ids, list[str]()
        self._name = secrets.token_hex(8)

    def hide(self, content: str) -> str:
        def name(match: re.Match) -> str:
            if match[0] not in self._control:
                return match[0]
            self._hidden.append(match[0])
            return f"\ue000{self._name}{len(self._hidden) - 1}\ue001"

        return _PIECE.sub(name, content)

    def hide_content(self, content: Any) -> Any:
        """Returns the same of a content that is a list of items, whose texts they are."""
        if isinstance(content, str):
            return self.hide(content)
        return [{**item, "text": self.hide(item["text"])} for item in content]

    def show(self, part: str) -> str:
        return re.sub(
            f"\ue000{self._name}(\\d+)\ue001", lambda match: self._hidden[int(match[1])], part
        )


def _messages(
    asked: str, *, system: str = "", before: Sequence[tuple[str, str]] = ()
) -> list[Message]:
    messages: list[Message] = [{"role": SYSTEM, "content": system}] if system else []
    for earlier, answer in before:
        messages += [{"role": USER, "content": earlier}, _said(answer.strip())]
    return [*messages, {"role": USER, "content": asked}]


def _to_translate(text: str, given: str, target: str) -> Message:
    item = {"type": "text", GIVEN: given, TARGET: target, "text": text}
    return {"role": USER, "content": [item]}


def _said(text: str) -> Message:
    return {"role": MODEL, "content": text}


def render(template: str, messages: Sequence[Message], *, opens: bool = True) -> str:
    """Returns the conversation as `transformers` renders it with this template; opens: up to where the model's turn begins.

    Raises: whatever the template raises.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    names = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad", "unk")}
    options = dict(chat_template=template, add_generation_prompt=opens)
    return render_jinja_template([list(messages)], **options, **names)[0][0]


def rendered_ids(
    tokenizer: Tokenizer, rendered: str, show: Callable[[str], str] = str
) -> list[int]:
    """Returns the ids of a rendered conversation, in which control tokens are meant as such; between them the text is
    tokenised as one. show: turns such a text into what it stands for."""
    ids: list[int] = []
    control, text = tokenizer.control_ids, ""
    for part in [*_PIECE.split(rendered), None]:
        if part is not None and part not in control:
            text += part
            continue
        ids += tokenizer.encode(show(text)) if text else []
        ids += [] if part is None else [control[part]]
        text = ""
    return ids
