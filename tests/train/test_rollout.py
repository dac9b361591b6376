"""Rollouts with an actor that says what it is told to: what is asked, kept, dropped, refilled and remembered."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medkor_jax.data import embedded
from medkor_jax.data.option_order import shuffle_options
from medkor_jax.data.question import Question
from medkor_jax.data.reasoning import ReasoningFormat, reasoning_prompt
from medkor_jax.data.rows import BadDataError, Source
from medkor_jax.data.style import Plain
from medkor_jax.train.actor import Sample
from medkor_jax.train.groups import Group, NothingToLearn, advantages, explain, taught
from medkor_jax.train.reward_settings import RewardSettings, RolloutSettings
from medkor_jax.train.rewards import Reward, make_parts
from medkor_jax.train.rollout import Rollouts

EOS = 1
SETTINGS = RewardSettings(
    "grpo",
    make_parts(answer=1.0, letter=0.4, format=0.2),
    RolloutSettings(group_size=4, max_new_tokens=3, max_refills=2),
)
RIGHT, WRONG = "right", "wrong"


def changed_to(settings, **changes):
    """`settings` with other fields, of its own or of its rollout."""
    own = {name: changes.pop(name) for name in ("algorithm", "parts") if name in changes}
    return dataclasses.replace(
        settings, rollout=dataclasses.replace(settings.rollout, **changes), **own
    )


class Told:
    """Answers each prompt with the letter of x (`RIGHT`), of y (`WRONG`) or a text; `script(group, sample)` says which.

    Groups are counted over the life of the actor; every call is recorded.
    """

    has_reference = False

    def __init__(self, tokenizer, script):
        self.tokenizer, self.script, self.calls, self.prompts = tokenizer, script, [], []

    def sample(self, params, prompts, seeds, languages):
        self.calls.append((prompts, seeds, languages))
        answers = []
        for i, prompt in enumerate(prompts):
            if i % SETTINGS.rollout.group_size == 0:
                self.prompts.append(prompt)
            text = self.script(len(self.prompts) - 1, i % SETTINGS.rollout.group_size)
            if text in (RIGHT, WRONG):
                read = self.tokenizer.decode(prompt[1:])
                at_x = read.index("x")
                text = read[at_x - 3] if text == RIGHT else {"A": "B", "B": "A"}[read[at_x - 3]]
            is_finished = not text.endswith("...")
            tokens = [*self.tokenizer.encode(text.removesuffix("...")), *[EOS] * is_finished]
            answers.append(Sample(tuple(tokens), text.removesuffix("..."), is_finished))
        return answers

    def nats(self, params, batch):
        return np.where(batch["loss_weights"] > 0, batch["targets"] + 0.1 * params, 0).astype(
            np.float32
        )

    reference_nats = None


def one_right(group, sample):
    return RIGHT if sample == group % 4 else WRONG


@pytest.fixture
def make(letters, quiz):
    def make(settings=SETTINGS, sources=quiz, **changed):
        return Rollouts(
            sources, Plain(letters), settings, **dict(batch_size=8, seq_len=48, seed=5) | changed
        )

    return make


def test_options_move_and_the_key_moves_with_them():
    question = Question("q", "exam", None, "en", "Which?", tuple("abcde"), 3)
    orders = set()
    for seed in range(200):
        shuffled = shuffle_options(question, np.random.default_rng(seed))
        assert shuffled.options[shuffled.answer] == "d" and sorted(shuffled.options) == list(
            "abcde"
        )
        orders.add(shuffled.options)
    assert len(orders) > 90  # of 120
    assert shuffled.question == "Which?" and question.options == tuple("abcde")


def test_options_that_speak_of_each_other_are_asked_in_their_order(letters, capsys):
    kept = Question("k", "exam", None, "en", "k", ("x", "y", "both A and B"), 2)
    moved = Question("m", "exam", None, "en", "m", ("x", "y", "z"), 2)
    for seed in range(20):
        assert shuffle_options(kept, np.random.default_rng(seed)) == kept
    assert (
        len({shuffle_options(moved, np.random.default_rng(seed)).options for seed in range(20)}) > 3
    )
    Rollouts(
        [(Source("exam", "exam", "e"), [kept, moved])],
        Plain(letters),
        SETTINGS,
        batch_size=8,
        seq_len=96,
    )
    assert (
        "exam: 1 of 2 questions are asked with their options in the order of the file"
        in capsys.readouterr().out
    )
    Rollouts(
        [(Source("exam", "exam", "e"), [moved])], Plain(letters), SETTINGS, batch_size=8, seq_len=96
    )
    assert "order of the file" not in capsys.readouterr().out


@pytest.mark.parametrize("std_normalised", [True, False])
def test_advantages_are_those_of_the_group(std_normalised):
    rewards = np.array([1.4, 0.4, 0.4, 0.0])
    found = advantages(rewards, std_normalised=std_normalised)
    expected = (rewards - 0.55) / (
        np.sqrt(np.mean((rewards - 0.55) ** 2)) + 1e-4 if std_normalised else 1
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found.dtype == np.float32 and abs(found.sum()) < 1e-6
    assert advantages(np.full(4, 1.3), std_normalised=std_normalised) is None


def test_a_batch_holds_each_sample_with_its_advantage_and_the_behaviours_nats(make, letters):
    actor = Told(letters, one_right)
    batch, watched = make().next(7, actor)
    ((prompts, seeds, languages),) = actor.calls
    assert (
        len(prompts) == len(set(seeds)) == 8
        and prompts[0] == prompts[3] != prompts[4]
        and set(languages) == {0}
    )
    for b, prompt in enumerate(prompts):
        n = len(prompt)
        row = batch["tokens"][b]
        assert list(row[:n]) == prompt and row[n + 1] == EOS and not row[n + 2 :].any()
        assert list(batch["segment_ids"][b]) == [1] * (n + 2) + [0] * (48 - n - 2)
        assert list(batch["positions"][b, : n + 2]) == list(range(n + 2))
        assert list(batch["loss_positions"][b, :2]) == [n - 1, n] and list(
            batch["targets"][b, :2]
        ) == list(row[n : n + 2])
        assert list(batch["loss_weights"][b]) == [1, 1, 0]
        is_right = b % 4 == b // 4
        above = np.array([1.4, 0.4, 0.4, 0.4]) - 0.65
        expected = above[0 if is_right else 1] / (above.std() + 1e-4)
        np.testing.assert_allclose(batch["advantages"][b], [expected, expected, 0], rtol=1e-5)
        np.testing.assert_allclose(
            batch["behaviour_nats"][b], [row[n] + 0.7, EOS + 0.7, 0], rtol=1e-6
        )
    assert "reference_nats" not in batch
    told = {"reward": 0.65, "right": 0.25, "reward_answer": 0.25, "reward_letter": 0.4, "reward_format": 0.0, "unparsed": 0.0,
            "unfinished": 0.0, "dead_groups": 0.0, "refills": 0, "rows": 8, "new_tokens": 2.0, "groups": 2}  # fmt: skip
    assert {name: watched[f"rollout/{name}"] for name in told} == pytest.approx(told)
    assert watched["rollout/group_spread"] == pytest.approx(np.sqrt(3) / 4)


def test_a_prompt_asks_the_question_as_the_exam_does(make, letters, quiz):
    actor = Told(letters, one_right)
    make().next(0, actor)
    question = quiz[0][1][0]
    forms = [
        dataclasses.replace(question, question="?" * n, options=o)
        for n in range(4)
        for o in (("x", "y"), ("y", "x"))
    ]
    asked = {tuple(letters.encode(reasoning_prompt(form))) for form in forms}
    assert all(
        prompt[0] == letters.bos_id and tuple(prompt[1:]) in asked for prompt in actor.prompts
    )


def test_each_epoch_asks_every_question_once_and_options_are_shuffled_for_each_visit(make, letters):
    actor = Told(
        letters, lambda group, sample: RIGHT if group % 5 == 0 else one_right(group, sample)
    )  # refills, too
    rollouts = make()
    for _ in range(20):  # two questions each, and more where one is dead
        rollouts.next(0, actor)
    texts = [letters.decode(prompt[1:]) for prompt in actor.prompts]
    assert len(texts) >= 48
    lengths = [len(text) for text in texts]  # the questions differ in length
    assert all(len(set(lengths[i : i + 4])) == 4 for i in range(0, 48, 4))
    first_x = [text.index("x") < text.index("y") for text in texts if len(text) == lengths[0]]
    assert 0 < sum(first_x) < len(first_x)


def test_dead_groups_are_dropped_and_other_questions_asked(make, letters):
    dead = {0: RIGHT, 1: WRONG, 2: "??"}
    actor = Told(letters, lambda group, sample: dead.get(group) or one_right(group, sample))
    batch, watched = make().next(0, actor)
    assert [len(prompts) // 4 for prompts, *_ in actor.calls] == [
        2,
        2,
        1,
    ]  # two dead, one of two dead, alive
    assert list(batch["tokens"][0][: len(actor.prompts[3])]) == actor.prompts[3]
    assert list(batch["tokens"][4][: len(actor.prompts[4])]) == actor.prompts[4]
    assert (
        watched["rollout/dead_groups"] == pytest.approx(3 / 5) and watched["rollout/refills"] == 2
    )
    assert watched["rollout/right"] == pytest.approx((4 + 2) / 20)  # over all that was sampled
    seeds = [seed for _, seeds, _ in actor.calls for seed in seeds]
    assert len(set(seeds)) == len(seeds) == 20


def test_rows_that_stay_empty_are_padding(make, letters, capsys):
    actor = Told(letters, lambda group, sample: one_right(group, sample) if group == 1 else RIGHT)
    rollouts = make(batch_size=12)
    batch, watched = rollouts.next(0, actor)
    assert [len(prompts) // 4 for prompts, *_ in actor.calls] == [3, 2, 2]
    assert (
        watched["rollout/rows"] == 4
        and (batch["loss_weights"].sum(axis=1) > 0).tolist() == [True] * 4 + [False] * 8
    )
    for name in ("advantages", "behaviour_nats", "segment_ids", "tokens"):
        assert not batch[name][4:].any()
    assert "only 4 of 12 rows" in capsys.readouterr().out


def test_what_is_cut_off_is_not_right_and_stays_in_the_loss(make, letters):
    actor = Told(letters, lambda group, sample: "xxA..." if sample else RIGHT)
    batch, watched = make().next(0, actor)
    assert (
        watched["rollout/right"] == 0.25
        and watched["rollout/unfinished"] == watched["rollout/unparsed"] == 0.75
    )
    assert batch["loss_weights"][1].tolist() == [1, 1, 1] and batch["advantages"][1, 0] < 0


@pytest.mark.parametrize(
    "answers, changed, words",
    [
        (lambda g, s: "xyx...", {}, "100% cut off at 3 tokens. Answers do not end"),
        (lambda g, s: "xy"[s % 2], {}, "100% without one valid letter.*cold start"),
        (lambda g, s: RIGHT, {}, "All samples of a question are the same text: raise temperature"),
        (lambda g, s: "?" * (s % 2) + "A", {"parts": make_parts(answer=0.0, letter=0.0, format=0.2)}, "reward.parts.answer.weight is 0"),
        (lambda g, s: " " * (s % 2) + RIGHT, {"algorithm": "rft"}, "none earned all of the reward"),
    ],
)  # fmt: skip
def test_a_reward_that_never_differs_says_so_and_stops(
    answers, changed, words, make, letters, capsys
):
    rollouts = make(changed_to(SETTINGS, **changed))
    actor = Told(letters, answers)
    before = rollouts.get_state()
    with pytest.raises(NothingToLearn, match=words):
        rollouts.next(0, actor)
    assert len(actor.calls) == 3 * 3  # patience, each with two refills
    assert len({tuple(seeds) for _, seeds, _ in actor.calls}) == 9
    assert rollouts.get_state() == before
    assert capsys.readouterr().out.count("ALARM: all 6 groups of a batch are dead") == 3


def group_of(letters, *texts, answer=0):
    question = Question("q", "exam", None, "en", "?", ("x", "y"), answer)
    samples = [Sample((*letters.encode(text), EOS), text, True) for text in texts]
    earned = [
        Reward(SETTINGS.parts).score(s.text, question, n_tokens=2, is_finished=True)
        for s in samples
    ]
    return Group(question, [2], samples, earned)


@pytest.mark.parametrize(
    "texts, words",
    [
        (("A", "A "), "too easy"),
        (("B", "B "), "too hard"),
        (("A", "B"), "Raise group_size"),
        (("x", "x "), "cold start"),
    ],
)
def test_the_likely_cause_is_named(texts, words, letters):
    assert words in explain([group_of(letters, *texts)], SETTINGS, ReasoningFormat())


def test_one_empty_batch_is_an_alarm_and_not_the_end(make, letters, capsys):
    actor = Told(letters, lambda group, sample: RIGHT if group < 6 else one_right(group, sample))
    batch, watched = make().next(0, actor)
    assert (
        batch["loss_weights"].any()
        and watched["rollout/groups"] == 8
        and watched["rollout/dead_groups"] == 0.75
    )
    assert "1 of 3 times" in capsys.readouterr().out


def test_rft_keeps_what_earned_everything_once_and_nothing_else(letters, make):
    settings = changed_to(
        SETTINGS, algorithm="rft", parts=make_parts(answer=1.0, letter=0.4, format=0.0)
    )
    group = group_of(letters, "A", "A", " A", "B", "x A", "")
    assert [sample.text for _, sample, _ in taught(group, settings)] == ["A", " A"]
    with_form = dataclasses.replace(settings, parts=SETTINGS.parts)
    assert not list(taught(group, with_form))  # right, but not in the format
    batch, watched = make(settings).next(0, Told(letters, one_right))
    assert "advantages" not in batch and "behaviour_nats" not in batch
    assert (
        watched["rollout/rows"] == (batch["loss_weights"].sum(axis=1) > 0).sum() == 5
    )  # one a group: 2 groups, then 2 for
    # the 6 rows that lack, then 1 for 4
    assert all(letters.decode(batch["targets"][b][:1]) in ("A", "B") for b in range(5))


def equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
        assert one[name].dtype == other[name].dtype


def test_a_cursor_goes_on_to_the_same_bits_and_holds_a_batch_that_is_not_done(make, letters):
    settings = changed_to(SETTINGS, updates_per_batch=2)
    whole, actor = make(settings), Told(letters, one_right)
    batches = [whole.next(step, actor)[0] for step in range(7)]
    assert len(actor.calls) == 4  # sampled at every other update
    equal(batches[0], batches[1])
    for stop in range(1, 7):
        first, heard = make(settings), Told(letters, one_right)
        for step in range(stop):
            first.next(step, heard)
        cursor = json.loads(json.dumps(first.get_state()))
        second = make(settings)
        second.set_state(cursor)
        for step in range(stop, 7):
            equal(second.next(step, heard)[0], batches[step])
        assert heard.calls == actor.calls


def test_another_seed_asks_and_draws_otherwise(make, letters):
    one, other = Told(letters, one_right), Told(letters, one_right)
    make().next(0, one), make(seed=6).next(0, other)
    assert not set(one.calls[0][1]) & set(other.calls[0][1])


def test_a_cursor_of_other_rollouts_is_refused(make, letters):
    cursor = make().get_state()
    with pytest.raises(ValueError, match="rollouts was .*temperature"):
        make(changed_to(SETTINGS, temperature=0.7)).set_state(cursor)


def test_questions_without_room_are_named_or_left_out(make, quiz, letters):
    long = dataclasses.replace(quiz[0][1][0], id="long", question="?" * 40)
    sources = [(quiz[0][0], [*quiz[0][1], long])]
    with pytest.raises(BadDataError, match="long has .* tokens"):
        make(sources=sources)
    rollouts = make(sources=sources, drop_bad=True)
    assert len(rollouts.dropped) == 1
    actor = Told(letters, one_right)
    for _ in range(4):
        rollouts.next(0, actor)
    assert max(map(len, actor.prompts)) < 40
    with pytest.raises(BadDataError, match="none fits"):
        make(sources=[(Source("s", "exam", "s"), [long])], drop_bad=True)


@pytest.mark.parametrize(
    "settings, shape, words",
    [
        (dict(algorithm="ppo"), {}, "'ppo'; expected grpo or rft"),
        (dict(group_size=1), {}, "at least 2"),
        (dict(temperature=0.0), {}, "temperature is 0.0"),
        (dict(max_refills=-1), {}, "max_refills at least 0"),
        (dict(updates_per_batch=0), {}, "at least 1"),
        (dict(), dict(batch_size=10), "10 is not a multiple of group_size 4"),
        (dict(max_new_tokens=47), {}, "seq_len 48 has no room"),
        (dict(), dict(loss_positions=2), "below max_new_tokens 3"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, shape, words, make):
    with pytest.raises(ValueError, match=words):
        make(changed_to(SETTINGS, **settings), **shape)


def test_importance_is_the_true_ratio_truncated():
    from medkor_jax.train.importance import importance

    batch = {
        "loss_weights": np.array([[0, 1, 1], [1, 1, 0]], np.float32),
        "behaviour_nats": np.array([[0, 1.0, 2.0], [3.0, 1.0, 0]], np.float32),
    }
    samples = [
        Sample((5, 6), "", True, (1.0, 2.0 + np.log(1.5))),
        Sample((7, 8), "", True, (3.0 + np.log(4.0), 1.0 - np.log(2.0))),
    ]
    weights, gap = importance(batch, samples, 2.0)
    np.testing.assert_allclose(weights, [[1, 1, 1.5], [2, 0.5, 1]], rtol=1e-5)
    assert gap["rollout/sampler_ratio"] == pytest.approx((1 + 1.5 + 4 + 0.5) / 4, rel=1e-5)
    assert (
        gap["rollout/highest_sampler_ratio"] == pytest.approx(4, rel=1e-5)
        and gap["rollout/truncated"] == 0.25
    )
    assert gap["rollout/sampler_gap_nats"] == pytest.approx(
        (np.log(1.5) + np.log(4) + np.log(2)) / 4, rel=1e-5
    )
    assert (importance(batch, samples, 0.0)[0] == 1).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_decoder_says_how_likely_its_tokens_were(dtype, tiny_base_dir):
    """It and the training pass agree within rounding; where they do not, the batch knows by how much."""
    from medkor_jax.io.loaded_model import load
    from medkor_jax.io.models import open_model
    from medkor_jax.parallel.mesh import MeshShape, make_mesh
    from medkor_jax.train.actor import Actor
    from medkor_jax.train.compute import ComputeSettings
    from medkor_jax.train.stage import Stage
    from medkor_jax.train.step import step_spec

    model, mesh = open_model(tiny_base_dir), make_mesh(MeshShape())
    questions = embedded.questions("train", "en")[:8]
    source = Source("quiz", "exam", "embedded", language="en")
    settings = changed_to(SETTINGS, group_size=4, temperature=0.7, max_new_tokens=12)
    rollouts = Rollouts(
        [(source, questions)], Plain(model.tokenizer), settings, batch_size=8, seq_len=128, seed=3
    )
    with jax.set_mesh(mesh):
        loaded = load(model, dtype, mesh)
        params = loaded.params
        # What may not be written must not be likely either, or the two differ by its share.
        writable = np.pad(
            model.tokenizer.is_writable, (0, model.config.vocab_size - model.tokenizer.vocab_size)
        )
        head = jnp.where(jnp.asarray(writable)[:, None], params.base["embed"], 0)
        params = params.replace(base=params.base | {"head": head})
        spec = step_spec(Stage(reward=settings), ComputeSettings(dtype, "none"))
        actor = Actor(loaded, spec, mesh, temperature=0.7, max_new_tokens=12)
        prompts = [rollouts._prompt(question) for question in questions]
        samples = actor.sample(params, prompts, list(range(8)), [0] * 8)
        asked = [
            dataclasses.replace(Group(q, p, [s], []), earned=[])
            for q, p, s in zip(questions, prompts, samples)
        ]
        batch = rollouts.arrays([(group, group.samples[0]) for group in asked])
        batch["behaviour_nats"] = actor.nats(params, batch)
    _, gap = importance_of(batch, samples)
    assert all(len(sample.nats) == len(sample.tokens) for sample in samples)
    bound = {"float32": 1e-4, "bfloat16": 0.05}[dtype]
    assert (
        gap["rollout/sampler_gap_nats"] < bound
        and abs(gap["rollout/highest_sampler_ratio"] - 1) < 4 * bound
    )
    # weights that have moved between the two are seen for what they are
    moved = params.replace(base=params.base | {"final_norm": params.base["final_norm"] + 0.3})
    with jax.set_mesh(mesh):
        batch["behaviour_nats"] = actor.nats(moved, batch)
    assert importance_of(batch, samples)[1]["rollout/sampler_gap_nats"] > 0.02


def importance_of(batch, samples):
    from medkor_jax.train.importance import importance

    return importance(batch, samples, 2.0)
