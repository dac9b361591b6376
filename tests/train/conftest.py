"""A model so small, and an alphabet so short, that a reward is found by chance and learnt in seconds."""

import dataclasses

import jax
import pytest

from medkor_jax.data.question import Question
from medkor_jax.data.rows import Source
from medkor_jax.data.tokenizer import Tokenizer
from medkor_jax.model.config import preset

PIECES = ["<pad>", "<eos>", "<bos>", "<unk>", "A", "B", "x", "y"]


class Letters:
    """A tokenizer of single characters; those it does not know are <unk>."""

    file_name, serialized, pieces = "letters", b"letters", PIECES

    def encode_batch(self, texts):
        return [[PIECES.index(c) if c in PIECES else 3 for c in text] for text in texts]

    def decode(self, ids):
        return "".join("?" if i == 3 else PIECES[i] for i in ids if i >= 3)


@pytest.fixture(scope="session")
def letters():
    return Tokenizer(Letters())


@pytest.fixture(scope="session")
def letter_config():
    return dataclasses.replace(
        preset("tiny"), vocab_size=len(PIECES), layer_kinds=("local", "global")
    )


@pytest.fixture(scope="session")
def letter_params(letter_config, make_base):
    """Every token about equally likely; LoRA on two matrices and the embeddings of both languages to learn with."""
    from medkor_jax.adapt.language import make_language
    from medkor_jax.adapt.lora import make_lora
    from medkor_jax.model.params import Params

    base = make_base(letter_config)
    base = base | {"embed": 0.2 * base["embed"]}
    lora = make_lora(base, jax.random.key(0), rank=4, targets=("o", "down"))
    return Params(base, lora=lora, lang=make_language(letter_config, kind="vector"), lora_scale=2.0)


@pytest.fixture(scope="session")
def quiz():
    """Questions of which x is the answer, wherever it stands."""
    questions = [Question(f"q{i}", "quiz", None, "en", "?" * i, ("x", "y"), 0) for i in range(4)]
    return [(Source("quiz", "exam", "quiz"), questions)]
