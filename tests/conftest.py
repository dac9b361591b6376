"""Four fake CPU devices, one cache of compiled programs for all processes of these tests, and the optional real data that
stands beside a checkout."""

import importlib.metadata
import os

# Compiling takes most of these tests' time, and tiny models run at once however they were compiled: no LLVM passes, and
# plain loops instead of the fusion emitters' (2 s instead of 7 for a training step). The HLO is that of every other run.
# From jaxlib 0.11.1 on the emitters have no switch, and a flag that XLA does not know ends the process.
VERSION = tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:3]))
NO_EMITTERS = ["--xla_cpu_use_fusion_emitters=false"] if VERSION < (0, 11, 1) else []
QUICKLY = " ".join(["--xla_backend_optimization_level=0", *NO_EMITTERS])
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4 {QUICKLY}"
)

import pathlib
import shutil
import sys
import tempfile

import pytest

from .shapes import check_shapes

check_shapes()
IS_FIRST = "PYTEST_XDIST_WORKER" not in os.environ
if IS_FIRST:  # a cache of its own: a test may not depend on what a user's holds; workers and what tests start inherit it
    os.environ |= {
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": tempfile.mkdtemp(prefix="medkor-tests-xla-"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }


@pytest.hookimpl(trylast=True)
def pytest_configure():
    """Before 3.11.8 and 3.12.2 `ast.parse` fails where the collector runs in it and finds what cannot be destroyed cleanly:
    pytest's hook formats the traceback there, which parses too (CPython issue 106905). Python's own hook does not.
    """
    if sys.version_info < (3, 12, 2):
        sys.unraisablehook = sys.__unraisablehook__


def pytest_unconfigure():
    if IS_FIRST:
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def drop_compiled_programs():
    """Each compiled program holds some hundred memory maps; Linux ends a process that wants more than 65,530."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()


@pytest.fixture(scope="session")
def quick() -> dict[str, str]:
    """The variables with which a process that a test starts compiles as this one does, and finds what is compiled."""
    return {
        name: os.environ[name] for name in os.environ if name.startswith("JAX_") and "CACHE" in name
    } | {"XLA_FLAGS": QUICKLY}


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    path = pathlib.Path(
        os.environ.get("MEDKOR_SHARED_DATA", pathlib.Path(__file__).parents[2] / "shared" / "data")
    )
    if not path.is_dir():
        pytest.skip(f"real data is not at {path}; set MEDKOR_SHARED_DATA to run this test")
    return path


@pytest.fixture(scope="session")
def make_base():
    """make_base(config, seed=0, dtype=float32): base tree of random numbers, norms included, logits of scale 10."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from medkor_jax.model.params import abstract_base

    def make(config, seed=0, dtype=jnp.float32):
        rng = np.random.default_rng(seed)

        def fill(path, leaf):
            name = path[-1].key
            std = 0.5 if name == "embed" or name.endswith("norm") else leaf.shape[-2] ** -0.5
            return jnp.asarray(std * rng.standard_normal(leaf.shape), dtype)

        return jax.tree_util.tree_map_with_path(fill, abstract_base(config, dtype))

    return make


@pytest.fixture(scope="session")
def make_adapters():
    """make_adapters(base, seed=0, rank=3): LoRA on every matrix, A and B both random."""
    import numpy as np

    from medkor_jax.model.params import ADAPTABLE

    def make(base, seed=0, rank=3, targets=ADAPTABLE):
        rng = np.random.default_rng(seed + 100)
        shapes = {name: base["layers"][name].shape for name in targets}
        normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
        return {
            name: {"a": normal(n, i, rank) * i**-0.5, "b": 0.3 * normal(n, rank, o)}
            for name, (n, i, o) in shapes.items()
        }

    return make


@pytest.fixture(scope="session")
def make_blocks():
    """make_blocks(base, front=1, back=1, seed=0): added layers of random numbers, each loud and unlike its source."""
    import jax
    import numpy as np

    from medkor_jax.adapt.expansion import make_expansion

    def make(base, front=1, back=1, seed=0):
        rng = np.random.default_rng(seed + 200)
        tree = make_expansion(base, front=front, back=back, init="copy")
        return jax.tree.map(
            lambda x: 0.8 * x + 0.3 * x.std() * rng.standard_normal(x.shape).astype(np.float32),
            tree,
        )

    return make


@pytest.fixture(scope="session")
def make_batch():
    """make_batch(config, rows=8, length=24, loss_positions=10): packed documents, padding, few positions with loss."""
    import numpy as np

    def make(config, rows=8, length=24, loss_positions=10, seed=0):
        rng = np.random.default_rng(seed)
        zeros = np.zeros((rows, length), np.int32)
        batch = {
            "tokens": zeros.copy(),
            "positions": zeros.copy(),
            "segment_ids": zeros.copy(),
            "langs": zeros.copy(),
        }
        for name, dtype in (
            ("loss_positions", np.int32),
            ("targets", np.int32),
            ("loss_weights", np.float32),
        ):
            batch[name] = np.zeros((rows, loss_positions), dtype)
        for b in range(rows):
            first = int(rng.integers(2, length // 2))
            for segment, (start, stop) in enumerate(((0, first), (first, length - b % 4)), start=1):
                batch["segment_ids"][b, start:stop] = segment
                batch["positions"][b, start:stop] = np.arange(stop - start)
                batch["tokens"][b, start:stop] = rng.integers(3, config.vocab_size, stop - start)
            batch["langs"][b] = batch["tokens"][b] % 2
            n = int(rng.integers(1, loss_positions + 1))
            batch["loss_positions"][b, :n] = np.sort(rng.choice(length - 4, n, replace=False))
            batch["targets"][b, :n] = rng.integers(3, config.vocab_size, n)
            batch["loss_weights"][b, :n] = 1.0
        return batch

    return make


@pytest.fixture(scope="session")
def tiny_base_dir(make_base, tmp_path_factory) -> pathlib.Path:
    """A saved base of seven layers of random numbers, with a small tokenizer that knows both exams' letters."""
    import dataclasses
    import io

    import sentencepiece

    from medkor_jax.data import embedded
    from medkor_jax.data.tokenizer import Tokenizer
    from medkor_jax.io.bases import save_base
    from medkor_jax.model.config import preset

    directory = tmp_path_factory.mktemp("tiny") / "base"
    directory.mkdir()
    texts = [text for language in ("en", "ko") for _, text in embedded.texts(language)][::4]
    letters = [
        f"{word} {letter}" for word in ("Answer:", "\uc815\ub2f5\uff1a") for letter in "ABCDE"
    ]
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*texts, *letters * 300]), model_writer=trained, vocab_size=1000, model_type="bpe",
        byte_fallback=True, add_dummy_prefix=False, remove_extra_whitespaces=False, character_coverage=0.98,
        normalization_rule_name="identity", pad_id=0, eos_id=1, bos_id=2, unk_id=3, pad_piece="<pad>",
        eos_piece="<eos>", bos_piece="<bos>", split_by_unicode_script=False, minloglevel=2,
    )  # fmt: skip
    (directory / "tokenizer.model").write_bytes(trained.getvalue())
    config = dataclasses.replace(preset("tiny"), vocab_size=1024)
    save_base(directory, make_base(config), config, Tokenizer.load(directory), {"made_by": "tests"})
    return directory


