"""Settling: which contexts are scored, exactly; and that online and offline agree."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from igsearch_env import (
    PROTOCOLS,
    AnswerScorer,
    Episode,
    EvidencePool,
    InformationGain,
    Question,
    SearchQAEnv,
    SearchQAVectorEnv,
    Segment,
    TagProtocol,
    UnigramScorer,
)
from igsearch_env.gain.information_gain import Counterfactual, limited
from igsearch_env.gain.scorer import _words
from igsearch_env.settings import make_engine
from tests.igsearch_env.fakes import (
    QUESTIONS,
    SWAP_PAIRS,
    FakeRetriever,
    FakeScorer,
    fake_log_probs,
    sampled,
    text_of,
)
from tests.igsearch_env.gain.test_information_gain import slow_reduce, slow_score

BARE = replace(PROTOCOLS["refine-bare"], answer_before="\n")
PERU = Question("peru", "Capital of Peru?", ("Lima", "City of Kings"))
TURNS = (
    "<think>hm</think><search> Peru </search>",
    "\n<refine>Lima rules</refine><search>Italy Norway</search>",
    "no action at all",
    "<search>broken</search>",
    "<search>Cuba</search>",
    "<refine>nothing</refine> <answer> Lima </answer>",
)


def play(
    turns: Sequence[str], protocol: TagProtocol = BARE, question: Question = PERU, **more: Any
) -> Episode:
    """Play turns, unsettled; every search is compared with both swapped pairs, in their order."""
    engine = make_engine(
        QUESTIONS, FakeRetriever(), None, protocol=protocol, num_counterfactuals=2, **more
    )
    episode = engine.rules.begin(question)
    for turn in turns:
        ((episode, _),) = engine.step([episode], [sampled(turn)])
        step = episode.steps[-1]
        if step.action == "search" and not step.retrieval_failed:
            step = replace(step, counterfactuals=SWAP_PAIRS)
            episode = replace(episode, steps=(*episode.steps[:-1], step))
    return episode


PAPER: dict[str, Any] = {"counterfactual": "documents+refinement", "added_only": False}


def settle(
    episode: Episode, scorer: AnswerScorer, protocol: TagProtocol = BARE, **options: Any
) -> Episode:
    """Settled in the paper's form, apart from the options."""
    (settled,) = InformationGain(protocol, **{**PAPER, **options}).settle([episode], scorer)
    return settled


PROMPT = "question : Capital of Peru?\n"
PERU_DOCUMENTS = "\n<documents>\n The seat of Peru is Lima.\n</documents>\n"
OTHERS = "\n<documents>\n The seat of Italy is Rome.\n The seat of Norway is Oslo.\n</documents>\n"
CUBA = "\n<documents>\n The seat of Cuba is Havana.\n</documents>\n"
KENYA = "\n<documents>\n Nairobi is in Kenya.\n So is Mombasa.\n</documents>\n"
JAPAN = "\n<documents>\n Tokyo is in Japan.\n</documents>\n"
FAILED = "\ninvalid : search failed\n"
CORRECTION = "\ninvalid : no complete action\n"
BEFORE = (  # what stands before the documents of each search, the failed one included
    PROMPT + TURNS[0],
    PROMPT + TURNS[0] + PERU_DOCUMENTS + TURNS[1],
    PROMPT + TURNS[0] + PERU_DOCUMENTS + TURNS[1] + OTHERS + TURNS[2] + CORRECTION + TURNS[3],
    PROMPT + TURNS[0] + PERU_DOCUMENTS + TURNS[1] + OTHERS + TURNS[2] + CORRECTION + TURNS[3]
    + FAILED + TURNS[4],
)  # fmt: skip
NAIROBI, TOKYO = (pair.refinement.text for pair in SWAP_PAIRS)


