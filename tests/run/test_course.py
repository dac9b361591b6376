import gc
import pathlib
import types
import weakref

import jax.numpy as jnp

from medkor_jax.adapt.language import LanguageSettings
from medkor_jax.io.loaded_model import LoadedModel
from medkor_jax.model.params import Params
from medkor_jax.run import course, pipeline


def test_a_phase_that_merged_holds_its_new_base_alone(monkeypatch):
    """The old one is as large as the model: what is measured after a merge, and trained after it, must not share memory with it."""
    phase = types.SimpleNamespace(
        name="phase0",
        title="",
        merge=True,
        lora=None,
        language=LanguageSettings(),
        train=None,
        changes_model=True,
        gate=types.SimpleNamespace(has_remedy=False),
    )
    old_base, held = [], []

    def model(base):
        return LoadedModel(Params({"embed": base}), None, None, None)

    def choose(phase, models, **_):
        base = jnp.ones((4, 2))
        old_base.append(weakref.ref(base))
        return types.SimpleNamespace(start=model(base), tried=[], looks=[])

    def measure(phase, loaded, when):
        gc.collect()
        held.append((when, old_base[0]() is not None))
        return types.SimpleNamespace(evidence=None)

    run = object.__new__(pipeline.Run)
    run.recipe, run.directory = types.SimpleNamespace(seed=0), pathlib.Path()
    run.lineage = types.SimpleNamespace(finished=lambda phase: None)
    run.measurer = types.SimpleNamespace(measure=measure)
    monkeypatch.setattr(pipeline, "choose", choose)
    monkeypatch.setattr(
        pipeline.Run, "_candidates", lambda *_: iter([types.SimpleNamespace(digest="")])
    )
    monkeypatch.setattr(pipeline.Run, "_reference", lambda *_: None)
    monkeypatch.setattr(pipeline.Run, "_train", lambda self, course, *_: course.loaded)
    monkeypatch.setattr(
        pipeline.Run, "_merge", lambda self, phase, loaded: model(loaded.params.base["embed"] + 1)
    )
    monkeypatch.setattr(
        course.Course, "judge", lambda self, what: types.SimpleNamespace(passed=True)
    )
    monkeypatch.setattr(pipeline, "add_trees", lambda loaded, *_, **__: loaded)
    for name in ("note", "note_start", "heading", "say", "conclude"):
        monkeypatch.setattr(pipeline, name, lambda *_, **__: None)
    run.phase(phase)
    assert held == [("before", True), ("after", False)]
