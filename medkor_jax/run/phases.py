"""The phases as data: what a config file says, as frozen dataclasses.

    recipe = load_recipe("configs/pipeline.py")         # config_file: the ConfigDict stops there
    recipe.phases[3].gate.reading

Every phase is the same engine with another `Phase`: which trees it adds, what its training stage reads and
trains, which gate must open, and which remedy stage follows while it stays closed. Checks that need no
files and no devices happen while building, so a wrong config fails in a second. A number says beside its type what
it may be ("> 0"), a name the function that checks it; `config_file` holds a config to both.
"""

from __future__ import annotations

import dataclasses
import difflib
from typing import Annotated

from medkor_jax.adapt.expansion import check_expansion
from medkor_jax.adapt.language import KINDS
from medkor_jax.adapt.lora import check_targets
from medkor_jax.data.packing import ROUTES
from medkor_jax.data.reasoning import ReasoningFormat
from medkor_jax.data.rows import Source
from medkor_jax.data.sources import OF_QUESTIONS
from medkor_jax.eval.exam import MAX_REASONING_TOKENS
from medkor_jax.eval.gate import Gate
from medkor_jax.eval.scores import MODES
from medkor_jax.model.kernel import check_attention
from medkor_jax.model.remat import check_remat
from medkor_jax.parallel.mesh import MeshShape
from medkor_jax.run.gate_rules import check_gate
from medkor_jax.train.groups import RolloutSettings
from medkor_jax.train.policy import PolicyLoss
from medkor_jax.train.retention import Retention
from medkor_jax.train.rewards import Reward
from medkor_jax.train.trainable import TRAINABLE_TREES, Group


class ConfigError(ValueError):
    """The config cannot be run as it stands; the message says which key and what to write."""


@dataclasses.dataclass(frozen=True)
class LoraRecipe:
    """rank 0: this phase adds no adapter. Applied as alpha / rank * A @ B."""

    rank: Annotated[int, ">= 0"] = 16
    alpha: Annotated[float, "> 0"] = 32.0
    targets: tuple[str, ...] = ("q", "k", "v", "o", "gate", "up", "down")

    def __post_init__(self) -> None:
        if self.rank:
            check_targets(self.targets, self.rank)

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


@dataclasses.dataclass(frozen=True)
class LanguageRecipe:
    """kind "": this phase adds no language embeddings."""

    kind: str = ""

    def __post_init__(self) -> None:
        if self.kind and self.kind not in KINDS:
            raise ValueError(f"language kind is {self.kind!r}; expected {', '.join(KINDS)}, or '' for none")


@dataclasses.dataclass(frozen=True)
class ExpandRecipe:
    """front, back: how many layers this phase adds at each end (both 0: none); init: see `adapt.expansion`."""

    front: Annotated[int, ">= 0"] = 0
    back: Annotated[int, ">= 0"] = 0
    init: str = "identity"

    def __post_init__(self) -> None:
        if self.front or self.back:
            check_expansion(self.front, self.back, self.init)