class TestContexts:
    def test_documents_and_refinement_are_swapped_together(self) -> None:
        scorer = FakeScorer()
        settle(play(TURNS), scorer)
        expected = [
            # The refinement keeps its leading line break; the others have none.
            BEFORE[0] + PERU_DOCUMENTS + "\n<refine>Lima rules</refine>" + "\n<answer>",
            BEFORE[0] + KENYA + NAIROBI + "\n<answer>",
            BEFORE[0] + JAPAN + TOKYO + "\n<answer>",
            # The turn after search 1 refines nothing, so nothing is put in its place.
            BEFORE[1] + OTHERS + "\n<answer>",
            BEFORE[1] + KENYA + "\n<answer>",
            BEFORE[1] + JAPAN + "\n<answer>",
            # Search 2 failed. Search 3 is followed by the answer, of which only the refinement.
            BEFORE[3] + CUBA + "<refine>nothing</refine>" + "\n<answer>",
            BEFORE[3] + KENYA + NAIROBI + "\n<answer>",
            BEFORE[3] + JAPAN + TOKYO + "\n<answer>",
        ]
        pairs = [(text, answer) for text in expected for answer in (" Lima", " City of Kings")]
        assert scorer.asked == pairs
        assert len(scorer.calls) == 1

    def test_one_pair_without_a_refinement_leaves_them_all_out(self) -> None:
        # Otherwise the gain would also measure that there is a refinement at all.
        scorer = FakeScorer()
        episode = play(["<search>Peru</search>", "<refine>Lima</refine><answer>Lima</answer>"])
        bare = replace(SWAP_PAIRS[0], refinement=Segment("", "policy", ()))
        step = replace(episode.steps[0], counterfactuals=(bare, SWAP_PAIRS[1]))
        settle(replace(episode, steps=(step, *episode.steps[1:])), scorer)
        before = PROMPT + "<search>Peru</search>"
        assert [text for text, _ in scorer.asked[::2]] == [
            before + documents + "\n<answer>" for documents in (PERU_DOCUMENTS, KENYA, JAPAN)
        ]

    def test_contexts_that_do_not_fit_leave_their_search_open(self) -> None:
        class Bounded(FakeScorer):
            def fits(self, contexts: Any, answers: Any) -> list[bool]:
                return ["Havana" not in text_of(context) for context in contexts]

        scorer = Bounded()
        gains = settle(play(TURNS), scorer).information_gains
        assert [gain is None for gain in gains] == [False, False, True, True]
        assert not any("Havana" in text for text, _ in scorer.asked)

    def test_documents_alone(self) -> None:
        scorer = FakeScorer()
        settle(play(TURNS), scorer, counterfactual="documents")
        expected = [
            before + documents + "\n<answer>"
            for before, real in (
                (BEFORE[0], PERU_DOCUMENTS),
                (BEFORE[1], OTHERS),
                (BEFORE[3], CUBA),
            )
            for documents in (real, KENYA, JAPAN)
        ]
        assert [text for text, _ in scorer.asked[::2]] == expected

    def test_the_last_search_of_a_truncated_episode_has_no_refinement(self) -> None:
        scorer = FakeScorer()
        episode = play(["x", "y", "<search>Peru</search>"], max_searches=1)
        assert episode.truncated
        assert settle(episode, scorer).searches[0].information_gain is not None
        before = PROMPT + "x" + CORRECTION + "y" + CORRECTION + "<search>Peru</search>"
        assert [text for text, _ in scorer.asked[::2]] == [
            before + documents + "\n<answer>" for documents in (PERU_DOCUMENTS, KENYA, JAPAN)
        ]

    def test_a_protocol_without_refinement_never_swaps_one(self) -> None:
        scorer = FakeScorer()
        search_r1 = PROTOCOLS["search-r1"]
        episode = play(["<search>Peru</search>", TURNS[-1]], search_r1)
        settle(episode, scorer, search_r1)
        texts = [text for text, _ in scorer.asked]
        assert len(texts) == 6
        assert not any("refine" in text for text in texts)
        assert all(text.endswith("</information>\n\n\n<answer>") for text in texts)

    def test_answer_lead_and_opening_are_those_of_the_protocol(self) -> None:
        scorer = FakeScorer()
        other = replace(BARE, answer="reply", answer_before=" So", answer_lead="> ")
        settle(play(["<search>Peru</search>", "<reply>x</reply>"], other), scorer, other)
        text, answer = scorer.asked[0]
        assert text.endswith(PERU_DOCUMENTS + " So<reply>")
        assert answer == "> Lima"

    def test_segments_keep_their_writers_and_the_sampled_ids(self) -> None:
        scorer = FakeScorer()
        episode = play(TURNS)
        settle(episode, scorer)
        real, _ = scorer.calls[0][0]
        swapped, _ = scorer.calls[0][2]
        for context in (real, swapped):
            assert [segment.source for segment in context] == [
                *("system", "policy", "document", "policy", "system")
            ]
            assert context[1] == episode.steps[0].turn
        assert swapped[3] == SWAP_PAIRS[0].refinement
        turn = episode.steps[1].turn.token_ids
        kept = real[3].token_ids
        assert turn is not None
        assert kept is not None
        assert 0 < len(kept) < len(turn)
        assert kept == turn[: len(kept)]

    def test_the_real_context_is_a_prefix_of_the_transcript(self) -> None:
        # So that the tokens of the rollout can be scored again as they are.
        scorer = FakeScorer()
        episode = play(TURNS)
        settle(episode, scorer)
        for index in (0, 6, 12):
            context = scorer.calls[0][index][0]
            shown = context[:-1] if context[-2].source == "document" else context[:-2]
            assert shown == episode.transcript[: len(shown)]


