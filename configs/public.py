"""Public data by name: what every slot of the phases reads, from the Hugging Face hub.

    medkor data fetch --config configs/pipeline.py      # brings all of it, and pins its revisions
    python tests/hub/check.py configs/pipeline.py       # compares what is said here with the real sets

"Unseen" marks what no page that could be read has shown: columns taken from the code of people who loaded the set.
`medkor data fetch` reads first rows of each source and says so where a column has another name. Licences are those of
the cards as they could be read; the run says before training what they make of the model.
"""

NC = "CC BY-NC 2.0"
ENGLISH_HELD, KOREAN_HELD = 0.01, 0.01  # shares that are held out, by hash of the row

GUIDELINES = dict(
    kind="text",
    path="epfl-llm/guidelines",
    fields=("clean_text",),
    language="en",
    # The hub's tag; each source (CCO, CDC, CMA, ICRC, NICE, SPOR, WHO, WikiDoc) has its own terms, NICE strict ones.
    licence="common-crawl (terms of each guideline's publisher)",
    held_share=ENGLISH_HELD,
    part_by=("clean_text",),
)
MEDQA = dict(path="GBaker/MedQA-USMLE-4-options", language="en", licence="CC BY 4.0")
"""10,178 questions of four options to train on, 1,273 (test) to judge by."""
KORMEDMCQA = dict(path="sean0042/KorMedMCQA", subset="doctor", language="ko", licence=NC)
"""1,890 questions to train on, 164 (dev) to judge by, 435 (test) for the end, 5 (fewshot) to show."""
KORMEDMCQA_ENGLISH = KORMEDMCQA | dict(translated_to="en")
"""The same in English, which nobody publishes: put into it by the run's own weights before anything is trained, or by
`translator="google/translategemma-12b-it"`. Rows that fail the checks are left out, and listed."""
MEDICAL_O1 = dict(
    kind="text",
    path="ChuGyouk/medical-o1-reasoning-SFT-Ko",
    # Unseen: three users' code names these columns. Machine translated; built on MedQA's and MedMCQA's training questions.
    fields=("Question", "Complex_Cot", "Response"),
    language="ko",
    licence="Apache 2.0",
    held_share=KOREAN_HELD,
    part_by=("Question",),
)
PUBMED_PAIRS = dict(
    kind="translation",
    path="koohack/pub_med_qa_ko_translated",
    # Unseen: which of the two is Korean. A row that has them the other way round is read so, and counted.
    fields=("answer", "answer_trans"),
    licence="MIT",
)
GENERAL_PAIRS = dict(
    kind="translation",
    path="lemon-mint/korean_parallel_sentences_v1.1",
    fields=("english", "korean"),  # unseen
    licence="MIT",
)
HELD_OUT_PAIRS = dict(
    kind="translation",
    path="Moo/korean-parallel-corpora",
    split="validation",
    fields=("en", "ko"),  # unseen; news of about 2000, not medical
    licence="CC BY-SA 3.0",
    limit=200,
)
SOLUTIONS = dict(
    kind="reasoning",
    path="ChuGyouk/medical-reasoning-train-kormedmcqa",
    # Unseen: the columns (question, A to E, answer 1 to 5, thinking, response), the language of the reasoning, and whether
    # questions of dev are among them, which the search for leaks then says. Its card was not seen either: a survey says
    # CC BY-NC, as the exam that it is made of has.
    rationale=("thinking", "response"),
    language="ko",
    licence="CC BY-NC (by a survey; the card was not seen)",
)


def trained(source, **changes):
    """Returns a source that is trained on: where a share is held out, the rows outside it."""
    return source | (dict(part="train") if "held_share" in source else {}) | changes


def held_out(source, **changes):
    """Returns the rows of the same file that are never trained on."""
    return source | dict(part="held_out") | changes