@pytest.fixture(scope="session")
def save_adapted(tiny_base_dir, make_adapters, tmp_path_factory):
    """save_adapted(lora=.., lang=.., front=.., back=.., language_unit=..): a saved phase with these trees of random numbers, opened."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from medkor_jax.io.models import open_model, save_model
    from medkor_jax.model.params import Params

    def normal(seed, *shape, scale=1.0):
        return jnp.asarray(scale * np.random.default_rng(seed).standard_normal(shape), jnp.float32)

    def make(*, lora=False, lang="", front=0, back=0, language_unit="token"):
        base = open_model(tiny_base_dir)
        tree = base.base.load(jnp.float32)
        D, V = base.config.d_model, base.config.vocab_size
        expand = {}
        for seed, (side, n) in enumerate((("front", front), ("back", back))):
            if n:
                expand[side] = {
                    name: normal(seed, n, *leaf.shape[1:], scale=0.2)
                    for name, leaf in tree["layers"].items()
                }
        shape = {"vector": (2, D), "table": (2, V, D)}
        params = Params(
            tree, lora=jax.tree.map(jnp.asarray, make_adapters(tree)) if lora else {},
            lang={lang: normal(5, *shape[lang])} if lang else {}, expand=expand, lora_scale=0.5 if lora else 1.0,
        )  # fmt: skip
        return save_model(
            tmp_path_factory.mktemp("run") / "phase4", params, base.base, language_unit
        )

    return make


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow (minutes)")


# Begun first where workers share the files: what begins last should not be what takes longest.
LONG = (
    "parallel/test_hosts.py",
    "train/test_step.py",
    "run/test_pipeline.py",
    "bench/test_best.py",
    "train/test_retention.py",
)


def pytest_collection_modifyitems(config, items):
    items.sort(key=lambda item: not item.path.as_posix().endswith(LONG))
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="takes minutes; run with --slow"))