class TestNewOnly:
    """What a search adds to its context, and nothing else, is its gain."""

    def test_known_documents_are_left_out_one_by_one(self) -> None:
        scorer = FakeScorer()
        turns = ["<search>Peru</search>", "<search>Peru Cuba</search>", "<answer>x</answer>"]
        episode = play(turns)
        assert [document.id for document in episode.steps[1].documents] == ["d-Peru", "d-Cuba"]
        InformationGain(BARE).settle([episode], scorer)
        shown = episode.steps[1].observation
        assert shown is not None
        before = PROMPT + turns[0] + PERU_DOCUMENTS + turns[1]
        assert [text for text, _ in scorer.asked[6::2]] == [
            before + CUBA + "\n<answer>",
            # As many of the others as count of the real ones.
            before + KENYA.replace("\n So is Mombasa.", "") + "\n<answer>",
            before + JAPAN + "\n<answer>",
        ]

    def test_a_document_under_another_id_is_known(self) -> None:
        episode = play(["<search>Peru</search>", "<search>Peru</search>", "<answer>x</answer>"])
        same = tuple(replace(one, id="another") for one in episode.steps[1].documents)
        steps = (episode.steps[0], replace(episode.steps[1], documents=same), episode.steps[2])
        gains = settle(
            replace(episode, steps=steps), FakeScorer(), added_only=True
        ).information_gains
        assert gains[0] is not None
        assert gains[1] is None

    def test_known_in_an_earlier_attempt(self) -> None:
        turns = ["<search>Peru</search>", "<answer>x</answer>"] * 2
        episode = play(turns, max_attempts=2)
        first, second = settle(episode, FakeScorer(), added_only=True).information_gains
        assert (first is None, second is None) == (False, True)

    def test_a_gain_ends_at_the_highest_belief_before(self) -> None:
        beliefs = {"Peru": -4.0, "Italy": -1.5, "Cuba": -2.0, "Fiji": -1.0}

        class Believing(FakeScorer):
            def log_probs(self, contexts: Any, answers: Any) -> Any:
                texts = [context[-2].text for context in contexts]  # the latest documents
                found = ([v for k, v in beliefs.items() if k in text] for text in texts)
                return [np.array([max(values, default=-5.0)]) for values in found]

        searches = [f"<search>{name}</search>" for name in beliefs]
        episode = play([*searches, "<answer>x</answer>"])
        settled = settle(
            episode, Believing(), added_only=True, counterfactual="documents", floor=None
        )
        # All are at -5 with other documents; -2 is no rise after -1.5, and -1 one of .5.
        assert settled.information_gains == (1.0, 2.5, 0.0, 0.5)
        assert [step.best_log_prob for step in settled.searches] == [None, -4.0, -1.5, -1.5]
        paper = settle(episode, Believing(), floor=None)
        assert paper.information_gains == (1.0, 3.5, 3.0, 4.0)

    def test_a_loss_stays_a_loss(self) -> None:
        assert limited(-0.5, -3.0, -1.0) == -0.5
        assert limited(0.5, -3.0, None) == 0.5


