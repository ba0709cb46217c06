"""How good an answer is: exact match, token F1 and containment, with bootstrap intervals.

Answers are compared as the SQuAD evaluation script does, so figures compare with published ones.
In other scripts than Latin, punctuation is what Unicode calls so; in scripts without blanks, every
character counts as a word (:mod:`igsearch_env.words`), as in evaluations of Chinese and Korean.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from math import comb

import numpy as np
from numpy.typing import ArrayLike, NDArray

from igsearch_env.words import WORD_RULE, folded, pieces, without_punctuation, words

ANSWER_RULE = f"squad, {WORD_RULE}"
"""Name of the rule that answers are compared by, for manifests."""

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_CLOSED = frozenset({"yes", "no", "noanswer"})
_CHUNK = 1_000_000


@lru_cache(maxsize=4096)
def normalize_answer(text: str) -> str:
    """Fold, then drop punctuation, English articles and surplus blanks, as SQuAD does.

    Folding takes out case and what no reader sees, such as how an accent is spelled or how wide a
    letter is. Punctuation is ASCII's and, in other scripts than Latin, Unicode's categories P.

    >>> normalize_answer("The  Beatles!"), normalize_answer("“北京。”")
    ('beatles', '北京')
    """
    text = without_punctuation(folded(text).translate(_PUNCTUATION))
    return " ".join(_ARTICLES.sub(" ", text).split())


def exact_match(prediction: str | None, golden_answers: Sequence[str]) -> float:
    """1.0 if the normalised prediction equals a normalised golden answer, else 0.0.

    An answer that normalises to nothing (the grade "A", the sign "+") is compared as written,
    apart from case, so that an article alone cannot match another one.

    Args:
        prediction: The answer given; None or a blank one scores 0.0.
        golden_answers: Accepted answers.

    Raises:
        ValueError: If there are no golden answers, or they are one bare string.

    >>> exact_match("the Lima", ["Lima", "Ciudad de los Reyes"])
    1.0
    """
    return _best(_exact, prediction, golden_answers)


def f1_score(prediction: str | None, golden_answers: Sequence[str]) -> float:
    """F1 of the words of the normalised prediction, the highest over all golden answers.

    In scripts without blanks, the words are the characters.

    As in HotpotQA's evaluation, yes, no and noanswer get no credit for overlap: unless both sides
    are equal, F1 is 0 when either of them is one of the three. It is never below
    :func:`exact_match`, which says what the arguments are.

    >>> f1_score("city of Lima", ["Lima"]), f1_score("no doubt", ["no"])
    (0.5, 0.0)
    """
    return _best(_f1, prediction, golden_answers)


def cover_exact_match(prediction: str | None, golden_answers: Sequence[str]) -> float:
    """1.0 if the normalised prediction holds a normalised golden answer as a run of whole words.

    It is never below :func:`exact_match`, which says what the arguments are.

    >>> cover_exact_match("It is Lima, in Peru.", ["Lima"]), cover_exact_match("Limassol", ["Lima"])
    (1.0, 0.0)
    """
    return _best(_cover, prediction, golden_answers)


def contains_answer(text: str, golden_answers: Sequence[str]) -> bool:
    """Whether a text holds a golden answer, as a run of whole words, case aside.

    Every character that is neither letter, mark, digit nor underscore parts two words, so that
    "1939–1945" and "Spanish-American" hold "1945" and "American"; in scripts without blanks, every
    character is a word, and so is every emoji. Articles do not count unless the answer has no other
    word. An answer without any word ("+") is never found.

    Raises:
        ValueError: If there are no golden answers, or they are one bare string.

    >>> contains_answer("The war (1939–1945) ended.", ["1945"])
    True
    """
    return answer_finder(golden_answers)(text)


def answer_finder(golden_answers: Sequence[str]) -> Callable[[str], bool]:
    """:func:`contains_answer` of these answers, as a function of the text, for many texts.

    Raises:
        ValueError: If there are no golden answers, or they are one bare string.
    """
    _check(golden_answers)
    answers = [_answer_between_blanks(golden) for golden in golden_answers]
    answer_words = [kept.split() or whole.split() for whole, kept in answers]

    def found(text: str) -> bool:
        # Taking a text apart costs fifty times as much as looking for a word's letters, and most
        # documents lack them. Folding does no more to ASCII than lower() does.
        left = answers
        if text.isascii():
            letters, left = text.lower(), []
            for answer, parts in zip(answers, answer_words, strict=True):
                for word in parts:
                    if word not in letters:
                        break
                else:
                    left.append(answer)
        if not left:
            return False
        every, content = _between_blanks(text)
        return any(
            kept in content if kept.strip() else bool(whole.strip()) and whole in every
            for whole, kept in left
        )

    return found


def bootstrap_means(values: ArrayLike, seed: int = 0, samples: int = 1000) -> NDArray[np.float64]:
    """Means of resamples, drawn with replacement and as large as the sample.

    Args:
        values: One score per question, shape (questions,), finite.
        seed: Seed of the resampling.
        samples: How many times to resample, at least 1.

    Returns:
        The mean of each resample, shape (samples,).

    Raises:
        ValueError: If there are no values, one is not finite, or ``samples`` is out of range.
    """
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != 1 or not scores.size or not np.isfinite(scores).all():
        raise ValueError(
            "the bootstrap needs a non-empty one-dimensional array of finite values, "
            f"got shape {scores.shape}; leave out what was not scored"
        )
    if samples < 1:
        raise ValueError(f"the bootstrap needs samples >= 1, got {samples}")
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK // scores.size)  # so that a draw holds about a million indices
    means = np.empty(samples)
    for start in range(0, samples, rows):
        count = min(rows, samples - start)
        draw = rng.integers(scores.size, size=(count, scores.size))  # (count, questions)
        means[start : start + count] = scores[draw].mean(axis=1)
    return means


def bootstrap_interval(
    values: ArrayLike, seed: int = 0, samples: int = 1000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean; see :func:`bootstrap_means`.

    Args:
        values: One score per question, shape (questions,), finite.
        seed: Seed of the resampling.
        samples: How many times to resample.
        level: Coverage, between 0 and 1.

    Returns:
        The lower and the upper bound of the mean.

    Raises:
        ValueError: If there are no values, one is not finite, or an argument is out of range.

    >>> bootstrap_interval([1.0, 1.0, 1.0])
    (1.0, 1.0)
    """
    return percentile_interval(bootstrap_means(values, seed, samples), level)