@dataclasses.dataclass(frozen=True)
class RewardRecipe:
    """algorithm "": the stage learns from documents; "grpo" or "rft": from its own answers to the questions of its data.

    answer, letter, format, length_penalty, max_reasoning_tokens: what an answer earns, see `train.rewards.Reward`.
    The rest: see `train.groups.RolloutSettings` and, for grpo alone (clip,
    kl_weight, std_normalised), `train.policy`.
    """

    algorithm: str = ""
    group_size: Annotated[int, ">= 1"] = 8
    temperature: Annotated[float, "> 0"] = 1.0
    max_new_tokens: Annotated[int, ">= 1"] = 128
    answer: Annotated[float, ">= 0"] = 1.0
    letter: Annotated[float, ">= 0"] = 0.1
    format: Annotated[float, ">= 0"] = 0.2
    length_penalty: Annotated[float, ">= 0"] = 0.0
    max_reasoning_tokens: Annotated[int, ">= 0"] = 0
    clip_low: Annotated[float, "> 0", "< 1"] = 0.2
    clip_high: Annotated[float, "> 0"] = 0.28
    kl_weight: Annotated[float, ">= 0"] = 0.0
    std_normalised: bool = True
    updates_per_batch: Annotated[int, ">= 1"] = 1
    max_refills: Annotated[int, ">= 0"] = 4
    patience: Annotated[int, ">= 1"] = 3
    importance_cap: Annotated[float, ">= 0"] = 2.0

    def __post_init__(self) -> None:
        self.rollout(), self.policy()  # they check themselves

    def rollout(self, form: ReasoningFormat = ReasoningFormat()) -> RolloutSettings | None:
        if not self.algorithm:
            return None
        reward = Reward(self.answer, self.letter, self.format, self.length_penalty, self.max_reasoning_tokens)
        return RolloutSettings(
            algorithm=self.algorithm, group_size=self.group_size, temperature=self.temperature,
            max_new_tokens=self.max_new_tokens, reward=reward, form=form,
            std_normalised=self.std_normalised, updates_per_batch=self.updates_per_batch, max_refills=self.max_refills,
            patience=self.patience, importance_cap=self.importance_cap,
        )  # fmt: skip

    def policy(self) -> PolicyLoss | None:
        if self.algorithm != "grpo":
            return None
        return PolicyLoss(self.clip_low, self.clip_high, self.kl_weight, self.temperature)


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stretch of training. steps 0: not trained at all.

    batch_size: rows of the global batch, over all devices and microbatches; seq_len: tokens a row.
    loss_positions: predicted positions a row at most; 0 derives it from the data.
    validation: held-out text whose loss is measured every `validate_every` steps (0: never);
    take: which checkpoint goes on, "last" or "best" by that loss.
    reward: learn from the model's own answers to the questions of `data`; one answer a row.
    """

    steps: Annotated[int, ">= 0"] = 0
    trees: tuple[str, ...] = ()
    data: tuple[Source, ...] = ()
    batch_size: Annotated[int, ">= 1"] = 16
    seq_len: Annotated[int, ">= 4"] = 1024
    microbatches: Annotated[int, ">= 1"] = 1
    loss_positions: Annotated[int, ">= 0"] = 0
    groups: tuple[Group, ...] = (
        Group("lora", "lora/.*", 2e-4),
        Group("lang", "lang/.*", 1e-3),
        Group("expand", "expand/.*", 1e-4),
    )
    warmup_steps: Annotated[int, ">= 0"] = 20
    final_share: Annotated[float, ">= 0", "<= 1"] = 0.1
    clip_norm: Annotated[float, "> 0"] = 1.0
    dropout: Annotated[float, ">= 0", "< 1"] = 0.0
    next_token_weight: Annotated[float, ">= 0"] = 1.0
    retention: Retention = Retention()
    save_every: Annotated[int, ">= 1"] = 200
    keep_last: Annotated[int, ">= 1"] = 1
    validation: tuple[Source, ...] = ()
    validate_every: Annotated[int, ">= 0"] = 0
    take: str = "last"
    reward: RewardRecipe = RewardRecipe()

    def __post_init__(self) -> None:
        if self.steps and not self.trees:
            raise ValueError(f"trees names nothing to train; choose from {', '.join(TRAINABLE_TREES)}, or set steps to 0")
        if self.steps and not self.data:
            raise ValueError("data names no source to train on; give one, or set steps to 0")
        for tree in self.trees:
            if tree not in TRAINABLE_TREES:
                raise ValueError(f"trees holds {tree!r}; choose from {', '.join(TRAINABLE_TREES)}")
        if self.steps and not (self.next_token_weight or self.retention.weight or self.reward.algorithm):
            raise ValueError("next_token_weight and retention.weight are both 0 and there is no reward: nothing would be learnt")
        if self.take not in ("last", "best"):
            raise ValueError(f"take is {self.take!r}; expected 'last' or 'best'")
        if self.take == "best" and not (self.validate_every and self.validation):
            raise ValueError("take='best' needs validation sources and validate_every above 0")
        if self.steps and (rollout := self.reward.rollout()):
            rollout.check_shape(self.batch_size, self.seq_len, self.loss_positions)
            if wrong := [source for source in self.data if source.kind not in OF_QUESTIONS]:
                raise ValueError(
                    f"reward.algorithm is {self.reward.algorithm!r} and data source {wrong[0].name!r} of kind "
                    f"{wrong[0].kind!r}; only questions can be answered: give sources of kind {' or '.join(OF_QUESTIONS)}"
                )
            if self.dropout and self.reward.policy():
                raise ValueError(f"dropout is {self.dropout} and reward.algorithm 'grpo'; what sampled must be what learns: 0")

    def groups_in_force(self) -> tuple[Group, ...]:
        """The optimizer rules of the trees that train here."""
        return tuple(group for group in self.groups if group.pattern.split("/")[0] in self.trees)


@dataclasses.dataclass(frozen=True)
class Exam:
    """An exam that judges. shots are taken from the head of `fewshot`; max_new_tokens is read in reason mode only.

    phases: where it is put to the model (empty: in all); one that generates is dear.
    """

    source: Source
    mode: str = "letter"
    shots: Annotated[int, ">= 0"] = 0
    fewshot: Source | None = None
    batch_size: Annotated[int, ">= 1"] = 16
    max_new_tokens: Annotated[int, ">= 1"] = MAX_REASONING_TOKENS
    phases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"exam mode is {self.mode!r}; expected {' or '.join(MODES)}")
        if self.mode == "reason" and self.shots:
            raise ValueError(f"exam {self.source.name!r} asks for {self.shots} shots; reason mode is asked without any: set shots to 0")
        if self.shots and self.fewshot is None:
            raise ValueError(f"exam {self.source.name!r} asks for {self.shots} shots and names no fewshot source")
        if self.source.kind != "exam":
            raise ValueError(f"exam source {self.source.name!r} is of kind {self.source.kind!r}; expected 'exam'")


@dataclasses.dataclass(frozen=True)
class Phase:
    """after: the phase whose model this one starts from ("": the weights).

    candidates: weights (or phases) to put to the gate in order of size; the first that opens it is taken. They are
    compared with nothing but a number, so the gate is absolute.
    merge: fold the trained LoRA into a new base at the end. is_reference: later gates compare with this
    phase's model, and retention holds to it. exam: the name, in `exams`, that the gate is judged by.
    remedy: trained while the gate stays closed, at most gate.rounds times. A phase with a gate but no
    stages is judged as it stands first. translations: held-out pairs, translated before and after.
    """

    name: str
    title: str = ""
    after: str = ""
    candidates: tuple[str, ...] = ()
    lora: LoraRecipe = LoraRecipe(rank=0)
    remedy_lora: LoraRecipe = LoraRecipe(rank=0)
    language: LanguageRecipe = LanguageRecipe()
    expand: ExpandRecipe = ExpandRecipe()
    train: Stage = Stage()
    merge: bool = False
    is_reference: bool = False
    exam: str = ""
    gate: Gate = Gate()
    remedy: Stage = Stage()
    translations: tuple[Source, ...] = ()

    def __post_init__(self) -> None:
        if self.gate.on_failure in ("retain", "train") and not self.remedy.steps:
            raise ValueError(f"gate.on_failure is {self.gate.on_failure!r} but remedy.steps is 0: nothing would follow")
        if self.gate.on_failure == "retain" and self.remedy.retention.weight <= 0:
            raise ValueError("gate.on_failure is 'retain' but remedy.retention.weight is 0: nothing would be retained")
        if self.merge and not self.lora.rank:
            raise ValueError("merge=True but lora.rank is 0: there would be nothing to merge")

    @property
    def looks(self) -> int:
        """How often the gate's questions may be looked at: by every candidate, and after every round of the remedy."""
        return max(1, len(self.candidates)) - 1 + self.gate.looks

    @property
    def chooses(self) -> bool:
        """Whether the gate has a say in which model this phase leaves: one of several, or the first remedied that opened it."""
        return len(self.candidates) > 1 or self.gate.has_remedy

    @property
    def changes_model(self) -> bool:
        return bool(self.train.steps or self.merge)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A whole run. `phases` are all that the config defines; `run` names those to run now, in order.

    exams, watch: measured before and after every phase; a gate is judged by one of the exams. watch holds
    texts that nothing trains on; the loss is taken over the first `watch_tokens` tokens of each (0: all).
    final: exams put to the last phase's model alone, once, when all is done.
    max_translation_tokens: the longest translation written of a held-out pair.
    remat: what the backward pass makes again to save memory, see `model.remat`; chunk: positions whose logits exist at
    once; attention: which kernel, see `model.kernel`; mesh: how devices share the work. None of them changes a result but by rounding.
    topology: the machine that these are chosen for, which `medkor plan` takes if it is given none; nothing else reads it.
    allow_leaks: leaks the user knows of, by their printed key.
    """

    run_dir: str
    weights: str
    run: tuple[str, ...]
    phases: tuple[Phase, ...]
    exams: tuple[Exam, ...]
    final: tuple[Exam, ...] = ()
    watch: tuple[Source, ...] = ()
    watch_tokens: Annotated[int, ">= 0"] = 65536
    max_translation_tokens: Annotated[int, ">= 1"] = 256
    dtype: str = "bfloat16"
    param_dtype: str = "bfloat16"
    remat: Annotated[str, check_remat] = "gate_up"
    attention: Annotated[str, check_attention] = "auto"
    chunk: Annotated[int, ">= 1"] = 256
    route: str = "token"
    mesh: MeshShape = MeshShape()
    topology: str = ""
    reasoning: ReasoningFormat = ReasoningFormat()
    seed: Annotated[int, ">= 0"] = 0
    allow_leaks: tuple[str, ...] = ()
    drop_bad: bool = False
    log_every: Annotated[int, ">= 1"] = 10

    def __post_init__(self) -> None:
        for name in ("dtype", "param_dtype"):
            if getattr(self, name) not in ("float32", "bfloat16"):
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected 'float32' or 'bfloat16' (float16 overflows)")
        if self.route not in ROUTES:
            raise ValueError(f"route is {self.route!r}; expected {' or '.join(ROUTES)}")
        names = [phase.name for phase in self.phases]
        if not self.run:
            raise ValueError("run is empty: name the phases to run")
        for name in self.run:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
                raise ValueError(f"run names {name!r}, which is not defined; nearest: {near[0] if near else 'none'!r}")
        if list(self.run) != [name for name in names if name in self.run]:
            raise ValueError(f"run names {', '.join(self.run)}: each phase once, in the order {', '.join(names)}")
        has_reference = False
        for phase in self.phases:
            if phase.merge and phase.gate.on_failure == "retain" and not has_reference:
                raise ValueError(
                    f"phase {phase.name!r} merges, and its remedy would hold to the model before the merge, which is another base: "
                    "mark an earlier phase as is_reference, or set gate.on_failure to 'train', 'stop' or 'continue'"
                )
            has_reference |= phase.is_reference
            exams = [exam.source.name for exam in self.exams_of(phase)]
            if phase.exam not in exams:
                raise ValueError(f"phase {phase.name!r} is judged by exam {phase.exam!r}; exams of this phase: {', '.join(exams)}")
            check_gate(self, phase)
        repeated = {exam.source.name for exam in self.exams} & {exam.source.name for exam in self.final}
        if repeated:
            raise ValueError(f"final exam {min(repeated)!r} bears the name of an exam; a final exam has a name and questions of its own")

    def reference_of(self, phase: Phase) -> Phase | None:
        """Returns the latest phase before this one that is marked as reference."""
        before = self.phases[: self.phases.index(phase)]
        return next((earlier for earlier in reversed(before) if earlier.is_reference), None)

    def upstream_of(self, phase: Phase) -> tuple[str, ...]:
        """Returns what the phase may start from: phases of this run, and weights from outside it, by name."""
        return phase.candidates or (phase.after or self.weights,)

    @property
    def outside_weights(self) -> tuple[str, ...]:
        """The weights from outside the run that any phase starts from."""
        names = {phase.name for phase in self.phases}
        return tuple(dict.fromkeys(name for phase in self.phases for name in self.upstream_of(phase) if name not in names))

    @property
    def in_force(self) -> tuple[Phase, ...]:
        return tuple(phase for phase in self.phases if phase.name in self.run)

    def exams_of(self, phase: Phase) -> tuple[Exam, ...]:
        """Returns the exams that are put to the model of this phase."""
        return tuple(exam for exam in self.exams if not exam.phases or phase.name in exam.phases)

    def exam(self, name: str) -> Exam:
        return next(exam for exam in (*self.exams, *self.final) if exam.source.name == name)
