"""The whole of a run, one thing at a time: every key of every small class of a recipe, and every file that a run left.

`test_lineage` has the table of what a change of the main classes should do; here each other field of a recipe is changed,
found by walking the recipe itself, and each file of a finished run and of its base is damaged, found by walking the disk.
"""

import dataclasses
import shutil

import jax.numpy as jnp
import pytest

from medkor_jax.eval.verdict import GateClosed
from medkor_jax.io.streaming import WeightsError
from medkor_jax.parallel.mesh import MeshShape, make_mesh
from medkor_jax.run import pipeline
from medkor_jax.run.config_file import make_recipe
from medkor_jax.run.corpora import Corpora
from medkor_jax.run.facts import facts_of
from medkor_jax.run.lineage import Lineage
from medkor_jax.run.named_model import open_model
from medkor_jax.run.roles import ROLES

PAIRS = dict(kind="translation", path="embedded", subset="test", limit=2)
TEXT = dict(kind="text", path="embedded", language="en", subset="train", limit=8)
EXAM = dict(kind="exam", path="embedded", language="en", limit=8)
PARTS = dict(answer=dict(weight=1.0), letter=dict(weight=0.1), length=dict(weight=-0.1, bound=4.0))


def rich_recipe():
    """Every class of a recipe in force somewhere: what is switched off decides nothing."""
    own = dict(lora=dict(weight_decay=0.1), lang=dict(optimizer="sgd", momentum=0.5), expand={})
    rules = {
        tree: dict(pattern=f"{tree}/.*", learning_rate=0.01, **more) for tree, more in own.items()
    }
    stage = dict(steps=2, batch_size=4, seq_len=64, warmup_steps=0, rules=rules)
    condition = dict(metric="probability", threshold=0.5, reading="relative")
    gate = dict(
        metric="probability", threshold=0.5, reading="relative", on_failure="retain", rounds=2,
        requires=dict(korean=dict(exam="korean", **condition), loss=dict(held_out="held", rise_nats=0.5)),
    )  # fmt: skip
    held = dict(retention=dict(weight=0.5, layers=2, positions=4))
    exam = dict(path="embedded", split="valid", limit=40)
    return make_recipe(dict(
        run_dir="never", weights="embedded", run=("phase0", "phase1", "phase2"), dtype="float32", param_dtype="float32",
        exams=dict(
            english=dict(source=exam | dict(language="en"), mode="letter"), korean=dict(source=exam | dict(language="ko"), mode="letter"),
            reasoned=dict(source=exam | dict(language="en"), mode="reason", max_new_tokens=20),
        ),
        held_out=dict(held=dict(kind="text", path="embedded", language="ko", subset="test", limit=4)), held_out_tokens=64,
        phase0=dict(exam="english", gate=dict(on_failure="continue", reading="absolute", threshold=1.0), is_reference=True,
                    lora=dict(rank=2, alpha=4.0, targets=("q", "down")), trees=("lora",), data=dict(text=TEXT),
                    language=dict(kind="tokens", size=9), **stage),
        phase1=dict(after="phase0", exam="english", gate=gate, language=dict(kind="vector"), expand=dict(front=1, back=1),
                    trees=("lora", "lang", "expand"), data=dict(text=TEXT), translations=dict(held=PAIRS), **stage | held,
                    remedy_lora=dict(rank=2, alpha=4.0, targets=("q", "down")),
                    remedy=dict(trees=("lora",), data=dict(text=TEXT), **stage | held)),
        phase2=dict(after="phase1", exam="english", gate=gate | dict(requires={}), trees=("lora", "lang"), data=dict(asked=EXAM),
                    reward=dict(algorithm="grpo", rollout=dict(group_size=4, max_new_tokens=8), policy=dict(kl_weight=0.1), parts=PARTS),
                    **stage | dict(seq_len=256), remedy=dict(trees=("lora",), data=dict(text=TEXT), **stage | held)),
    ))  # fmt: skip


