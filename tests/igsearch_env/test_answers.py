import itertools
import string
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igsearch_env.answers import (
    bootstrap_interval,
    contains_answer,
    cover_exact_match,
    exact_match,
    f1_score,
    normalize_answer,
    pass_at_k,
)

# Text that is rich in what normalisation touches: articles, punctuation, accents, blanks.
WORDS = st.sampled_from(
    ["a", "The", "an", "Lima", "lima", "Café", "Cafe\u0301", "no", "yes", "x-y"]
)
PHRASES = st.lists(WORDS, max_size=5).map(" ".join)
TEXTS = st.one_of(st.text(max_size=20), PHRASES)
ANSWERS = st.lists(TEXTS, min_size=1, max_size=3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Beatles!", "beatles"),
        ("a U.S. state", "us state"),
        ("Theatre", "theatre"),
        ("O'Neill, an actor", "oneill actor"),
        ("1939–1945", "1939–1945"),  # only ASCII punctuation goes, as in SQuAD's script
        ("the", ""),
        ("Cafe\u0301", "café"),
        ("a\u0301", "á"),  # no article
    ],
)
def test_normalize_answer(text: str, expected: str) -> None:
    assert normalize_answer(text) == expected


@given(TEXTS)
def test_normalisation_is_stable_and_ignores_the_unicode_form(text: str) -> None:
    normal = normalize_answer(text)
    assert normalize_answer(normal) == normal
    assert normalize_answer(unicodedata.normalize("NFD", text)) == normal


@pytest.mark.parametrize(
    ("prediction", "answers", "em", "f1", "cover"),
    [
        ("Lima", ["lima."], 1.0, 1.0, 1.0),
        ("the city of Lima", ["Cusco", "Lima"], 0.0, 0.5, 1.0),
        ("Limassol", ["Lima"], 0.0, 0.0, 0.0),
        ("big red dog", ["red dog"], 0.0, 0.8, 1.0),
        ("dog red", ["red dog"], 0.0, 1.0, 0.0),
        ("dog dog dog", ["dog"], 0.0, 0.5, 1.0),
        ("yes", ["Yes"], 1.0, 1.0, 1.0),
        ("yes it is", ["yes"], 0.0, 0.0, 1.0),
        ("no", ["no idea"], 0.0, 0.0, 0.0),
        ("noanswer", ["noanswer here"], 0.0, 0.0, 0.0),
        ("", ["Lima"], 0.0, 0.0, 0.0),
        (None, ["Lima"], 0.0, 0.0, 0.0),
        ("A", ["A"], 1.0, 1.0, 1.0),  # normalises to nothing, as do the next three
        ("the", ["A"], 0.0, 0.0, 0.0),
        (" ", ["the"], 0.0, 0.0, 0.0),
        ("!", ["?"], 0.0, 0.0, 0.0),
    ],
)
def test_scores_of_answers(
    prediction: str | None, answers: list[str], em: float, f1: float, cover: float
) -> None:
    assert exact_match(prediction, answers) == em
    assert f1_score(prediction, answers) == pytest.approx(f1)
    assert cover_exact_match(prediction, answers) == cover


@given(TEXTS, ANSWERS)
def test_scores_are_ordered_and_never_fall_with_more_aliases(text: str, answers: list[str]) -> None:
    em, f1, cover = (m(text, answers) for m in (exact_match, f1_score, cover_exact_match))
    assert 0.0 <= em <= f1 <= 1.0
    assert em <= cover <= 1.0
    for measure, score in ((exact_match, em), (f1_score, f1), (cover_exact_match, cover)):
        assert measure(text, answers[:1]) <= score
        assert measure(text, [*answers, text]) == (1.0 if text.strip() else 0.0)


@given(TEXTS, TEXTS)
def test_f1_is_symmetric(one: str, other: str) -> None:
    if one.strip() and other.strip():
        assert f1_score(one, [other]) == f1_score(other, [one])


