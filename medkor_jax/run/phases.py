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
    """Columns of A and rows of B, R. 0: this phase adds no adapter."""
    alpha: Annotated[float, "> 0"] = 32.0
    """Strength: what an adapter adds is multiplied by alpha / rank."""
    targets: tuple[str, ...] = ("q", "k", "v", "o", "gate", "up", "down")
    """Which matrices of every layer are adapted: q, k, v, o (attention), gate, up, down
    (feed-forward)."""

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
    """"vector": one vector a language; "table": one row a token and language. "": this phase adds
    none."""

    def __post_init__(self) -> None:
        if self.kind and self.kind not in KINDS:
            raise ValueError(f"language kind is {self.kind!r}; expected {', '.join(KINDS)}, or '' for none")


@dataclasses.dataclass(frozen=True)
class ExpandRecipe:
    """front, back: how many layers this phase adds at each end (both 0: none); init: see `adapt.expansion`."""

    front: Annotated[int, ">= 0"] = 0
    """Layers added before the first, copies of it."""
    back: Annotated[int, ">= 0"] = 0
    """Layers added behind the last, copies of it."""
    init: str = "identity"
    """"identity": the copies change nothing until they have learnt; "copy": they double their
    source at once."""

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
    """"grpo": answers that earn more than others to their question become likelier; "rft": those
    that earn all there is to earn are imitated. "": the stage learns from documents, and nothing
    else here is read."""
    group_size: Annotated[int, ">= 1"] = 8
    """Answers drawn of each question; grpo compares them, so it needs at least 2."""
    temperature: Annotated[float, "> 0"] = 1.0
    """Of the sampling, and of the probabilities that the policy loss reads."""
    max_new_tokens: Annotated[int, ">= 1"] = 128
    """Longest answer, in tokens; one that is cut off there earns nothing."""
    answer: Annotated[float, ">= 0"] = 1.0
    """What the key's letter earns."""
    letter: Annotated[float, ">= 0"] = 0.1
    """What a text earns that ends in exactly one of the question's letters."""
    format: Annotated[float, ">= 0"] = 0.2
    """What reasoning between the two tags earns."""
    length_penalty: Annotated[float, ">= 0"] = 0.0
    """What an answer of more than max_reasoning_tokens loses, little by little up to twice as many.
    0: nothing."""
    max_reasoning_tokens: Annotated[int, ">= 0"] = 0
    """Tokens above which length_penalty begins. 0: never."""
    clip_low: Annotated[float, "> 0", "< 1"] = 0.2
    """How far below 1 the ratio of new to old probability still pushes a token."""
    clip_high: Annotated[float, "> 0"] = 0.28
    """How far above 1 it does."""
    kl_weight: Annotated[float, ">= 0"] = 0.0
    """Weight of KL(policy || reference), in nats a token; the reference is the model at the start
    of the stage. 0: none."""
    std_normalised: bool = True
    """grpo: advantages are divided by the spread of rewards in their group (Dr. GRPO does not)."""
    updates_per_batch: Annotated[int, ">= 1"] = 1
    """Optimizer updates on one batch of answers."""
    max_refills: Annotated[int, ">= 0"] = 4
    """How often other questions are asked in place of groups that teach nothing, a batch. 0: rows
    stay empty."""
    patience: Annotated[int, ">= 1"] = 3
    """After how many batches in a row that stayed empty through all refills the stage gives up."""
    importance_cap: Annotated[float, ">= 0"] = 2.0
    """grpo: the most that a token counts whose sampler was less sure of it (`policy`, departure 8).
    0: all count 1."""

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
    """The settings of one stretch of training."""

    steps: Annotated[int, ">= 0"] = 0
    """Updates of the weights that train. 0: this stage does not train."""
    trees: tuple[str, ...] = ()
    """What trains, of lora, lang and expand; all else is frozen."""
    data: tuple[Source, ...] = ()
    """What it learns from; drawn by weight."""
    batch_size: Annotated[int, ">= 1"] = 16
    """Rows of the global batch, over all devices and microbatches."""
    seq_len: Annotated[int, ">= 4"] = 1024
    """Tokens a row; short documents share one."""
    microbatches: Annotated[int, ">= 1"] = 1
    """Parts a batch is cut into, one after the other, to save memory; changes no result beyond
    rounding."""
    loss_positions: Annotated[int, ">= 0"] = 0
    """Predicted positions a row at most. 0: derived from the data."""
    groups: tuple[Group, ...] = (
        Group("lora", "lora/.*", 2e-4),
        Group("lang", "lang/.*", 1e-3),
        Group("expand", "expand/.*", 1e-4),
    )
    """Who learns how fast, and by which optimizer; rules of trees that do not train here are not
    read."""
    warmup_steps: Annotated[int, ">= 0"] = 20
    """Steps in which the learning rates rise to their full height. 0: they begin there."""
    final_share: Annotated[float, ">= 0", "<= 1"] = 0.1
    """Share of the full learning rates that is left at the last step; they fall along a cosine."""
    clip_norm: Annotated[float, "> 0"] = 1.0
    """Longest gradient, over all leaves that train together; a longer one is shortened to it."""
    dropout: Annotated[float, ">= 0", "< 1"] = 0.0
    """Share of what goes into the adapters that is left out at random. 0: none."""
    next_token_weight: Annotated[float, ">= 0"] = 1.0
    """Weight of the next-token loss. 0: none. Not read with reward.algorithm "grpo", whose loss
    stands in its place."""
    retention: Retention = Retention()
    """The "each layer" loss, which holds the model to the one that it is compared with."""
    save_every: Annotated[int, ">= 1"] = 200
    """Steps from one checkpoint to the next; the last step and a signal save too."""
    keep_last: Annotated[int, ">= 1"] = 1
    """How many checkpoints stay on disk, beside the best one where validation measures it."""
    validation: tuple[Source, ...] = ()
    """Held-out text whose loss is measured on the way."""
    validate_every: Annotated[int, ">= 0"] = 0
    """Steps from one such measurement to the next. 0: never."""
    take: str = "last"
    """Which checkpoint goes on: "last", or "best" by the loss on `validation`."""
    reward: RewardRecipe = RewardRecipe()
    """Learning from the model's own answers to the questions of `data`; one answer a row."""

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
    """An exam that judges, and how it is asked."""

    source: Source
    """Where the questions come from; its `kind` is "exam" and its `name` the exam's, unless said
    otherwise."""
    mode: str = "letter"
    """How it is asked: "letter" (the likeliest letter), "cloze" (the option whose text is
    likeliest, by its tokens' sum; "cloze_norm": by character), "harness" (text, read as
    `kormedmcqa` of lm-evaluation-harness does) or "reason" (reasoning in tags, then a letter)."""
    shots: Annotated[int, ">= 0"] = 0
    """Solved questions in front of each, from the head of `fewshot`. Reason mode takes none."""
    fewshot: Source | None = None
    """Source of the shots; never an exam's own questions. None: there are no shots."""
    batch_size: Annotated[int, ">= 1"] = 16
    """Questions asked at once, over all devices; decides nothing."""
    max_new_tokens: Annotated[int, ">= 1"] = MAX_REASONING_TOKENS
    """Longest reasoned answer, in tokens; one that is cut off there is wrong. Read in reason mode
    alone."""
    phases: tuple[str, ...] = ()
    """Phases to whose models it is put. (): to all; one that generates is expensive."""

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
    """One phase: what it starts from, adds, trains and is judged by.

    A phase with a gate and no stage is judged as it stands first.
    """

    name: str
    """The name under which the config has the phase, and its directory in the run's."""
    title: str = ""
    """What it is for, in a line; shown, and decides nothing."""
    after: str = ""
    """Phase whose model it starts from. "": the run's `weights`."""
    candidates: tuple[str, ...] = ()
    """Phases or weights put to the gate in order of size; the first that opens it is taken.
    Compared with nothing but a number, so the gate is absolute. (): `after` alone."""
    lora: LoraRecipe = LoraRecipe(rank=0)
    """The adapter that this phase adds before it trains; a model that has one already must have the
    same."""
    remedy_lora: LoraRecipe = LoraRecipe(rank=0)
    """The adapter that the remedy adds before it trains, where the phase has added none."""
    language: LanguageRecipe = LanguageRecipe()
    """The language embeddings that this phase adds, unless the model has them."""
    expand: ExpandRecipe = ExpandRecipe()
    """The layers that this phase adds at each end."""
    train: Stage = Stage()
    """What is trained before the gate is asked. In a config these keys stand beside the phase's
    own."""
    merge: bool = False
    """Whether the trained LoRA is folded into a new base at the end."""
    is_reference: bool = False
    """Whether later gates compare with this phase's model, and "each layer" training holds to
    it."""
    exam: str = ""
    """Name, among `exams`, of the exam that the gate is judged by."""
    gate: Gate = Gate()
    """What must hold before the next phase may start."""
    remedy: Stage = Stage()
    """What is trained while the gate stays closed, at most `gate.rounds` times."""
    translations: tuple[Source, ...] = ()
    """Sentence pairs that nothing trains on, translated both ways before and after; measured, and
    decide nothing."""

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
    """A whole run: a config file, checked.

    `phases` are all that the config defines; `run` names those to run now.
    """

    run_dir: str
    """Directory of the run: records, verdicts, adapters, checkpoints. All hosts must see it."""
    weights: str
    """The model to start from: embedded, a directory, a .gguf file, a hub id, a run, or
    random:PRESET."""
    run: tuple[str, ...]
    """Names of the phases to run now, in order."""
    phases: tuple[Phase, ...]
    """Names of the phases that the config defines, in the order they run; each has its keys under
    its own name (config.phase3). (): those of `run`."""
    exams: tuple[Exam, ...]
    """Exams put to the model before and after every phase; a gate is judged by one of them."""
    final: tuple[Exam, ...] = ()
    """Exams put to the last phase's model alone, once, when all is done."""
    watch: tuple[Source, ...] = ()
    """Texts that nothing trains on, whose loss is measured before and after every phase."""
    watch_tokens: Annotated[int, ">= 0"] = 65536
    """Tokens at the head of each of them that the loss is taken over. 0: all."""
    max_translation_tokens: Annotated[int, ">= 1"] = 256
    """Longest translation of a held-out pair, in tokens."""
    dtype: str = "bfloat16"
    """What activations are computed in: "bfloat16" or "float32"; softmax, norms, loss and optimizer
    state are float32 in any case."""
    param_dtype: str = "bfloat16"
    """What frozen weights are held in: "bfloat16" or "float32"."""
    remat: Annotated[str, check_remat] = "gate_up"
    """What the backward pass makes again to save memory: "none", "gate_up", "all_but_down" or
    "full", from most memory to least (`model.remat`). Changes results by rounding alone."""
    attention: Annotated[str, check_attention] = "auto"
    """Which attention kernel: "auto", "plain", "blocked" or "splash" (`model.kernel`). Changes
    results by rounding alone."""
    chunk: Annotated[int, ">= 1"] = 256
    """Positions whose logits exist at once. Fewer save memory; changes results by rounding
    alone."""
    route: str = "token"
    """What a language embedding is chosen by: "token" (each token's own language) or "document"."""
    mesh: MeshShape = MeshShape()
    """How devices share the work."""
    topology: str = ""
    """Machine that these choices are for, such as "v5e:4x4"; `medkor plan` takes it where it is
    given none, nothing else reads it. "": none."""
    reasoning: ReasoningFormat = ReasoningFormat()
    """The tags around reasoning."""
    seed: Annotated[int, ">= 0"] = 0
    """Of everything drawn at random."""
    allow_leaks: tuple[str, ...] = ()
    """Leaks that you know of and accept, by the key they are printed with."""
    drop_bad: bool = False
    """Whether to go on without rows that cannot be read; they are listed."""
    log_every: Annotated[int, ">= 1"] = 10
    """Steps from one line of metrics to the next."""

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