RECIPE = rich_recipe()
WORDS = {  # of a field that takes some words only
    "reading": ("absolute", "relative", "non_inferior"), "metric": ("accuracy", "probability"), "on_failure": ("retain", "train", "stop", "continue"),
    "algorithm": ("grpo", "rft"), "kind": ("vector", "table", "tokens"), "init": ("identity", "duplicate", "copy"), "exam": ("english", "korean", "reasoned"),
    "pattern": ("lora/.*", "lang/.*", "(lora|lang|expand)/.*", "lora/.*a"), "held_out": ("held",), "against": ("start", "reference"), "optimizer": ("adamw", "sgd"), "targets": (("q",), ("q", "k")), "name": (),
    "at": ("each", "last"),
}  # fmt: skip
DECIDES_NOTHING = {
    "MeshShape.data",
    "MeshShape.fsdp",
    "MeshShape.tensor",
    "RolloutSettings.one_letter",
}
NO_OTHER = {  # fields without another valid value in this recipe, and why
    "Condition.name": "a name to print", "Gate.requires": "its conditions are walked one by one", "Condition.held_out": "one text is held out", "OptimizerRule.name": "it is the tree's",
    "RewardPart.name": "another part has its own weight",
    "RewardPart.function": "test_lineage changes what it is",
}  # fmt: skip


