import copy
import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medkor_jax.data.language import (
    ENGLISH,
    KOREAN,
    has_hangul,
    language_automaton,
    token_languages,
)
from medkor_jax.data.question import LETTERS, answer_text, cloze_prompt, prompt
from medkor_jax.eval.exam import evaluate
from medkor_jax.eval.scorer import ModelScorer
from medkor_jax.io.loaded_model import LoadedModel
from medkor_jax.model.config import preset
from medkor_jax.model.forward import Inputs, forward, project_logits
from medkor_jax.model.params import Params
from medkor_jax.parallel.mesh import MeshShape, make_mesh, shard_tree

C = preset("tiny")


class PieceTokenizer:
    """Control tokens, letters, 30 syllables, option letters with a space, and all bytes: 380 of the model's 512 rows."""

    pad_id, eos_id, bos_id, end_of_turn_id = 0, 1, 2, 3
    vocab_size = 380
    control_ids: dict[str, int] = {}
    is_writable = np.ones(380, bool)

    def __init__(self):
        text = [
            " ",
            "\n",
            ".",
            *"abcdefghijklmnopqrstuvwxyzABCDE",
            *(chr(0xAC00 + 28 * i) for i in range(30)),
        ]
        text += [f" {letter}" for letter in "ABCDE"]
        pieces = [""] * 4 + text
        self.pieces = pieces + ["\u25a1"] * (self.vocab_size - 256 - len(pieces))
        self._ids = {piece: i for i, piece in enumerate(pieces) if piece}
        self.is_hangul_piece = np.array(
            [has_hangul(piece) for piece in self.pieces] + [False] * 256
        )
        self.byte_value = np.r_[np.full(self.vocab_size - 256, -1), np.arange(256)].astype(np.int16)
        self.languages = language_automaton(self)

    @property
    def stop_ids(self):
        return tuple(i for i in (self.eos_id, self.end_of_turn_id) if i is not None)

    def encode(self, text):
        ids = []
        for piece in re.findall(r" [A-E](?!\w)|(?s:.)", text):
            ids += (
                [self._ids[piece]]
                if piece in self._ids
                else [self.vocab_size - 256 + b for b in piece.encode()]
            )
        return ids

    def encode_batch(self, texts):
        return [self.encode(text) for text in texts]

    def decode(self, ids):
        known = [i for i in ids if i < self.vocab_size]
        spelt = (
            bytes([self.byte_value[i]]) if self.byte_value[i] >= 0 else self.pieces[i].encode()
            for i in known
        )
        return b"".join(spelt).decode(errors="replace")


@pytest.fixture(scope="module")
def tokenizer():
    return PieceTokenizer()


@pytest.fixture(scope="module")
def params(make_base, make_adapters):
    base = make_base(C)
    base["layers"] |= {
        name: base["layers"][name] + 3.0 for name in ("post_attn_norm", "post_ffw_norm")
    }
    lang = {"vector": np.random.default_rng(5).standard_normal((2, C.d_model)).astype(np.float32)}
    return Params(base, lora=make_adapters(base), lang=lang, lora_scale=0.5)


@pytest.fixture(scope="module")
def prompts(tokenizer):
    texts = ["abc 가나 xyz", "q", "hello there. " * 4, "뷁뷁 abc 뷁", "각 " * 13, "zz top"]
    return [[tokenizer.bos_id, *tokenizer.encode(text)] for text in texts]


@jax.jit
def _full_pass(params, tokens, langs):
    inputs = Inputs(tokens, jnp.arange(tokens.shape[1])[None], jnp.ones_like(tokens), langs)
    return project_logits(params.base, forward(params, C, inputs, dtype=jnp.float32))[0]


def reference_logits(params, ids, langs):
    """Returns [T, V] of one row; what is padded behind it is not seen from it."""
    pad = lambda x: np.pad(np.asarray(x, np.int32), (0, 128 - len(ids)))[None]
    return np.asarray(_full_pass(params, pad(ids), pad(langs)))[: len(ids)]


def loaded(params, tokenizer, how="token"):
    return LoadedModel(params, None, C, tokenizer, language_unit=how)


def languages(tokenizer, ids, how):
    """Rows of the embedding beyond the vocabulary count as ordinary pieces."""
    known = np.where(np.asarray(ids) < tokenizer.vocab_size, ids, tokenizer.encode("a")[0])
    langs = token_languages(known, tokenizer)
    return (
        langs
        if how == "token"
        else np.full(len(ids), KOREAN if (langs == KOREAN).any() else ENGLISH)
    )


