"""The readers of what users give, each with small good files to begin from: what is fuzzed, by hypothesis in the suite and by
atheris in `fuzz.py`.

A reader may return, or raise what becomes one sentence (ValueError and its kin, OSError). Anything else is a fault, and so is a
sentence that does not name the file.
"""

import gzip
import io
import json
import pathlib
import tempfile

import gguf
import numpy as np
import pyarrow
import pyarrow.parquet
import safetensors.numpy

from medkor_jax.data.rows import Source
from medkor_jax.data.sources import load_examples, load_questions
from medkor_jax.eval.report import Report
from medkor_jax.io.files import read_json_file, read_sealed
from medkor_jax.io.gguf_header import read_header
from medkor_jax.io.safetensors_file import read_safetensors_header
from medkor_jax.io.tokenizer_files import read_tokenizer_config
from medkor_jax.model.config import ModelConfig

TOLD = (ValueError, OSError)
EXAM = {
    "question": "Which vitamin?",
    "A": "A",
    "B": "B",
    "C": "C",
    "D": "D",
    "E": "K",
    "answer": "B",
    "cot": "Because.",
}
MEDQA = {"question": "Q?", "options": {"A": "x", "B": "y"}, "answer_idx": "B"}
CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
PAIR = {"en": "He has a fever.", "ko": "그는 열이 난다."}
CONFIG = {
    "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "vocab_size": 64, "hidden_size": 8, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "intermediate_size": 16, "sliding_window": 8,
    "max_position_embeddings": 32, "rms_norm_eps": 1e-6, "query_pre_attn_scalar": 4, "rope_theta": 1e6, "rope_local_base_freq": 1e4,
    "layer_types": ["sliding_attention", "full_attention"],
}  # fmt: skip


def lines(*rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def csv(row):
    return (
        ",".join(row) + "\n" + ",".join(f'"{value}"' for value in row.values()) + "\n"
    ).encode() * 1


def parquet(*rows):
    made = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), made)
    return made.getvalue()


def exam(path):
    return load_questions(Source("fuzzed", "exam", str(path), language="en"), drop_bad=False)


def of_kind(kind):
    return lambda path: load_examples(Source("fuzzed", kind, str(path)), drop_bad=False)


def answers(path):
    return Report.read(path)


def model_config(path):
    return ModelConfig.from_hf(read_json_file(path))


def gguf_file():
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory) / "x.gguf"
        writer = gguf.GGUFWriter(path, "gemma3")
        writer.add_context_length(32)
        writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
        writer.add_tensor("x", np.zeros((2, 4), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path.read_bytes()


def tokenizer_config(path):
    return read_tokenizer_config(path.rename(path.with_name("tokenizer_config.json")).parent)


TENSORS = safetensors.numpy.save(
    {"model.norm.weight": np.zeros(4, np.float32), "x": np.zeros((2, 2), np.float16)}
)
ANSWER = {
    "id": "1", "key": "A", "predicted": "B", "correct": False, "text": "B", "exam": "e", "year": 2020, "language": "en", "n_options": 5,
    "probabilities": [0.2] * 5, "among_shots": False, "truncated": False, "mode": "letter", "shots": 0, "source": "s", "split": "valid",
    "confidence": 0.95, "style": "plain",
}  # fmt: skip

# {name: (reader, the file's suffix, good files)}
READERS = {
    "exam, JSON Lines": (exam, ".jsonl", [lines(EXAM, EXAM | {"question": "2?"}), lines(MEDQA)]),
    "exam, CSV": (exam, ".csv", [csv(EXAM)]),
    "exam, JSON": (exam, ".json", [json.dumps([EXAM, MEDQA]).encode()]),
    "exam, gzip": (exam, ".jsonl.gz", [gzip.compress(lines(EXAM))]),
    "exam, Parquet": (exam, ".parquet", [parquet(EXAM, EXAM | {"question": "2?"})]),
    "text": (
        of_kind("text"),
        ".jsonl",
        [lines({"text": "A text."}, {"text": "긴 글"}), lines(CHAT)],
    ),
    "chat": (of_kind("chat"), ".jsonl", [lines(CHAT)]),
    "plain text": (of_kind("text"), ".txt", ["One.\n\nTwo, 둘.\n".encode()]),
    "pairs": (of_kind("translation"), ".tsv", ["en\tko\nHe.\t그.\n".encode()]),
    "pairs, JSON Lines": (of_kind("translation"), ".jsonl", [lines(PAIR)]),
    "reasoning": (of_kind("reasoning"), ".jsonl", [lines(EXAM)]),
    "answers of a run": (answers, ".jsonl", [lines(ANSWER)]),
    "sealed file of a run": (read_sealed, ".json", [b'{"format": 2, "checksum": "0"}']),
    "safetensors header": (read_safetensors_header, ".safetensors", [TENSORS]),
    "GGUF header": (read_header, ".gguf", [gguf_file()]),
    "tokenizer_config.json": (
        tokenizer_config,
        ".json",
        [b'{"bos_token": "<bos>", "eos_token": {"content": "<eos>"}}'],
    ),
    "config.json": (model_config, ".json", [json.dumps(CONFIG).encode()]),
}


def read(name, data, directory):
    """Gives `data` to a reader. Raises: AssertionError if what comes of it is no result and no sentence."""
    reader, suffix, _ = READERS[name]
    path = pathlib.Path(directory) / f"fuzzed{suffix}"
    path.write_bytes(data)
    try:
        reader(path)
    except TOLD as error:
        assert not isinstance(error, UnicodeError), repr(error)
        said = str(error)
        assert said and ("fuzzed" in said or name.endswith("config.json")), (
            type(error).__name__,
            said,
        )
    except RecursionError as error:
        raise AssertionError(repr(error)) from error