@pytest.mark.parametrize(
    ("text", "answers", "found"),
    [
        ("He was born in Lima, Peru.", ["lima"], True),
        ("He was born in Limassol.", ["Lima"], False),
        ("The war (1939–1945) ended.", ["1945"], True),
        ("Schindler’s List", ["Schindler's List"], True),
        ("songs by Beatles members", ["The Beatles"], True),
        ("The city of The Hague", ["city of Hague"], True),
        ("grade A beef", ["A"], True),
        ("grade B beef", ["A"], False),
        ("Cafe\u0301 Central", ["Café"], True),
        ("1 + 1", ["+"], False),
        ("Lima is in Peru", ["Peru Lima", "in Peru"], True),
    ],
)
def test_contains_answer(text: str, answers: list[str], found: bool) -> None:
    assert contains_answer(text, answers) is found


@pytest.mark.parametrize("measure", [exact_match, f1_score, cover_exact_match, contains_answer])
@pytest.mark.parametrize("answers", ["Lima", []])
def test_answers_must_be_a_non_empty_list(measure, answers) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="non-empty sequence"):
        measure("Lima", answers)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30), st.integers(0, 3))
def test_an_interval_lies_within_the_values(values: list[float], seed: int) -> None:
    low, high = bootstrap_interval(values, seed=seed, samples=50)
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9
    assert (low, high) == bootstrap_interval(values, seed=seed, samples=50)


def test_an_interval_matches_the_normal_approximation() -> None:
    values = np.random.default_rng(1).normal(2.0, 3.0, size=10_000)
    low, high = bootstrap_interval(values)
    error = 1.96 * values.std() / 100.0
    assert low == pytest.approx(values.mean() - error, abs=0.1 * error)
    assert high == pytest.approx(values.mean() + error, abs=0.1 * error)
    narrow = bootstrap_interval(values, level=0.5)
    assert low < narrow[0] < narrow[1] < high


@pytest.mark.parametrize(
    ("values", "options"),
    [
        ([], {}),
        ([[1.0]], {}),
        ([float("nan")], {}),
        ([1.0], {"samples": 0}),
        ([1.0], {"level": 1.0}),
    ],
)
def test_an_interval_needs_sound_arguments(values, options) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=r"the bootstrap needs|the level of an interval"):
        bootstrap_interval(values, **options)


def squad_normal_form(text: str) -> str:
    """The published rules, a character at a time: case, ASCII punctuation, articles, blanks."""
    kept = [char for char in text.lower() if char not in string.punctuation]
    words: list[str] = []
    for word, run in itertools.groupby(kept, key=lambda char: char.isalnum() or char == "_"):
        part = "".join(run)
        words.append(" " if word and part in ("a", "an", "the") else part)
    return " ".join("".join(words).split())


@given(TEXTS)
def test_normalisation_is_that_of_squad(text: str) -> None:
    composed = unicodedata.normalize("NFC", text)
    # Beyond English more is folded: ß is ss, and digits of other scripts are digits.
    english = all(
        char.isascii()
        or char.isspace()
        or (char.isalnum() and not char.isdecimal() and char.casefold() == char.lower())
        for char in composed
    )
    if english:
        assert normalize_answer(text) == squad_normal_form(composed)


@given(st.lists(st.booleans(), min_size=1, max_size=7), st.data())
def test_pass_at_k_counts_the_draws_that_hold_a_right_answer(
    right: list[bool], data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, len(right)))
    draws = list(itertools.combinations(right, k))
    expected = sum(map(any, draws)) / len(draws)
    assert pass_at_k(len(right), sum(right), k) == pytest.approx(expected)


def test_pass_at_k_by_hand() -> None:
    assert pass_at_k(5, 2, 1) == pytest.approx(2 / 5)
    assert pass_at_k(5, 2, 3) == pytest.approx(1 - 1 / 10)
    assert pass_at_k(5, 2, 4) == 1.0
    for wrong in ((0, 0, 1), (3, 4, 1), (3, 1, 0), (3, 1, 4), (3, -1, 1)):
        with pytest.raises(ValueError, match="pass@k needs"):
            pass_at_k(*wrong)


@given(
    st.text(st.sampled_from("aAtThe the.,1-+ "), max_size=30),
    st.lists(st.text(st.sampled_from("aAtThe.1+ "), min_size=1, max_size=8), min_size=1),
)
def test_whether_a_text_is_ascii_changes_nothing(text, answers):
    # A text with a letter beyond ASCII is taken apart; one without is only looked through first.
    assert contains_answer(text, answers) == contains_answer(f"{text} ñ", answers)
