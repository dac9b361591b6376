"""New Korean tokens beside a vocabulary: what they change in ids (Korean alone), and what comes back (every text)."""

import dataclasses
import json
import re

import numpy as np
import pytest

from medkor_jax.data import embedded
from medkor_jax.data.language import HANGUL_RANGES, KOREAN, token_languages
from medkor_jax.data.new_tokens import NewTokens, learn
from medkor_jax.data.tokenizer import Tokenizer
from medkor_jax.io.export_tokenizer import PROBES, write_tokenizer

SIZE, ROWS = 60, 1024  # the base's embedding has more rows than its tokenizer has pieces
HANGUL = re.compile("[" + "".join(f"{chr(a)}-{chr(b)}" for a, b in HANGUL_RANGES) + "]")
KOREAN_TEXTS, ENGLISH_TEXTS = (
    [text for split in ("train", "test") for _, text in embedded.texts(code, split)]
    for code in ("ko", "en")
)


def learnt(tokenizer, **changes):
    return learn(
        KOREAN_TEXTS[:200], tokenizer, **dict(size=SIZE, first_id=ROWS, least_seen=3) | changes
    )


@pytest.fixture(scope="module", params=["tokenizer.model", "tokenizer.json"])
def base(request, tiny_base_dir, tmp_path_factory):
    """The tiny base's tokenizer as sentencepiece reads it, and as `tokenizers` does."""
    tokenizer = Tokenizer.load(tiny_base_dir)
    if request.param == "tokenizer.model":
        return tokenizer
    directory = tmp_path_factory.mktemp("fast")
    write_tokenizer(tokenizer, directory, max_positions=64)
    return Tokenizer.load(directory)


@pytest.fixture(scope="module")
def longer(base):
    return base.extended(learnt(base))


def test_english_has_exactly_the_ids_it_had(base, longer):
    texts = [*ENGLISH_TEXTS, *(text for text in PROBES if not HANGUL.search(text)), *base.pieces]
    texts = [text for text in texts if not HANGUL.search(text)]
    assert len(texts) > 500
    assert longer.encode_batch(texts) == base.encode_batch(texts)


def test_korean_is_shorter_and_every_text_comes_back(base, longer):
    texts = [*KOREAN_TEXTS, *PROBES]
    before, after = base.encode_batch(texts), longer.encode_batch(texts)
    assert sum(map(len, after)) < 0.98 * sum(map(len, before))
    assert [longer.decode(ids) for ids in after] == [base.decode(ids) for ids in before]
    for old, new in zip(before, after, strict=True):  # a token counts as those it stands for
        assert longer.n_replaced[new].sum() == len(old)
        for token in set(new) - set(old):
            assert token >= ROWS and HANGUL.search(longer.pieces[token])
        assert (
            token_languages(np.array(new, int), longer)[np.array(new, int) >= ROWS] == KOREAN
        ).all()


def test_the_mixed_text_keeps_its_english_and_its_signs(base, longer):
    text = "환자는 항문열창(anal fissure)으로 37.5℃, <b>mg/dL</b>\n\nA. 수술\t환자"
    others = lambda tokenizer: [
        tokenizer.pieces[i]
        for i in tokenizer.encode(text)
        if not HANGUL.search(tokenizer.pieces[i])
    ]
    kept = [piece for piece in others(base) if piece != "\u2581"]
    assert [piece for piece in others(longer) if piece != "\u2581"] == kept


def test_an_export_has_the_same_ids_of_every_text(longer, tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    notes = write_tokenizer(longer, tmp_path, max_positions=64)
    assert any("no tokenizer.model" in note for note in notes)
    assert not (tmp_path / "tokenizer.model").exists()
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    odd = [
        "환자환자환자환",
        "가가가가가가가",
        " 환자",
        "  환자는",
        "환\u2581자",
        "ㅋㅋㅋ환자ㅎ",
        "뷁환자쮋",
        "\u1100\u1161환자",
    ]
    texts = [*KOREAN_TEXTS, *ENGLISH_TEXTS[:100], *PROBES, *odd, *longer.new_tokens.pieces]
    found = [one.ids for one in theirs.encode_batch(texts, add_special_tokens=False)]
    assert found == longer.encode_batch(texts)


def test_the_same_text_gives_the_same_tokens_and_a_file_gives_them_back(base, longer):
    again = learnt(base)
    assert again == longer.new_tokens and again.digest == longer.new_tokens.digest
    read = NewTokens.from_json(json.loads(json.dumps(again.to_json())))
    assert read == again and base.extended(read).digest == longer.digest != base.digest
    assert learnt(base, size=SIZE - 1).pieces == again.pieces[:-1]
    assert longer.without_new.encode("환자는") == base.encode("환자는")


def test_too_few_or_none_are_refused_with_their_number(base):
    with pytest.raises(ValueError, match=r"gives \d+ new tokens .* and 9999 are asked for"):
        learnt(base, size=9999)
    with pytest.raises(ValueError, match="no Korean text"):
        learn(ENGLISH_TEXTS, base, size=SIZE, first_id=ROWS, least_seen=1)


def test_tokens_of_another_tokenizer_are_refused(base, longer):
    other = dataclasses.replace(longer.new_tokens, base="0" * 64)
    with pytest.raises(ValueError, match="learnt beside a tokenizer with digest 000000000000"):
        base.extended(other)


def test_rows_between_the_pieces_and_the_new_ones_are_never_written(base, longer):
    spare = slice(base.vocab_size, ROWS)
    assert base.vocab_size < ROWS and not longer.is_writable[spare].any()
    assert longer.is_writable[ROWS:].all() and len(longer.is_writable) == ROWS + SIZE
    assert longer.decode([base.vocab_size, ROWS]) == longer.pieces[ROWS].replace("\u2581", " ")
