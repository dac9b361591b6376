"""Batches made of the model's own answers: a source for the same loop that trains on documents.

    rollouts = Rollouts([(source, questions)], style, RewardSettings("grpo"), batch_size=32, seq_len=512)
    batch, metrics = rollouts.next(params, actor)
    cursor = rollouts.get_state()                   # JSON: set_state(cursor) goes on to the same bits

"grpo": groups of samples of one question; each sample's advantage is how far it stands above its group. "rft": the
samples that earn all there is to earn are kept and imitated, without advantages. A group that teaches nothing (all
earned the same; none earned all) is dead: it is dropped and other questions are asked, a bounded number of times.
One sample a row, one shape for all batches. Every draw follows from (seed, rollout, group, sample) and the weights.

Departures from the papers are numbered in `policy`. Source of "rft": Yuan et al. 2023 (arXiv:2308.01825).
It does not update anything, and knows no devices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from medkor_jax.data.batches import check_cursor, document_order
from medkor_jax.data.contents import content_digest
from medkor_jax.data.language import check_language_unit
from medkor_jax.data.option_order import kept_order, shuffle_options
from medkor_jax.data.packing import LANGUAGE_IDS, Batch, PackedRows
from medkor_jax.data.question import Question
from medkor_jax.data.reasoning import ReasoningFormat, reasoning_prompt
from medkor_jax.data.rows import BadDataError, BadRow, Source
from medkor_jax.data.style import Style
from medkor_jax.io.old_formats import CURSOR_FORMAT, upgraded_cursor
from medkor_jax.model.params import Params
from medkor_jax.parallel.hosts import say
from medkor_jax.train.actor import Actor, Sample
from medkor_jax.train.groups import (
    Group,
    NothingToLearn,
    explain,
    rollout_metrics,
    taught,
    watch_letters,
)
from medkor_jax.train.importance import gap_alarm, importance
from medkor_jax.train.reward_settings import RewardSettings
from medkor_jax.train.rewards import Earned, Reward
from medkor_jax.train.sampled_rows import array_from_json, array_to_json, fill_rows


class Rollouts:
    """Batches of B rows of T tokens, one sample a row, at most M tokens sampled each (0: max_new_tokens).

    sources: (source, its questions), mixed by weight, each shuffled again in every epoch.
    drop_bad: leave out questions that are too long (listed in `dropped`) instead of raising.

    Raises: BadDataError for questions that do not fit; ValueError for settings that contradict each other.
    """

    def __init__(
        self,
        sources: Sequence[tuple[Source, Sequence[Question]]],
        style: Style,
        settings: RewardSettings,
        *,
        batch_size: int,
        seq_len: int,
        loss_positions: int = 0,
        seed: int = 0,
        language_unit: str = "token",
        drop_bad: bool = False,
        form: ReasoningFormat = ReasoningFormat(),
    ) -> None:
        settings.rollout.check_shape(batch_size, seq_len, loss_positions)
        if not sources or not all(len(questions) for _, questions in sources):
            raise ValueError("no questions: every source needs at least one")
        check_language_unit(language_unit)
        self.settings, self.language_unit = settings.rollout, language_unit
        self.batch_size, self.seq_len = batch_size, seq_len
        self._learning, self._reward = settings, Reward(settings.parts, form)
        self.loss_positions = loss_positions or settings.rollout.max_new_tokens
        self._questions = [questions for _, questions in sources]
        self._style, self._tokenizer, self._seed = style, style.tokenizer, seed
        self.dropped: list[BadRow] = []
        kept = [self._kept_questions(source, questions) for source, questions in sources]
        if self.dropped and not drop_bad:
            raise BadDataError(
                self.dropped, advice="raise seq_len, or go on without them with --drop-bad"
            )
        for (source, questions), indices in zip(sources, kept):
            if words := kept_order([questions[i] for i in indices]):
                say(f"{source.name}: {words}")
        self._order = document_order(
            kept, [source.weight for source, _ in sources], seed=seed, epochs=None, shuffle=True
        )
        self._identity = {
            "sources": [
                f"{s.name} ({len(indices)} questions, weight {s.weight})"
                for (s, _), indices in zip(sources, kept)
            ],
            "rollouts": settings.in_force(form),
            "batch_size": batch_size,
            "seq_len": seq_len,
            "loss_positions": self.loss_positions,
            "seed": seed,
            "route": language_unit,
            "tokenizer": style.tokenizer.digest,
            **({"style": style.digest} if style.digest else {}),
            "content": [content_digest(questions) for questions in self._questions],
        }
        self._rollout = 0  # batches sampled so far
        self._next = 0  # place in the order
        self._update = 0  # updates made with the batch in hand
        self._in_hand: tuple[Batch, dict[str, float]] | None = None
        self._placed = self._slots = 0
        self._letters: list[list[int]] = []  # of the last batches, how often each was chosen
        self._warned = self._warned_of_gap = False

    def next(self, params: Params, actor: Actor) -> tuple[Batch, dict[str, float]]:
        """Returns the next batch and its metrics, sampling only once in `updates_per_batch` calls.

        The batch has what PackedRows.arrays has and, for grpo, advantages, behaviour_nats and (with a reference)
        reference_nats, [B, M] float32.

        Raises: NothingToLearn, leaving this as it was, when groups are dead again and again, or all answers are one letter.
        """
        if self._in_hand is None:
            self._in_hand = self._sample_batch(params, actor)
        batch, metrics = self._in_hand
        self._update += 1
        if self._update == self.settings.updates_per_batch:
            self._in_hand, self._update = None, 0
        self._placed += int((batch["segment_ids"] > 0).sum())
        self._slots += self.batch_size * self.seq_len
        return batch, metrics

    @property
    def packing_efficiency(self) -> float:
        """Share of the tokens handed out by this object so far that are not padding."""
        return self._placed / self._slots if self._slots else math.nan

    def get_state(self) -> dict[str, Any]:
        """Returns where the source stands, as JSON; a batch that has updates to come is in it."""
        in_hand = None
        if self._in_hand is not None:
            in_hand = {
                "batch": {name: array_to_json(array) for name, array in self._in_hand[0].items()},
                "watched": self._in_hand[1],
            }
        return {
            "rollout": self._rollout,
            "next": self._next,
            "update": self._update,
            "in_hand": in_hand,
            **({"letters": self._letters} if self._letters else {}),
            "settings": self._identity,
            "format": CURSOR_FORMAT,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to where `state` stood. Raises: ValueError, naming what differs, if it is the state of another source."""
        check_cursor(upgraded_cursor(state), self._identity)
        self._rollout, self._next, self._update = state["rollout"], state["next"], state["update"]
        self._in_hand, self._letters = None, state.get("letters", [])
        if held := state["in_hand"]:
            self._in_hand = (
                {name: array_from_json(value) for name, value in held["batch"].items()},
                held["watched"],
            )

    def _sample_batch(self, params: Params, actor: Actor) -> tuple[Batch, dict[str, float]]:
        settings = self.settings
        seen: list[Group] = []
        for empty in range(1, settings.patience + 1):
            tried = len(seen)
            rows, refills = self._fill(params, actor, seen)
            if rows:
                break
            metrics = rollout_metrics(seen[tried:], self._learning, n_rows=0, refills=refills)
            say(
                f"ALARM: all {len(seen) - tried} groups of a batch are dead (reward {metrics['rollout/reward']:.3f}, right "
                f"{metrics['rollout/right']:.0%}, unparsed {metrics['rollout/unparsed']:.0%}), {empty} of {settings.patience} "
                "times"
            )
        else:
            raise NothingToLearn(explain(seen, self._learning, self._reward.form))
        letters = watch_letters(self._letters, seen, settings)
        if len(rows) * 2 < self.batch_size and not self._warned:
            self._warned = True
            few = f"only {len(rows)} of {self.batch_size} rows teach anything"
            say(f"ALARM: {few} after {refills} refills; said once")
        batch = self.arrays([(group, sample) for group, sample, _ in rows])
        gap: dict[str, float] = {}
        if self._learning.has_policy_loss:
            advantages = np.zeros((self.batch_size, 1), np.float32)
            advantages[: len(rows), 0] = [advantage for *_, advantage in rows]
            batch["advantages"] = advantages * (batch["loss_weights"] > 0)
            batch["behaviour_nats"] = actor.nats(params, batch)
            batch["importance"], gap = importance(
                batch, [sample for _, sample, _ in rows], settings.importance_cap
            )
            if (words := gap_alarm(gap)) and not self._warned_of_gap:
                self._warned_of_gap = True
                say(words)
            if actor.has_reference:
                batch["reference_nats"] = actor.reference_nats(batch)
        self._rollout, self._next = self._rollout + 1, self._next + len(seen)
        self._letters = letters
        return batch, rollout_metrics(seen, self._learning, n_rows=len(rows), refills=refills) | gap

    def _fill(
        self, params: Params, actor: Actor, seen: list[Group]
    ) -> tuple[list[tuple[Group, Sample, float]], int]:
        """Returns up to B (group, sample, advantage) of groups that are alive, and the refills it took; adds to `seen`."""
        rows: list[tuple[Group, Sample, float]] = []
        for refill in range(self.settings.max_refills + 1):  # noqa: B007  (of the last turn)
            n_groups = -(-(self.batch_size - len(rows)) // self.settings.group_size)
            groups = self._ask(params, actor, first=len(seen), n_groups=n_groups)
            seen += groups
            rows += [row for group in groups for row in taught(group, self._learning)]
            if len(rows) >= self.batch_size:
                break
        return rows[: self.batch_size], refill

    def _ask(self, params: Params, actor: Actor, *, first: int, n_groups: int) -> list[Group]:
        """Returns the groups number `first` and on of this rollout, all decoded together."""
        settings, asked = self.settings, []
        for number in range(first, first + n_groups):
            source, index = self._order[self._next + number]
            asked.append(self._posed(self._questions[source][index], number))
        size = settings.group_size
        samples = actor.sample(
            params,
            [prompt for _, prompt in asked for _ in range(size)],
            [self._draw_seed(first + i, sample) for i in range(n_groups) for sample in range(size)],
            [LANGUAGE_IDS[question.language] for question, _ in asked for _ in range(size)],
        )
        groups = []
        for i, (question, prompt) in enumerate(asked):
            own = samples[i * size : (i + 1) * size]
            groups.append(
                Group(question, prompt, own, [self._earned(question, one) for one in own])
            )
        return groups

    def _earned(self, question: Question, sample: Sample) -> Earned:
        n_tokens, is_finished = len(sample.tokens), sample.is_finished
        return self._reward.score(sample.text, question, n_tokens=n_tokens, is_finished=is_finished)

    def _posed(self, question: Question, number: int) -> tuple[Question, list[int]]:
        """Returns the question with its options shuffled for this visit, and its prompt; unshuffled if that has no room."""
        rng = np.random.default_rng((self._seed, self._rollout, number))
        shuffled = shuffle_options(question, rng)
        prompt = self._prompt(shuffled)
        return (
            (shuffled, prompt) if len(prompt) <= self._room else (question, self._prompt(question))
        )

    def _draw_seed(self, group: int, sample: int) -> int:
        return int(
            np.random.SeedSequence((self._seed, self._rollout, group, sample)).generate_state(1)[0]
        )

    def _prompt(self, question: Question) -> list[int]:
        return self._style.prompt(reasoning_prompt(question))

    @property
    def _room(self) -> int:
        return self.seq_len - self.settings.max_new_tokens

    def _kept_questions(self, source: Source, questions: Sequence[Question]) -> list[int]:
        """Returns the indices of the questions with room for an answer, noting the others in `dropped`."""
        lengths = [len(self._prompt(question)) for question in questions]
        too_many = f"with max_new_tokens more than seq_len {self.seq_len}"
        long = [
            BadRow(source.name, i + 1, f"{questions[i].id} has {n} tokens, {too_many}")
            for i, n in enumerate(lengths)
            if n > self._room
        ]
        self.dropped += long
        if len(long) == len(questions):
            raise BadDataError(
                long, advice=f"source {source.name!r} has {len(questions)} questions and none fits"
            )
        return [i for i, n in enumerate(lengths) if n <= self._room]

    def arrays(self, rows: Sequence[tuple[Group, Sample]]) -> Batch:
        """Returns the samples as a batch of this one's shape, rows that are missing empty."""
        empty = [
            PackedRows(
                batch_size=1,
                seq_len=self.seq_len,
                loss_positions=self.loss_positions,
                bos_id=self._tokenizer.bos_id,
                pad_id=self._tokenizer.pad_id,
            )
            for _ in range(self.batch_size)
        ]
        return fill_rows(empty, rows, self._tokenizer, language_unit=self.language_unit)