def others(name, value):
    """Yields other values for a field."""
    if name in WORDS:
        yield from (word for word in WORDS[name] if word != value)
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (value + 1, value * 2, value - 1, value // 2)
    elif isinstance(value, float):
        yield from (value * 0.5, (value + 1) / 2, value + 1.0)
    elif isinstance(value, str):
        yield value + "x"


def mutants(value):
    """Yields (class and field, the other value's recipe or None) for every field of every class but the main ones."""
    kind = type(value).__name__
    for field in dataclasses.fields(value):
        inner = getattr(value, field.name)
        if dataclasses.is_dataclass(inner):
            yield from (
                (
                    name,
                    make and (lambda f=field.name, m=make: dataclasses.replace(value, **{f: m()})),
                )
                for name, make in mutants(inner)
            )
        elif isinstance(inner, tuple) and inner and dataclasses.is_dataclass(inner[0]):
            for i, one in enumerate(inner):
                yield from ((name, make and (lambda f=field.name, m=make, at=i, all_=inner: dataclasses.replace(
                    value, **{f: (*all_[:at], m(), *all_[at + 1 :])}))) for name, make in mutants(one))  # fmt: skip
        elif kind not in ROLES:
            for other in others(field.name, inner):
                yield (
                    f"{kind}.{field.name}",
                    lambda f=field.name, o=other: dataclasses.replace(value, **{f: o}),
                )
            yield f"{kind}.{field.name}", None  # seen, whether or not it has another value


def facts(recipe):
    corpora = Corpora(False, recipe.reasoning)
    return [
        (dict(f.trained), dict(f.judged))
        for f in (facts_of(recipe, corpora, phase) for phase in recipe.phases)
    ]


def test_every_other_key_of_a_recipe_is_in_what_decides_a_phase():
    before, found = facts(RECIPE), {}
    for name, make in mutants(RECIPE):
        found.setdefault(name, [])
        if make is None or any(found[name]):
            continue
        try:
            recipe = make()
        except ValueError:
            continue  # not valid here; another value may be
        found[name].append(facts(recipe) != before)
    unseen = {name for name, noticed in found.items() if not noticed}
    ignored = {name for name, noticed in found.items() if noticed and not any(noticed)}
    assert unseen == set(NO_OTHER), (
        "give other values in WORDS, or say in NO_OTHER why there is none"
    )
    assert ignored == DECIDES_NOTHING, (
        "these keys are in no record: a change of them would go unnoticed"
    )
    classes = {name.split(".")[0] for name in found}
    assert classes >= {
        "Gate", "Condition", "LoraSettings", "LanguageSettings", "ExpansionSettings", "Retention", "RewardSettings", "RewardPart", "RolloutSettings",
        "PolicyLoss", "OptimizerRule", "ReasoningFormat", "MeshShape",
    }  # fmt: skip


# -- every file of a run --------------------------------------------------------------------------------------------------


def tiny_config(run_dir, weights):
    gate = dict(reading="absolute", threshold=1.0, on_failure="continue", allow_chance=True)
    stage = dict(
        steps=1, batch_size=4, seq_len=64, warmup_steps=0, data=dict(text=TEXT),
        rules=dict(lora=dict(pattern="lora/.*", learning_rate=0.01), lang=dict(pattern="lang/.*", learning_rate=0.01)),
    )  # fmt: skip
    lora = dict(rank=2, alpha=4.0, targets=("q",))
    return dict(
        run_dir=str(run_dir), weights=str(weights), run=("phase0", "phase1"), dtype="float32", param_dtype="float32", remat="none",
        exams=dict(english=dict(source=dict(path="embedded", language="en", split="valid", limit=20), batch_size=8)),
        held_out=dict(held=dict(kind="text", path="embedded", language="en", subset="test", limit=4)), held_out_tokens=64,
        phase0=dict(exam="english", gate=gate, lora=lora, trees=("lora",), merge=True, **stage),
        phase1=dict(exam="english", gate=gate, after="phase0", language=dict(kind="vector"), trees=("lang",), **stage),
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(tiny_base_dir, tmp_path_factory):
    place = tmp_path_factory.mktemp("whole")
    shutil.copytree(tiny_base_dir, place / "base")
    pipeline.Run(make_recipe(tiny_config(place / "run", place / "base"))).all()
    return place


def use(place):
    """What the next phase, an export or an evaluation does with a finished run: every weight is read, every verdict."""
    recipe = make_recipe(tiny_config(place / "run", place / "base"))
    lineage = Lineage(recipe, Corpora(False, recipe.reasoning), place / "run")
    model = lineage.open("phase1")
    model.load(jnp.float32, make_mesh(MeshShape(data=1), pipeline.jax.devices()[:1]))
    assert model.tokenizer.digest and model.base.carried
    return model.digest, open_model(place / "run").digest


# Files in which any change is refused. In the others (orbax's own, those of a stage that has ended, summaries for people) a
# change may be of no account: then the weights that are loaded are, by the digest of their tensors, the same.
HELD = (
    "model.json", "record.json", "verdict.json", "lineage.json", "model_config.json", "tokenizer.json", "carried/*", "tree/d/*", "adapters/d/*",
)  # fmt: skip


def files_of(place):
    return sorted(path.relative_to(place) for path in place.rglob("*") if path.is_file())


def test_every_file_of_a_run_is_noticed_when_it_is_damaged_or_is_not_read(finished, tmp_path):
    good = use(finished)
    wrong, n_refused = [], 0
    for number, name in enumerate(files_of(finished)):
        path = finished / name
        kept = path.read_bytes()
        is_held = any(name.match(pattern) for pattern in HELD) and not (
            name.parts[0] == "base" and name.match("carried/*")
        )
        for damage in (
            ("one bit", "cut", "gone") if is_held else (("one bit", "cut", "gone")[number % 3],)
        ):
            at = len(kept) // 2
            if damage == "gone":
                path.unlink()
            else:
                path.write_bytes(
                    kept[:at]
                    + (
                        bytes([kept[at] ^ 1]) + kept[at + 1 :]
                        if damage == "one bit" and kept
                        else b""
                    )
                )
            try:
                found = "the same" if use(finished) == good else "ANOTHER MODEL"
            except (WeightsError, GateClosed, FileNotFoundError, ValueError) as error:
                found = f"refused: {type(error).__name__}"
                n_refused += 1
            except Exception as error:
                found = f"TRACEBACK: {type(error).__name__}: {error}"[:200]
            finally:
                path.write_bytes(kept)
            is_right = found == "the same" or found.startswith("refused")
            if not is_right or (found == "the same" and is_held):
                wrong.append(f"{name}, {damage}: {found}")
    assert use(finished) == good
    assert not wrong, "\n".join(wrong)
    assert n_refused > 30