def percentile_interval(means: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """The central interval that holds the share ``level`` of bootstrap means.

    Raises:
        ValueError: If ``level`` does not lie between 0 and 1.
    """
    if not 0.0 < level < 1.0:
        raise ValueError(f"the level of an interval must lie between 0 and 1, got {level}")
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(np.asarray(means), [tail, 1.0 - tail])
    return float(low), float(high)


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Probability that k of the samples of a question, drawn without replacement, hold a right one.

    It is the unbiased estimate of Chen et al. 2021 (arXiv 2107.03374, equation 1):
    ``1 - C(samples - right, k) / C(samples, k)``.

    Args:
        samples: Number of samples of the question.
        right: How many of them are right.
        k: Size of the draw, from 1 to ``samples``.

    Raises:
        ValueError: If the numbers do not fit together.

    >>> pass_at_k(4, 1, 2)
    0.5
    """
    if not 1 <= k <= samples or not 0 <= right <= samples:
        raise ValueError(
            "pass@k needs 1 <= k <= samples and 0 <= right <= samples, "
            f"got k = {k}, samples = {samples}, right = {right}"
        )
    return 1.0 - comb(samples - right, k) / comb(samples, k)


def _best(
    measure: Callable[[str, str], float], prediction: str | None, golden_answers: Sequence[str]
) -> float:
    _check(golden_answers)
    if prediction is None or not prediction.strip():
        return 0.0
    return max(measure(prediction, answer) for answer in golden_answers)


def _check(golden_answers: Sequence[str]) -> None:
    if isinstance(golden_answers, str) or not len(golden_answers):
        raise ValueError(
            "golden_answers must be a non-empty sequence of strings, "
            f"got {golden_answers!r}; wrap a single answer in a list"
        )


def _exact(prediction: str, answer: str) -> float:
    given, gold = normalize_answer(prediction), normalize_answer(answer)
    if not given and not gold:
        given, gold = folded(prediction).strip(), folded(answer).strip()
    return float(given == gold)


def _f1(prediction: str, answer: str) -> float:
    given, gold = normalize_answer(prediction), normalize_answer(answer)
    closed = given in _CLOSED or gold in _CLOSED
    if not given or not gold or given == gold or closed:
        return _exact(prediction, answer)
    given_words, gold_words = _split(given), _split(gold)
    shared = (Counter(given_words) & Counter(gold_words)).total()
    return 2.0 * shared / (len(given_words) + len(gold_words))


def _cover(prediction: str, answer: str) -> float:
    given, gold = normalize_answer(prediction), normalize_answer(answer)
    if not gold:
        return _exact(prediction, answer)
    return float(_spaced(_split(gold)) in _spaced(_split(given)))


def _split(normalized: str) -> list[str]:
    return [piece for part in normalized.split() for piece in pieces(part)]


@lru_cache(maxsize=4096)  # a document of the evidence pool is looked at again and again
def _between_blanks(text: str) -> tuple[str, str]:
    """The words of a text between blanks, with and without its articles."""
    every = words(text)
    return _spaced(every), _spaced([word for word in every if not _ARTICLES.fullmatch(word)])


# The same few answers are looked for in thousands of documents.
_answer_between_blanks = lru_cache(maxsize=4096)(_between_blanks)


def _spaced(every: list[str]) -> str:
    return f" {' '.join(every)} "