@pytest.mark.parametrize("how", ["token", "document"])
def test_next_logits_are_those_of_each_prompt_alone(params, tokenizer, prompts, how):
    scorer = ModelScorer(loaded(params, tokenizer, how), dtype=jnp.float32, batch_size=4)
    ids = [511, 7, 7, 300]
    found = scorer.next_logits(prompts, ids)
    assert found.shape == (6, 4) and found.dtype == np.float32
    for ids_of, row in zip(prompts, found):
        np.testing.assert_allclose(
            row,
            reference_logits(params, ids_of, languages(tokenizer, ids_of, how))[-1, ids],
            atol=1e-4,
        )
    assert np.abs(found).max() > 1.0


def test_routes_differ_where_a_prompt_mixes_languages(params, tokenizer, prompts):
    by_token, by_document = (
        ModelScorer(loaded(params, tokenizer, how), dtype=jnp.float32, batch_size=4).next_logits(
            prompts, [5, 6]
        )
        for how in ("token", "document")
    )
    differs = np.abs(by_token - by_document).max(axis=1) > 1e-3
    assert differs.tolist() == [True, False, False, True, True, False]


@pytest.mark.parametrize("how", ["token", "document"])
def test_generated_text_is_greedy_and_cut_at_the_first_stop(params, tokenizer, prompts, how):
    scorer = ModelScorer(loaded(params, tokenizer, how), dtype=jnp.float32, batch_size=4)
    texts = scorer.generate(prompts, max_new_tokens=12, stop=())
    expected = []
    for asked in prompts:
        ids = list(asked)
        document = languages(tokenizer, asked, how)[-1]
        while len(ids) < len(asked) + 12 and ids[-1] not in (
            tokenizer.eos_id,
            tokenizer.end_of_turn_id,
        ):
            langs = (
                languages(tokenizer, ids, how) if how == "token" else np.full(len(ids), document)
            )
            ids.append(
                int(reference_logits(params, ids, langs)[-1][: tokenizer.vocab_size].argmax())
            )
        expected.append(
            tokenizer.decode([i for i in ids[len(asked) :] if i < tokenizer.vocab_size])
        )
    assert texts == expected
    stop = texts[0][3:5]
    cut = scorer.generate(prompts, max_new_tokens=12, stop=("nowhere", stop))
    assert cut == [text.split(stop)[0] for text in texts] != texts


def test_complete_says_which_texts_ended_by_themselves(params, tokenizer, prompts):
    scorer = ModelScorer(loaded(params, tokenizer), dtype=jnp.float32, batch_size=4)
    plain = scorer.complete(prompts, max_new_tokens=12, stop=())
    assert [c.text for c in plain] == scorer.generate(prompts, max_new_tokens=12, stop=())
    assert all(c.n_tokens == 12 and not c.is_whole for c in plain)  # random weights do not end
    stop = plain[0].text[3:5]
    cut = scorer.complete(prompts, max_new_tokens=12, stop=(stop,))
    assert [c.is_whole for c in cut] == [stop in c.text for c in plain] and cut[0].is_whole
    assert [c.n_tokens < 12 or not c.is_whole for c in cut] == [True] * 6

    # A first token declared to be the end: that text is whole, and nothing but the end.
    ending = copy.copy(tokenizer)
    logits = reference_logits(params, prompts[1], languages(tokenizer, prompts[1], "token"))
    ending.eos_id = int(logits[-1].argmax())
    (ended,) = ModelScorer(loaded(params, ending), dtype=jnp.float32, batch_size=4).complete(
        prompts[1:2], max_new_tokens=3, stop=()
    )
    assert (ended.n_tokens, ended.is_whole) == (1, True)


def test_texts_end_at_eos_and_end_of_turn(params, tokenizer):
    """That the decoder heeds them is its own test."""
    scorer = ModelScorer(loaded(params, tokenizer), dtype=jnp.float32, batch_size=2)
    assert scorer.decoder.settings.stop_ids == (tokenizer.eos_id, tokenizer.end_of_turn_id)
    tokenizer_without = copy.copy(tokenizer)
    tokenizer_without.end_of_turn_id = None
    scorer = ModelScorer(loaded(params, tokenizer_without), dtype=jnp.float32, batch_size=2)
    assert scorer.decoder.settings.stop_ids == (tokenizer.eos_id,)


def test_four_devices_equal_one(params, tokenizer, prompts):
    one = ModelScorer(loaded(params, tokenizer), dtype=jnp.float32, batch_size=4)
    mesh = make_mesh(MeshShape(data=2, fsdp=2), jax.devices()[:4])
    placed = jax.device_put(params, shard_tree(params, mesh))
    four = ModelScorer(loaded(placed, tokenizer), dtype=jnp.float32, mesh=mesh, batch_size=3)
    np.testing.assert_allclose(
        four.next_logits(prompts[:3], [5, 6]), one.next_logits(prompts[:3], [5, 6]), atol=1e-4
    )