def slow_contexts(episode: Episode, index: int, gain: InformationGain) -> list[str]:
    """The real context of step ``index`` and the others, from the transcript's text alone."""
    text = episode.prompt.text
    known = set()
    for number, step in enumerate(episode.steps):
        text += step.turn.text
        if number == index:
            break
        assert step.observation is not None
        text += step.observation.text
        known |= {document.id for document in step.documents if gain.added_only}
    refinement = ""
    if gain.counterfactual == "documents+refinement" and index + 1 < len(episode.steps):
        turn = episode.steps[index + 1].turn.text
        if gain.protocol.refine and turn.lstrip().startswith("<refine>"):
            refinement = turn[: turn.index("</refine>") + len("</refine>")]
    step = episode.steps[index]
    found = [document for document in step.documents if document.id not in known]
    if not found:
        return []
    result = [text + gain.protocol.render_documents(found).text + refinement]
    for evidence in step.counterfactuals:
        others = evidence.documents[: len(found) if gain.added_only else None]
        swapped = gain.protocol.render_documents(others).text
        result.append(text + swapped + (evidence.refinement.text if refinement else ""))
    return [context + "\n<answer>" for context in result]


def slow_log_probs(scorer: AnswerScorer, context: str, answer: str) -> list[float]:
    if isinstance(scorer, FakeScorer):
        return fake_log_probs(context, answer)
    assert isinstance(scorer, UnigramScorer)
    words = set(_words(context))
    result = []
    for word in _words(answer):
        share = scorer.smoothing / scorer.vocabulary_size
        result.append(math.log((float(word in words) + share) / (len(words) + scorer.smoothing)))
    return result


def slow_settled(
    episode: Episode, scorer: AnswerScorer, gain: InformationGain
) -> list[tuple[float, float, list[float]] | None]:
    """Gain, log-prob and baselines of every search, one context and one alias at a time."""
    floor = -math.log(scorer.vocabulary_size) if gain.floor == "uniform" else gain.floor
    result: list[tuple[float, float, list[float]] | None] = []
    for index, step in enumerate(episode.steps):
        if step.action != "search":
            continue
        if step.retrieval_failed:
            result.append(None)
            continue
        contexts = slow_contexts(episode, index, gain)
        if not contexts:
            result.append(None)
            continue
        table = []  # (aliases, 1 + N)
        for alias in episode.question.golden_answers:
            row = []
            for context in contexts:
                values = slow_log_probs(scorer, context, f" {alias}")
                row.append(slow_score(values, gain.head_tokens, gain.head_weight, floor))
            table.append(row)
        real, rows = [row[0] for row in table], [row[1:] for row in table]
        value, after, others = slow_reduce(real, rows, gain.aliases)
        earlier = [values[1] for values in result if values is not None]
        if (
            gain.added_only and earlier and value > 0
        ):  # no more than what it adds to the best before
            value = min(value, max(after - max(earlier), 0.0))
        result.append((value, after, others))
    return result


