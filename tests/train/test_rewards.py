import pytest

from medkor_jax.data.question import Question
from medkor_jax.data.reasoning import ReasoningFormat
from medkor_jax.train.reward_settings import RewardSettings
from medkor_jax.train.rewards import DEFAULT_PARTS, PARTS, Reward, RewardPart, best, make_parts

QUESTION = Question("q", "exam", None, "en", "Which?", ("one", "two", "three"), 2)
REWARD = Reward()


def score(text, reward=REWARD, *, n_tokens=10, is_finished=True):
    return reward.score(text, QUESTION, n_tokens=n_tokens, is_finished=is_finished)


@pytest.mark.parametrize(
    "text, earned",
    [
        (" <R> because <R/> C", (1.0, 0.1, 0.2)),
        (" <R> because <R/> B", (0.0, 0.1, 0.2)),
        (" C", (1.0, 0.1, 0.0)),
        (" <R> because <R/> D", (0.0, 0.0, 0.2)),  # no option of this question
        (" <R> because <R/> C or B", (0.0, 0.0, 0.2)),
        (" <R> because C", (0.0, 0.0, 0.0)),
        (" <R> <R/> C", (1.0, 0.1, 0.0)),  # no reasoning
        ("", (0.0, 0.0, 0.0)),
    ],
)
def test_each_part_is_earned_by_itself(text, earned):
    result = score(text)
    assert tuple(result.parts.values()) == (*earned, 0.0) and tuple(result.parts) == tuple(PARTS)
    assert result.total == pytest.approx(sum(earned))
    assert (result.is_right, result.is_parsed, result.has_format) == tuple(
        part > 0 for part in earned
    )


def test_what_was_cut_off_earns_nothing_even_if_it_reads_right():
    cut = score(" <R> because <R/> C", is_finished=False)
    assert cut.total == 0.0 and not (cut.is_right or cut.is_parsed or cut.has_format)


def test_the_tags_are_those_of_the_format():
    reward = Reward(form=ReasoningFormat("[", "]"))
    assert (
        score("[because] C", reward).has_format
        and not score("<R> because <R/> C", reward).has_format
    )


@pytest.mark.parametrize("n_tokens, taken", [(8, 0.0), (12, 0.15), (16, 0.3), (99, 0.3)])
def test_length_costs_little_by_little_up_to_twice_the_bound(n_tokens, taken):
    reward = Reward((*make_parts(answer=1.0), RewardPart("length", -0.3, bound=8)))
    for is_finished in (True, False):
        assert score("C", reward, n_tokens=n_tokens, is_finished=is_finished).parts[
            "length"
        ] == pytest.approx(-taken)
    assert (
        score("C", Reward(make_parts(answer=1.0, length=-0.3)), n_tokens=99).parts["length"] == 0.0
    )  # no bound


def test_the_best_is_what_a_right_answer_in_form_earns():
    assert score(" <R> because <R/> C").total == pytest.approx(best(REWARD.parts)) == 1.3


@pytest.mark.parametrize(
    "parts, words",
    [
        (dict(answer=0.3), "worth 0.3 and letter .* 0.3.*Raise answer"),
        (dict(letter=0.9), "Raise answer"),
        (dict(length=-0.7), "Raise answer"),
        (dict(format=-0.1), "below 0"),
        (dict(length=0.1), "takes away"),
        (dict(lettre=0.1), "no part of a reward.*nearest: 'letter'"),
        (dict(answer=0.0, letter=0.0, format=0.0), "nothing would be rewarded"),
    ],
)
def test_a_reward_that_teaches_the_wrong_thing_is_refused(parts, words):
    with pytest.raises(ValueError, match=words):
        Reward(make_parts(**{part.name: part.weight for part in DEFAULT_PARTS} | parts))


BREVITY = """
def brevity(response, bound):
    return max(0.0, 1.0 - response.n_tokens / bound)

def lavish(response, bound):
    return 7

def nothing(response, bound):
    return None
"""


@pytest.fixture
def own(tmp_path):
    """own(name, weight) -> a reward with a function of a user's file beside the answer."""
    (tmp_path / "mine.py").write_text(BREVITY)

    def own(name, weight=0.2, file="mine.py"):
        return Reward(
            (
                *make_parts(answer=1.0),
                RewardPart("mine", weight, bound=20.0, function=f"{tmp_path / file}:{name}"),
            )
        )

    return own


def test_a_users_own_part_is_earned_beside_the_others(own):
    assert score("C", own("brevity"), n_tokens=5).parts == {
        "answer": 1.0,
        "mine": pytest.approx(0.2 * 0.75),
    }
    assert score("B", own("brevity"), n_tokens=40).total == 0.0
    assert (
        score("C", own("brevity"), n_tokens=5, is_finished=False).total == 0.0
    )  # what was cut off earns nothing
    assert score("C", own("brevity", -0.2), n_tokens=5, is_finished=False).total == pytest.approx(
        -0.15
    )  # and loses all the same
    assert (
        best(own("brevity").parts) == pytest.approx(1.2) and best(own("brevity", -0.2).parts) == 1.0
    )


@pytest.mark.parametrize(
    "name, file, words",
    [
        ("brevty", "mine.py", "no function 'brevty'.*nearest: 'brevity'"),
        ("brevity", "gone.py", "no such file"),
        ("brevity", "broken.py", "broken.py.*cannot be run: SyntaxError"),
        ("no name", "mine.py", "expected 'FILE.py:NAME'"),
    ],
)
def test_a_users_own_part_that_is_not_there_is_refused(name, file, words, own, tmp_path):
    (tmp_path / "broken.py").write_text("def brevity(:\n")
    with pytest.raises(ValueError, match=words):
        own(name, file=file)


@pytest.mark.parametrize("name", ["lavish", "nothing"])
def test_a_part_is_a_share(name, own):
    with pytest.raises(ValueError, match="part 'mine' gave (7|None) for an answer of 10 tokens"):
        score("C", own(name))


def test_a_users_own_part_has_a_name_of_its_own_and_counts_against_the_answer(own):
    with pytest.raises(ValueError, match="'format' is the program's own"):
        RewardPart("format", 0.1, function="mine.py:brevity")
    with pytest.raises(ValueError, match="answer [+] mine|Raise answer"):
        own("brevity", 1.0)


def test_the_order_in_which_a_config_names_parts_counts_for_nothing():
    """Not even for the last bit of a sum."""
    weights = dict(answer=1.0, letter=0.1, format=0.3)
    one, other = (
        RewardSettings("grpo", make_parts(**dict(order)))
        for order in (weights.items(), reversed(weights.items()))
    )
    assert one == other and [part.name for part in other.parts] == ["answer", "letter", "format"]
    assert (1.0 + 0.1) + 0.3 != (0.3 + 0.1) + 1.0
    totals = {
        score(" <R> because <R/> C", Reward(settings.parts)).total for settings in (one, other)
    }
    assert totals == {(1.0 + 0.1) + 0.3}


def test_the_form_alone_may_be_taught():
    assert best(Reward(make_parts(answer=0.0, letter=0.1, format=0.2)).parts) == pytest.approx(0.3)
