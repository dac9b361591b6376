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
import functools
from typing import Annotated

from medkor_jax.adapt.expansion import ExpansionSettings
from medkor_jax.adapt.language import LanguageSettings
from medkor_jax.adapt.lora import LoraSettings
from medkor_jax.data.language import check_language_unit
from medkor_jax.data.reasoning import ReasoningFormat
from medkor_jax.data.rows import Source
from medkor_jax.data.style import AUTO, check_style
from medkor_jax.data.thinking import check_thinking
from medkor_jax.eval.exam import MAX_REASONING_TOKENS
from medkor_jax.eval.gate import Gate
from medkor_jax.eval.scores import MODES
from medkor_jax.model.dtypes import check_dtype, check_param_dtype
from medkor_jax.model.kernel import check_attention
from medkor_jax.model.remat import check_remat
from medkor_jax.nearest import nearest
from medkor_jax.parallel.mesh import MeshShape
from medkor_jax.run.candidates import candidates_of, configured_name, with_on_demand
from medkor_jax.train.compute import ComputeSettings
from medkor_jax.train.stage import Stage


class ConfigError(ValueError):
    """The config cannot be run as it stands; the message says which key and what to write."""


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
    max_thinking_tokens: Annotated[int, ">= 0"] = 0
    """Longest thought before the answer, in tokens of its own; a longer one is wrong. 0: not asked to think. For "reason" and
    "harness" in chat style, of models that think if the system text says so (MedGemma 27B, 1.5)."""
    phases: tuple[str, ...] = ()
    """Phases to whose models it is put. (): to all; one that generates is expensive."""

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"exam mode is {self.mode!r}; expected {' or '.join(MODES)}")
        check_thinking(self.max_thinking_tokens, self.mode)
        if self.mode == "reason" and self.shots:
            raise ValueError(
                f"exam {self.source.name!r} asks for {self.shots} shots; reason mode is asked without any: set shots to 0"
            )
        if self.shots and self.fewshot is None:
            raise ValueError(
                f"exam {self.source.name!r} asks for {self.shots} shots and names no fewshot source"
            )
        if self.source.kind != "exam":
            raise ValueError(
                f"exam source {self.source.name!r} is of kind {self.source.kind!r}; expected 'exam'"
            )


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
    """Phases or weights put to the gate in the order given, the smallest first; the first that opens
    it is taken, and those behind it are never opened. "phase0 on google/medgemma-27b-text-it": these
    weights through phase0, which is run on them when it comes to them. Compared with nothing but a
    number, so the gate is absolute. (): `after` alone."""
    lora: LoraSettings = LoraSettings(rank=0)
    """The adapter that this phase adds before it trains; a model that has one already must have the
    same."""
    remedy_lora: LoraSettings = LoraSettings(rank=0)
    """The adapter that the remedy adds before it trains, where the phase has added none."""
    language: LanguageSettings = LanguageSettings()
    """The language embeddings that this phase adds, unless the model has them."""
    expand: ExpansionSettings = ExpansionSettings()
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
            raise ValueError(
                f"gate.on_failure is {self.gate.on_failure!r} but remedy.steps is 0: nothing would follow"
            )
        if self.gate.on_failure == "retain" and not self.remedy.retention.is_on:
            raise ValueError(
                "gate.on_failure is 'retain' but remedy.retention.weight is 0: nothing would be retained"
            )
        self.language.check_source(self.train.steps, is_rewarded=self.train.reward.is_on)
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
    held_out: tuple[Source, ...] = ()
    """Texts that nothing trains on, whose loss is measured before and after every phase."""
    held_out_tokens: Annotated[int, ">= 0"] = 65536
    """Tokens at the head of each of them that the loss is taken over. 0: all."""
    max_translation_tokens: Annotated[int, ">= 1"] = 256
    """Longest translation of a held-out pair, in tokens."""
    dtype: str = ComputeSettings.dtype
    """What activations are computed in: "bfloat16" or "float32"; softmax, norms, loss and optimizer
    state are float32 in any case."""
    param_dtype: str = "bfloat16"
    """What frozen weights are held in: "bfloat16", "float32" or "int8" (QLoRA: the layers' matrices with a
    scale a channel, half the memory; a merge and an export are of the full-precision weights)."""
    remat: Annotated[str, check_remat] = ComputeSettings.remat
    """What the backward pass makes again to save memory: "none", "gate_up", "all_but_down" or
    "full", from most memory to least (`model.remat`). Changes results by rounding alone."""
    attention: Annotated[str, check_attention] = ComputeSettings.attention
    """Which attention kernel: "auto", "plain", "blocked" or "splash" (`model.kernel`). Changes
    results by rounding alone."""
    chunk: Annotated[int, ">= 1"] = ComputeSettings.chunk
    """Positions whose logits exist at once. Fewer save memory; changes results by rounding
    alone."""
    language_unit: str = "token"
    """What a language embedding is chosen by: "token" (each token's own language) or "document"."""
    mesh: MeshShape = MeshShape()
    """How devices share the work."""
    topology: str = ""
    """Machine that these choices are for, such as "v5e:4x4"; `medkor plan` takes it where it is
    given none, nothing else reads it. "": none."""
    style: Annotated[str, check_style] = AUTO
    """Form in which the model is taught and asked: "chat" (its checkpoint's template), "plain" (text
    that goes on), or "auto": as the weights were trained before, else "chat" where the checkpoint
    has a template and was instruction-tuned, else "plain"."""
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
        check_dtype(self.dtype)
        check_param_dtype(self.param_dtype)
        check_language_unit(self.language_unit)
        names = [phase.name for phase in self.phases]
        if not self.run:
            raise ValueError("run is empty: name the phases to run")
        for name in self.run:
            if name not in names:
                raise ValueError(
                    f"run names {name!r}, which is not defined; nearest: {nearest(name, names) or 'none'!r}"
                )
        if list(self.run) != [name for name in names if name in self.run]:
            raise ValueError(
                f"run names {', '.join(self.run)}: each phase once, in the order {', '.join(names)}"
            )
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
                raise ValueError(
                    f"phase {phase.name!r} is judged by exam {phase.exam!r}; exams of this phase: {', '.join(exams)}"
                )
        repeated = {exam.source.name for exam in self.exams} & {
            exam.source.name for exam in self.final
        }
        if repeated:
            raise ValueError(
                f"final exam {min(repeated)!r} bears the name of an exam; a final exam has a name and questions of its own"
            )

    def reference_of(self, phase: Phase) -> Phase | None:
        """Returns the latest phase before this one that is marked as reference."""
        names = [one.name for one in self.phases]
        before = self.phases[: names.index(configured_name(phase.name, self.phases))]
        return next((earlier for earlier in reversed(before) if earlier.is_reference), None)

    def upstream_of(self, phase: Phase) -> tuple[str, ...]:
        """Returns what the phase may start from: phases of this run, and weights from outside it, by name. What is behind the
        first is opened only if the one before it did not pass."""
        names = tuple(candidate.name for candidate in candidates_of(phase, self.phases))
        return names or (phase.after or self.weights,)

    @functools.cached_property
    def all_phases(self) -> tuple[Phase, ...]:
        """The phases, with those that only a candidate brings (`candidates.on_demand_of`)."""
        return with_on_demand(self.phases)

    @property
    def compute(self) -> ComputeSettings:
        return ComputeSettings(self.dtype, self.remat, self.attention, self.chunk)

    @property
    def outside_weights(self) -> tuple[str, ...]:
        """The weights from outside the run that a phase starts from for certain: candidates behind the first may never be opened."""
        brought = {one.name: one.after for one in self.all_phases if one not in self.phases}
        first = [self.upstream_of(phase)[0] for phase in self.phases]
        found = dict.fromkeys(brought.get(name, name) for name in first)
        return tuple(name for name in found if name not in [phase.name for phase in self.phases])

    @property
    def in_force(self) -> tuple[Phase, ...]:
        return tuple(phase for phase in self.phases if phase.name in self.run)

    def exams_of(self, phase: Phase) -> tuple[Exam, ...]:
        """Returns the exams that are put to the model of this phase."""
        name = configured_name(phase.name, self.phases)
        return tuple(exam for exam in self.exams if not exam.phases or name in exam.phases)

    def exam(self, name: str) -> Exam:
        return next(exam for exam in (*self.exams, *self.final) if exam.source.name == name)