@pytest.mark.parametrize(
    "scorer", [UnigramScorer(500, 0.5), FakeScorer(5000)], ids=["unigram", "fake"]
)
@pytest.mark.parametrize(
    "gain",
    [
        InformationGain(BARE),
        InformationGain.paper(BARE),
        InformationGain(BARE, "documents+refinement"),
        InformationGain(BARE, aliases="logmeanexp", floor=-2.5),
        InformationGain(BARE, aliases="best_real", head_tokens=1, head_weight=3.0),
        InformationGain(BARE, "documents", aliases="logmeanexp", head_tokens=2, head_weight=0.5),
    ],
    ids=["default", "paper", "refinement", "floor", "head", "documents-head"],
)
@pytest.mark.parametrize("again", [(), ("<search>Norway</search>", "<search>Norway Cuba</search>")])
def test_values_agree_with_plain_loops(
    gain: InformationGain, scorer: Any, again: tuple[str, ...]
) -> None:
    episode = play((*TURNS[:-1], *again, TURNS[-1]), max_searches=6)
    (settled,) = gain.settle([episode], scorer)
    expected = slow_settled(episode, scorer, gain)
    assert len(settled.searches) == len(expected) == 4 + len(again)
    assert [values is None for values in expected][4:] == [gain.added_only, gain.added_only][
        : len(again)
    ]
    assert expected[2] is None
    for step, values in zip(settled.searches, expected, strict=True):
        if values is None:
            assert (step.information_gain, step.log_prob, step.baseline_log_probs) == (None,) * 3
            continue
        assert step.information_gain == pytest.approx(values[0], abs=1e-9)
        assert step.log_prob == pytest.approx(values[1], abs=1e-9)
        assert step.baseline_log_probs == pytest.approx(values[2], abs=1e-9)
        assert type(step.information_gain) is float


def test_the_unigram_gain_by_hand() -> None:
    # Prompt "question : Capital of Peru ?" (6 words), turn "< search > Peru < / search >" (4 more),
    # the wrapper "< documents > ... < / documents >" (1) and "< answer >" (1): 12 words around.
    episode = play(
        ["<search>Peru</search>", "<answer>x</answer>"],
        question=replace(PERU, golden_answers=("Lima",)),
    )
    settled = settle(episode, UnigramScorer(100, 1.0), floor=None).searches[0]
    real = math.log((1 + 0.01) / (12 + 5 + 1))  # "The seat of Peru is Lima ."
    kenya = math.log(0.01 / (12 + 7 + 1))  # "Nairobi is in Kenya . So is Mombasa ."
    japan = math.log(0.01 / (12 + 5 + 1))  # "Tokyo is in Japan ."
    assert settled.log_prob == pytest.approx(real)
    assert settled.baseline_log_probs == pytest.approx((kenya, japan))
    assert settled.information_gain == pytest.approx(real - (kenya + japan) / 2)


def test_the_uniform_floor_is_that_of_a_uniform_guess() -> None:
    lima = replace(PERU, golden_answers=("Lima",))
    episode = play(["<search>Peru</search>", "<answer>x</answer>"], question=lima)
    scorer = UnigramScorer(100, 1.0)
    floored = settle(episode, scorer).searches[0]
    assert floored.baseline_log_probs == pytest.approx((-math.log(100),) * 2)
    assert settle(episode, scorer, floor=-2.0).searches[0].baseline_log_probs == (-2.0, -2.0)
    bare = settle(episode, scorer, floor=None).searches[0].baseline_log_probs
    assert bare is not None
    assert max(bare) < -math.log(100)


