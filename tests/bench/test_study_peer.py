"""What the study's peer is given: the documents of our packed batches, each once, with what is predicted of them."""

import numpy as np

from medkor_jax.bench.study_peer import segments
from medkor_jax.data.batches import Batches
from medkor_jax.data.rows import Example, Source
from medkor_jax.data.style import Plain

from ..data.conftest import byte_tokenizer  # noqa: F401


def test_segments_of_a_packed_batch_are_its_documents(byte_tokenizer):  # noqa: F811
    examples = [
        Example(f"t{i}", ((f"{i} " + "x" * (5 * i % 23), True),), "en", True) for i in range(40)
    ]
    asked = [Example(f"q{i}", ((f"q{i}", False), (f" {i}", True)), "en", False) for i in range(9)]
    sources = [(Source("t", "text", "t"), examples), (Source("q", "text", "q"), asked)]
    batches = Batches(sources, Plain(byte_tokenizer), batch_size=3, seq_len=48)
    for _ in range(4):
        batch = next(batches)
        documents = segments(batch)
        assert sum(len(d["tokens"]) + 1 for d in documents) == (batch["segment_ids"] > 0).sum()
        assert sum(sum(d["loss"]) for d in documents) == batch["loss_weights"].sum()
        predicted = [t for d in documents for t, on in zip(d["tokens"], d["loss"]) if on]
        targets = batch["targets"][batch["loss_weights"] > 0]
        assert sorted(predicted) == sorted(np.asarray(targets).tolist())
        for document in documents:
            text = byte_tokenizer.decode([t for t in document["tokens"] if t > 2])
            if text.startswith("q"):  # a question carries loss on its answer alone
                assert document["loss"][0] == 0 and document["loss"][-1] == 1
