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
from typing import Annotated

from medkor_jax.adapt.expansion import ExpansionSettings
from medkor_jax.adapt.language import LanguageSettings
from medkor_jax.adapt.lora import LoraSettings
from medkor_jax.data.language import check_route
from medkor_jax.data.reasoning import ReasoningFormat
from medkor_jax.data.rows import Source
from medkor_jax.eval.exam import MAX_REASONING_TOKENS
from medkor_jax.eval.gate import Gate
from medkor_jax.eval.scores import MODES
from medkor_jax.model.dtypes import check_dtype
from medkor_jax.model.kernel import check_attention
from medkor_jax.model.remat import check_remat
from medkor_jax.nearest import nearest
from medkor_jax.parallel.mesh import MeshShape
from medkor_jax.train.compute import ComputeSettings
from medkor_jax.train.stage import Stage


class ConfigError(ValueError):
    """The config cannot be run as it stands; the message says which key and what to write."""


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
    lora: LoraSettings = LoraSettings(rank=0)
    remedy_lora: LoraSettings = LoraSettings(rank=0)
    language: LanguageSettings = LanguageSettings()
    expand: ExpansionSettings = ExpansionSettings()
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
        if self.gate.on_failure == "retain" and not self.remedy.retention.is_on:
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
    dtype: str = ComputeSettings.dtype
    param_dtype: str = "bfloat16"
    remat: Annotated[str, check_remat] = ComputeSettings.remat
    attention: Annotated[str, check_attention] = ComputeSettings.attention
    chunk: Annotated[int, ">= 1"] = ComputeSettings.chunk
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
            check_dtype(getattr(self, name), name)
        check_route(self.route)
        names = [phase.name for phase in self.phases]
        if not self.run:
            raise ValueError("run is empty: name the phases to run")
        for name in self.run:
            if name not in names:
                raise ValueError(f"run names {name!r}, which is not defined; nearest: {nearest(name, names) or 'none'!r}")
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
    def compute(self) -> ComputeSettings:
        return ComputeSettings(self.dtype, self.remat, self.attention, self.chunk)

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