class TestWhatIsDue:
    def test_a_search_without_a_next_turn_waits_for_its_refinement(self) -> None:
        scorer = FakeScorer()
        episode = play(TURNS[:1])
        assert settle(episode, scorer) == episode
        assert scorer.calls == []
        at_once = settle(episode, scorer, counterfactual="documents")
        assert at_once.searches[0].information_gain is not None

    def test_later_steps_change_nothing(self) -> None:
        first = settle(play(TURNS[:2]), FakeScorer()).searches[0]
        late = settle(play(TURNS), FakeScorer()).searches[0]
        assert first.information_gain is not None
        assert first == late

    def test_settling_again_does_nothing(self) -> None:
        once = settle(play(TURNS), FakeScorer())
        again = FakeScorer(7)
        assert settle(once, again) == once
        assert again.calls == []

    def test_only_what_is_wanted_is_settled(self) -> None:
        episode, scorer = play(TURNS), FakeScorer()
        whole = settle(episode, FakeScorer())
        gain, searches = InformationGain(BARE, **PAPER), len(episode.searches)
        wanted = [number == 1 for number in range(searches)]
        (found,) = gain.settle([episode], scorer, [wanted])
        for number, (one, other) in enumerate(zip(found.searches, whole.searches, strict=True)):
            assert one.information_gain == (other.information_gain if number == 1 else None)
        assert found.searches[1].information_gain is not None
        for rows in ([], [wanted[:-1]], [[*wanted, True]], [True]):
            with pytest.raises(ValueError, match=rf"so rows of \[{searches}\]"):
                gain.settle([episode], scorer, rows)  # type: ignore[arg-type]

    def test_only_what_is_open_is_settled(self) -> None:
        part = settle(play(TURNS[:2]), FakeScorer())
        rest = replace(play(TURNS), steps=(part.steps[0], *play(TURNS).steps[1:]))
        scorer = FakeScorer()
        assert settle(rest, scorer) == settle(play(TURNS), FakeScorer())
        assert len(scorer.asked) == 2 * 3 * 2  # two searches, three contexts, two aliases

    def test_searches_without_counterfactuals_stay_open(self) -> None:
        episode = play(TURNS)
        bare = replace(
            episode, steps=tuple(replace(step, counterfactuals=()) for step in episode.steps)
        )
        scorer = FakeScorer()
        assert settle(bare, scorer).information_gains == (None,) * 4
        assert scorer.calls == []

    def test_a_failed_search_stays_open_whatever_it_is_compared_with(self) -> None:
        episode = play(["<search>broken</search>", "<answer>Lima</answer>"])
        step = replace(episode.steps[0], counterfactuals=SWAP_PAIRS)
        episode = replace(episode, steps=(step, *episode.steps[1:]))
        assert settle(episode, FakeScorer()) == episode

    def test_a_batch_is_one_call_and_comes_back_in_order(self) -> None:
        short = play(["<search>Peru</search>", "<answer>Lima</answer>"])
        bare = play(["<answer>Lima</answer>"])
        batch = [play(TURNS), bare, short]
        scorer = FakeScorer()
        settled = InformationGain(BARE, **PAPER).settle(batch, scorer)
        assert len(scorer.calls) == 1
        assert settled == [settle(episode, FakeScorer()) for episode in batch]
        assert InformationGain(BARE, **PAPER).settle([], scorer) == []

    def test_episodes_with_other_numbers_of_counterfactuals_and_aliases(self) -> None:
        few = play(["<search>Peru</search>", "<answer>Lima</answer>"])
        step = replace(few.steps[0], counterfactuals=SWAP_PAIRS[:1])
        few = replace(few, steps=(step, *few.steps[1:]))
        more = replace(PERU, golden_answers=("Lima", "Kings", "Ciudad de los Reyes"))
        other = play(["<search>Peru</search>", "<answer>Lima</answer>"], question=more)
        gain = InformationGain(BARE, **PAPER)
        for episode, settled in zip(
            [few, other], gain.settle([few, other], FakeScorer()), strict=True
        ):
            (expected,) = slow_settled(episode, FakeScorer(), gain)
            assert expected is not None
            assert settled.searches[0].information_gain == pytest.approx(expected[0])
            assert len(settled.searches[0].baseline_log_probs or ()) == len(expected[2])


