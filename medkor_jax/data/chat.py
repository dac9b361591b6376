"""A conversation as the model was taught to read one: its checkpoint's chat template, rendered by `transformers`.

    chat = ChatTemplate(template, tokenizer)
    chat.prompt("Which vitamin ...?\\nAnswer:", system="Answer with one letter.")     # ids, up to where the model's turn begins
    chat.turn_end                                                                     # ids that end a turn of the model

Ids equal those of `transformers` for any content that holds no control token. Content that does (the characters
"<end_of_turn>" in a question) stays text here, while `transformers` would end the turn: control tokens come from the
template alone. What it does not do: choose when to chat (`eval.asking`), read images or call tools.
"""

from __future__ import annotations

import functools
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from medkor_jax.data.tokenizer import Tokenizer

SYSTEM, USER, MODEL = "system", "user", "assistant"
Message = Mapping[str, str]
_PIECE = re.compile(r"(<\w+>|\[multimodal\])")  # what a control token looks like; which are, the vocabulary says


class ChatError(ValueError):
    """The template cannot be rendered, or renders no conversation; the message says what it said."""


class ChatTemplate:
    """One template over one vocabulary.

    Raises: ChatError if the template does not show each turn's content once and in order, or does not end a turn of the
    model by a control token.
    """

    def __init__(self, template: str, tokenizer: Tokenizer) -> None:
        self.template, self._tokenizer = template, tokenizer
        asked, whole = self.render(_messages("1")), self.render([*_messages("1"), {"role": MODEL, "content": "2"}], opens=False)
        if asked.count("1") != 1 or not whole.startswith(asked + "2"):
            raise ChatError(f"the chat template renders a question and its answer as {whole!r}; the answer was to follow {asked!r}")
        self.turn_end = self._encode(whole[len(asked) + 1 :])
        if not self.turn_end or self.turn_end[0] not in tokenizer.control_ids.values():
            raise ChatError(f"the chat template ends a turn of the model with {whole[len(asked) + 1:]!r}, and not with a control token")

    def render(self, messages: Sequence[Message], *, opens: bool = True) -> str:
        """Returns the conversation as text, equal to `transformers`' character for character. opens: up to where the
        model's next turn begins.

        Raises: ChatError with the template's own words.
        """
        try:
            return _renderer(self.template)(messages, opens)
        except Exception as error:  # a template may raise what it likes
            raise ChatError(f"the chat template refuses the conversation: {error}") from error

    def prompt(self, text: str, *, system: str = "", shots: Sequence[tuple[str, str]] = ()) -> list[int]:
        """Returns ids, <bos> included where the template writes it: `text` asked by the user, the model's turn begun.

        shots: (asked, answered) turns before it. system goes where the template puts it.

        Raises: ChatError if the template has no place for a system text, or refuses the turns.
        """
        messages = _messages(text, system=system, shots=shots)
        mark = _Mark(self._tokenizer.control_ids)
        rendered = self.render([{**message, "content": mark.hide(message["content"])} for message in messages])
        return self._encode(rendered, mark)

    def _encode(self, rendered: str, mark: _Mark | None = None) -> list[int]:
        """Returns the ids of a rendered conversation; between control tokens the text is tokenised as one."""
        ids: list[int] = []
        control, text = self._tokenizer.control_ids, ""
        for part in [*_PIECE.split(rendered), None]:
            if part is not None and part not in control:
                text += part
                continue
            ids += self._tokenizer.encode(mark.show(text) if mark else text) if text else []
            ids += [] if part is None else [control[part]]
            text = ""
        return ids


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

    def show(self, part: str) -> str:
        return re.sub(f"\ue000{self._name}(\\d+)\ue001", lambda match: self._hidden[int(match[1])], part)


def _messages(text: str, *, system: str = "", shots: Sequence[tuple[str, str]] = ()) -> list[Message]:
    messages = [{"role": SYSTEM, "content": system}] if system else []
    for asked, answered in shots:
        messages += [{"role": USER, "content": asked}, {"role": MODEL, "content": answered}]
    return [*messages, {"role": USER, "content": text}]


@functools.lru_cache(maxsize=8)
def _renderer(template: str):
    from transformers.utils.chat_template_utils import render_jinja_template

    names: dict[str, Any] = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad", "unk")}

    def render(messages: Sequence[Message], opens: bool) -> str:
        return render_jinja_template([[dict(message) for message in messages]], chat_template=template, add_generation_prompt=opens, **names)[0][0]

    return render
