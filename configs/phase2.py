"""Phase 2: two extra embeddings, Korean and English, chosen by each token's language; they alone train."""

from configs import common


def phase(**changes):
    defaults = common.phase(
        "two language embeddings, trained alone",
        after="phase1",
        language=dict(kind="vector"),
        trees=("lang",),
        steps=500,
        data={
            "korean-text": dict(kind="text", path="data/korean_text.jsonl", language="ko", licence="set me"),
            "english-text": dict(kind="text", path="data/english_text.jsonl", language="en", weight=0.25, licence="set me"),
        },
        gate=common.gate(on_failure="retain", requires=common.korean()),
        remedy=common.retention(
            trees=("lang",),
            steps=200,
            data={"english-text": dict(kind="text", path="data/english_text.jsonl", language="en", licence="set me")},
        ),
    )
    return common.changed(defaults, changes)


def get_config():
    from configs import pipeline

    return pipeline.get_config(run=("phase2",))