CHOICES = (
    "<search>Peru</search>",
    "<refine>r1</refine><search>Italy Norway</search>",
    "<refine>r2 Kenya</refine><search>Kenya</search>",
    "<search>Cuba Japan</search> and more",
    "<search>Atlantis</search>",
    "<search>broken</search>",
    "no action",
    "<refine>r3</refine>no action",
    "<answer>Lima</answer>",
    "<refine>r4</refine><answer>Rome</answer>",
)


def script(seed: int) -> list[str]:
    """Random turns, most of them searches."""
    rng = random.Random(seed)
    return [sampled(rng.choices(CHOICES, [4, 4, 4, 4, 1, 1, 1, 1, 1, 1])[0]) for _ in range(40)]


def arguments(counterfactual: Counterfactual, scorer: AnswerScorer | None) -> dict[str, Any]:
    return {
        "questions": QUESTIONS,
        "retriever": FakeRetriever(),
        "scorer": scorer,
        "counterfactual": counterfactual,
        "max_searches": 3,
        "num_counterfactuals": 2,
        "pool": EvidencePool(seed=5),
    }


def play_singly(scorer: AnswerScorer | None, counterfactual: Counterfactual) -> list[Episode]:
    env = SearchQAEnv(**arguments(counterfactual, scorer))
    episodes = []
    for number in range(12):
        env.reset(seed=3 if number == 0 else None)
        turns = iter(script(number))
        while not env.episode.finished:
            env.step(next(turns))
        episodes.append(env.episode)
    return episodes


def play_side_by_side(scorer: AnswerScorer | None, counterfactual: Counterfactual) -> list[Episode]:
    env = SearchQAVectorEnv(4, **arguments(counterfactual, scorer))
    episodes: list[Episode] = []
    for number in range(3):
        env.reset(seed=3 if number == 0 else None)
        for turns in zip(*(script(10 * number + row) for row in range(4)), strict=True):
            if all(episode.finished for episode in env.episodes):
                break
            env.step(turns)
        episodes += env.episodes
    return episodes


@pytest.mark.parametrize("counterfactual", ["documents+refinement", "documents"])
@pytest.mark.parametrize("play_all", [play_singly, play_side_by_side])
@pytest.mark.parametrize("scorer", [UnigramScorer(500), FakeScorer()], ids=["unigram", "fake"])
def test_online_and_offline_agree(
    play_all: Any, counterfactual: Counterfactual, scorer: Any
) -> None:
    online = play_all(scorer, counterfactual)
    unsettled = play_all(None, counterfactual)
    assert {gain for episode in unsettled for gain in episode.information_gains} == {None}
    offline = InformationGain(counterfactual=counterfactual).settle(unsettled, scorer)
    assert offline == online  # gains, log-probs, rewards, draws: everything

    gains = [gain for episode in online for gain in episode.information_gains]
    assert sum(gain is not None for gain in gains) >= 15
    # The unigram model is below the floor wherever the answer does not occur.
    assert len({gain for gain in gains if gain}) >= (2 if isinstance(scorer, UnigramScorer) else 15)
    assert any(episode.truncated for episode in online)
    for episode in online:
        known: set[str] = set()
        for search in episode.searches:
            # A search stays open if it failed, found nothing new, or the cold pool had nothing.
            found = {document.id for document in search.documents}
            open_ = search.retrieval_failed or found <= known or not search.counterfactuals
            assert (search.information_gain is None) == open_
            known |= found


def test_the_fake_scorer_tells_contexts_apart() -> None:
    assert fake_log_probs("a", " x") != fake_log_probs("b", " x")
    assert text_of((Segment("a", "policy"), Segment("b", "system"))) == "ab"