def test_letters_of_an_exam_are_the_best_of_their_logits(params, tokenizer, make_question):
    questions = [
        make_question(i, n_options=3 + i % 3, language="ko" if i % 2 else "en") for i in range(5)
    ]
    scorer = ModelScorer(loaded(params, tokenizer), dtype=jnp.float32, batch_size=2)
    report = evaluate(scorer, questions, mode="letter", batch_size=2)
    for question, answer in zip(questions, report.answers):
        ids = [tokenizer.bos_id, *tokenizer.encode(prompt(question))]
        logits = reference_logits(params, ids, token_languages(np.asarray(ids), tokenizer))[-1]
        n = len(question.options)
        letters = [
            tokenizer.encode(answer_text(dataclasses.replace(question, answer=c)))[0]
            for c in range(n)
        ]
        assert answer.predicted == LETTERS[int(logits[letters].argmax())]


@pytest.mark.parametrize("how", ["token", "document"])
def test_continuation_nats_are_those_of_each_row_alone(params, tokenizer, prompts, how):
    """More prompts than one batch, continuations of different lengths and languages side by side."""
    scorer = ModelScorer(loaded(params, tokenizer, how), dtype=jnp.float32, batch_size=4)
    texts = ("x", " B", "가나다", "뷁 ok", "long one" * 6, ".")
    continuations = [[tokenizer.encode(text) for text in texts[i:]] for i in range(len(prompts))]
    found = scorer.continuation_nats(prompts, continuations)
    for prompt_ids, own, nats in zip(prompts, continuations, found, strict=True):
        for continuation, one in zip(own, nats, strict=True):
            ids = [*prompt_ids, *continuation]
            logits = jax.nn.log_softmax(
                reference_logits(params, ids, languages(tokenizer, ids, how))
            )
            expected = -sum(logits[t - 1, ids[t]] for t in range(len(prompt_ids), len(ids)))
            assert one == pytest.approx(float(expected), rel=1e-5)
    with pytest.raises(ValueError, match="at least one token"):
        scorer.continuation_nats(prompts[:1], [[[5], []]])


@pytest.mark.parametrize("mode", ["cloze", "cloze_norm"])
def test_cloze_takes_the_likeliest_option_without_showing_any(
    params, tokenizer, make_question, mode
):
    questions = [
        make_question(i, n_options=3 + i % 3, language="ko" if i % 2 else "en") for i in range(5)
    ]
    words = ("ab", "cdcdcd", "xy xy", "z", "가")
    questions = [
        dataclasses.replace(q, options=(words[i:] + words[:i])[: len(q.options)])
        for i, q in enumerate(questions)
    ]
    scorer = ModelScorer(loaded(params, tokenizer), dtype=jnp.float32, batch_size=4)
    report = evaluate(scorer, questions, mode=mode, batch_size=2)
    chosen = []
    for question, answer in zip(questions, report.answers):
        before = [tokenizer.bos_id, *tokenizer.encode(cloze_prompt(question))]
        after = [tokenizer.encode(f" {option}") for option in question.options]
        (nats,) = scorer.continuation_nats([before], [after])
        lengths = np.array([len(option) for option in question.options])
        assert answer.option_lengths == tuple(lengths)
        if (
            mode == "cloze_norm"
        ):  # lm-evaluation-harness: argmax(lls / completion_len), the space before the option not counted
            assert answer.predicted == LETTERS[int(np.argmax(-nats / lengths))]
            nats = nats / lengths * lengths.mean()
        assert answer.predicted == LETTERS[int(nats.argmin())]
        np.testing.assert_allclose(
            answer.probabilities, np.exp(-nats) / np.exp(-nats).sum(), rtol=1e-4
        )
        chosen.append(answer.predicted)
    assert len(set(chosen)) > 1


@pytest.mark.parametrize(
    "wrong, message",
    [({"language_unit": "word"}, "token, document"), ({"batch_size": 0}, "at least 1")],
)
def test_settings_without_meaning_are_refused(params, tokenizer, wrong, message):
    with pytest.raises(ValueError, match=message):
        ModelScorer(
            loaded(params, tokenizer, wrong.get("language_unit", "token")),
            dtype=jnp.float32,
            batch_size=wrong.get("batch_size", 2),
        )


def test_an_empty_prompt_is_refused(params, tokenizer):
    scorer = ModelScorer(loaded(params, tokenizer), dtype=jnp.float32, batch_size=2)
    with pytest.raises(ValueError, match="at least one token"):
        scorer.next_logits([[2], []], [5])
