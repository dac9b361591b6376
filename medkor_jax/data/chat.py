"""A conversation as the model was taught to read one: its checkpoint's chat template, rendered by `transformers`.

    chat = ChatTemplate(template, tokenizer)
    chat.prompt("Which vitamin ...?\\nAnswer:", system="Answer with one letter.")     # ids, up to where the model's turn begins
    chat.turn_end                                                                     # ids that end a turn of the model

Ids equal those of `transformers` for any content that holds no control token. Content that does (the characters
"<end_of_turn>" in a question) stays text here, while `transformers` would end the turn: control tokens come from the
template alone. What it does not do: choose when to chat, read images or call tools. Only
`medkor verify` uses it yet: training, exams and rewards ask plainly.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping, Sequence

from medkor_jax.data.tokenizer import Tokenizer

SYSTEM, USER, MODEL = "system", "user", "assistant"
Message = Mapping[str, str]
# what a control token looks like; which are, the vocabulary says
_PIECE = re.compile(r"(<\w+>|\[multimodal\])")


class ChatError(ValueError):
    """The template cannot be rendered, or renders no conversation; the message says what it said."""


class ChatTemplate:
    """One template over one vocabulary.

    Raises: ChatError if the template does not show each turn's content once and in order, or does not end a turn of the
    model by a control token.
    """

    def __init__(self, template: str, tokenizer: Tokenizer) -> None:
        self.template, self._tokenizer = template, tokenizer
        asked, whole = (
            self.render(_messages("1")),
            self.render([*_messages("1"), {"role": MODEL, "content": "2"}], opens=False),
        )
        if asked.count("1") != 1 or not whole.startswith(asked + "2"):
            raise ChatError(
                f"the chat template renders a question and its answer as {whole!r}; the answer was to follow {asked!r}"
            )
        self.turn_end = rendered_ids(tokenizer, whole[len(asked) + 1 :])
        if not self.turn_end or self.turn_end[0] not in tokenizer.control_ids.values():
            raise ChatError(
                f"the chat template ends a turn of the model with {whole[len(asked) + 1 :]!r}, and not with a control token"
            )

    def render(self, messages: Sequence[Message], *, opens: bool = True) -> str:
        """Returns the conversation as text, equal to `transformers`' character for character. opens: up to where the
        model's next turn begins.

        Raises: ChatError with the template's own words.
        """
        try:
            return render(self.template, messages, opens=opens)
        except Exception as error:  # a template may raise what it likes
            raise ChatError(f"the chat template refuses the conversation: {error}") from error

    def prompt(
        self, text: str, *, system: str = "", shots: Sequence[tuple[str, str]] = ()
    ) -> list[int]:
        """Returns ids, <bos> included where the template writes it: `text` asked by the user, the model's turn begun.

        shots: (asked, answered) turns before it. system goes where the template puts it.

        Raises: ChatError if the template has no place for a system text, or refuses the turns.
        """
        messages = _messages(text, system=system, shots=shots)
        mark = _Mark(self._tokenizer.control_ids)
        rendered = self.render(
            [{**message, "content": mark.hide(message["content"])} for message in messages]
        )
        return rendered_ids(self._tokenizer, rendered, mark.show)


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
        return re.sub(
            f"\ue000{self._name}(\\d+)\ue001", lambda match: self._hidden[int(match[1])], part
        )


def _messages(
    text: str, *, system: str = "", shots: Sequence[tuple[str, str]] = ()
) -> list[Message]:
    messages = [{"role": SYSTEM, "content": system}] if system else []
    for asked, answered in shots:
        messages += [{"role": USER, "content": asked}, {"role": MODEL, "content": answered}]
    return [*messages, {"role": USER, "content": text}]


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
