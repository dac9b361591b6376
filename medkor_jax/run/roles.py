"""What each key of a config decides: how a phase is trained, how it is judged, or nothing that lasts.

    dict(roles_of(phase, TRAINED))      # {"lora.rank": 16, "lora.alpha": 32.0, ...}

One row a class of the recipe. ELSEWHERE: the field decides, and `lineage` looks at what it names (the rows of a source, the
digest of the weights) instead of at its text. A field that is not named here is TRAINED: what is new counts until someone
says that it does not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

TRAINED, JUDGED, NOTHING, ELSEWHERE = "trained", "judged", "nothing", "elsewhere"

ROLES: dict[str, dict[str, str]] = {
    "Recipe": dict(
        run_dir=NOTHING,
        weights=ELSEWHERE,
        run=NOTHING,
        phases=ELSEWHERE,
        exams=ELSEWHERE,
        final=ELSEWHERE,
        held_out=ELSEWHERE,
        held_out_tokens=ELSEWHERE,
        max_translation_tokens=ELSEWHERE,
        dtype=TRAINED,
        param_dtype=TRAINED,
        remat=NOTHING,
        attention=NOTHING,
        chunk=NOTHING,
        language_unit=TRAINED,
        mesh=NOTHING,
        topology=NOTHING,
        style=ELSEWHERE,
        reasoning=ELSEWHERE,
        seed=TRAINED,
        allow_leaks=NOTHING,
        drop_bad=ELSEWHERE,
        log_every=NOTHING,
    ),
    "Phase": dict(
        name=NOTHING,
        title=NOTHING,
        after=ELSEWHERE,
        candidates=ELSEWHERE,
        lora=TRAINED,
        remedy_lora=TRAINED,
        language=TRAINED,
        expand=TRAINED,
        train=ELSEWHERE,
        merge=TRAINED,
        is_reference=ELSEWHERE,
        exam=JUDGED,
        gate=JUDGED,
        remedy=ELSEWHERE,
        translations=ELSEWHERE,
    ),
    "Stage": dict(
        steps=TRAINED,
        trees=TRAINED,
        data=ELSEWHERE,
        batch_size=TRAINED,
        seq_len=TRAINED,
        microbatches=TRAINED,
        loss_positions=TRAINED,
        rules=ELSEWHERE,
        warmup_steps=TRAINED,
        final_share=TRAINED,
        clip_norm=TRAINED,
        dropout=TRAINED,
        next_token_weight=TRAINED,
        retention=TRAINED,
        save_every=NOTHING,
        keep_last=NOTHING,
        spike_nats=NOTHING,
        on_spike=NOTHING,
        validation=ELSEWHERE,
        validate_every=ELSEWHERE,
        take=TRAINED,
        reward=TRAINED,
    ),
    "Exam": dict(
        source=ELSEWHERE,
        mode=ELSEWHERE,
        shots=ELSEWHERE,
        fewshot=ELSEWHERE,
        batch_size=NOTHING,
        max_new_tokens=ELSEWHERE,
        max_thinking_tokens=ELSEWHERE,
        phases=ELSEWHERE,
    ),
    "Source": dict(
        name=ELSEWHERE,
        kind=ELSEWHERE,
        path=ELSEWHERE,
        split=ELSEWHERE,
        subset=ELSEWHERE,
        language=ELSEWHERE,
        weight=ELSEWHERE,
        licence=NOTHING,
        fields=ELSEWHERE,
        limit=ELSEWHERE,
        skip=ELSEWHERE,
        answers_from=ELSEWHERE,
        revision=ELSEWHERE,
        rationale=ELSEWHERE,
        held_share=ELSEWHERE,
        part=ELSEWHERE,
        part_by=ELSEWHERE,
        orders=ELSEWHERE,
        answered_by=ELSEWHERE,
        loss=ELSEWHERE,
        asked_as=ELSEWHERE,
        translated_to=ELSEWHERE,
        translator=ELSEWHERE,
    ),
}

# What records of finished runs call a field that has another name now.
_STORED = {"held_out": "watch", "language_unit": "route"}


def roles_of(value: Any, role: str) -> Iterator[tuple[str, Any]]:
    """Yields (name, plain value) of every field of `value` with that role, nested ones as "lora.rank".

    Settings that are switched off (`is_on`) are no fact: what is added to the program later, and off, makes no phase stale.
    """
    roles = ROLES[type(value).__name__]
    for field in dataclasses.fields(value):
        if roles.get(field.name, TRAINED) == role:
            yield from _flat(_STORED.get(field.name, field.name), getattr(value, field.name))


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
        for one in value:
            yield from _flat(f"{name}.{one.name}", one)
        return
    if not dataclasses.is_dataclass(value):
        yield name, list(value) if isinstance(value, tuple) else value
        return
    if not getattr(value, "is_on", True):
        return
    if hasattr(value, "facts"):  # it says itself what of it counts
        yield from ((f"{name}.{fact}", of) for fact, of in value.facts().items())
        return
    for field in dataclasses.fields(value):
        stored = _STORED.get(field.name, field.name)
        yield from _flat(f"{name}.{stored}", getattr(value, field.name))
