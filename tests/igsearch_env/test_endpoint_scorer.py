"""The scorer at an endpoint against the local one, both with the shipped policy.

vLLM, SGLang and llama.cpp are not at hand: :class:`ServedPolicy` is a small HTTP server that stands
in for the three, with the answers that each gives of a prompt, from a transformers model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from agents.loading import load_tokenizer
from agents.scoring.one_by_one import OneByOneScorer
from agents.tokenization import SegmentTokenizer
from igsearch_env import InformationGain
from igsearch_env.endpoint import Dialect
from igsearch_env.endpoint.client import Endpoint
from igsearch_env.endpoint.errors import EndpointError
from igsearch_env.endpoint.scorer import EndpointScorer
from igsearch_env.episode import Context, Episode, Segment
from igsearch_env.gain.belief import settle_belief
from igsearch_env.gain.prompt_scorer import answer_log_probs, checked
from igsearch_env.protocol.tags import PROTOCOLS
from igsearch_env.settings import make_engine
from igsearch_env.testing import check_scorer
from tests.igsearch_env.fakes import PERU, QUESTIONS, FakeRetriever
from tests.scripted_server import ScriptedServer

POLICY = Path(__file__).resolve().parents[2] / "agents" / "world-tiny"
DIALECTS: tuple[Dialect, ...] = ("vllm", "sglang", "llama.cpp")
PROTOCOL = PROTOCOLS["refine-bare"]
Body = dict[str, Any]


class ServedPolicy(ScriptedServer):
    """Stands in for vLLM, SGLang and llama.cpp: their log-probs of a prompt, from one model.

    ``spoil`` may change the answer to a request, given its number.
    """

    def __init__(self, model: Any, tables: dict[tuple[int, ...], torch.Tensor]) -> None:
        super().__init__()
        self.model, self.tables = model, tables
        self.spoil: Callable[[int, Any], Any] = lambda number, answer: answer
        self.answer = self._answer

    @torch.no_grad()
    def _table(self, ids: Sequence[int]) -> torch.Tensor:
        """Log-probs of every token after each prefix, shape (tokens, vocabulary)."""
        key = tuple(ids)
        if key not in self.tables:
            logits = self.model(input_ids=torch.tensor([key])).logits[0]
            self.tables[key] = torch.log_softmax(logits.float(), dim=-1)
        return self.tables[key]

    def _answer(self, number: int, body: Body) -> tuple[int, Any] | None:
        path = self.paths[number].removeprefix("/v1")
        give = {"/completions": self._vllm, "/generate": self._sglang, "/completion": self._llama}
        answer = self.spoil(number, (200, give[path](body)))
        return answer if answer is None or isinstance(answer, tuple) else (200, answer)

    def _vllm(self, body: Body) -> Any:
        assert (body["prompt_logprobs"], body["temperature"]) == (0, 1.0)
        choices = []
        for index, ids in enumerate(body["prompt"]):
            table = self._table(ids)
            known: list[Any] = [None]
            for at, token in enumerate(ids[1:]):
                value = max(float(table[at, token]), -9999.0)
                known.append({str(token): {"logprob": value, "rank": 1, "decoded_token": "x"}})
            choices.append({"index": index, "text": "x", "prompt_logprobs": known})
        return {"choices": choices[::-1]}  # their order is not promised, their index is

    def _sglang(self, body: Body) -> Any:
        ids, start = body["input_ids"], body["logprob_start_len"]
        assert body["return_logprob"]
        table = self._table(ids)
        rows: list[Any] = [[None, ids[start], None]]
        rows += [
            [float(table[at - 1, ids[at]]), ids[at], None] for at in range(start + 1, len(ids))
        ]
        return {"text": "x", "meta_info": {"input_token_logprobs": rows}}

    def _llama(self, body: Body) -> Any:
        assert (body["n_predict"], body["post_sampling_probs"]) == (1, False)
        table = self._table(body["prompt"])[-1]
        biased = table.clone()
        for token, bias in body["logit_bias"]:
            biased[token] += bias
        chosen = int(biased.argmax())
        row = {"id": chosen, "token": "x", "logprob": float(table[chosen])}
        return {"completion_probabilities": [row]}


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(POLICY, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer() -> SegmentTokenizer:
    return load_tokenizer(POLICY)


@pytest.fixture(scope="module")
def local(model: Any, tokenizer: SegmentTokenizer) -> OneByOneScorer:
    return OneByOneScorer(model, tokenizer)


@pytest.fixture(scope="module")
def tables() -> dict[tuple[int, ...], torch.Tensor]:
    """What the model says of each prompt; many tests ask for the same ones."""
    return {}


@pytest.fixture
def served(model: Any, tables: dict[tuple[int, ...], torch.Tensor]) -> Iterator[ServedPolicy]:
    one = ServedPolicy(model, tables)
    yield one
    one.close()


def scorer(
    served: ServedPolicy, tokenizer: SegmentTokenizer, dialect: Dialect = "vllm", **options: Any
) -> EndpointScorer:
    url = served.url if dialect == "vllm" else served.url.removesuffix("/v1")
    limits = {name: options.pop(name) for name in ("retries", "timeout") if name in options}
    endpoint = Endpoint(url, first_pause=0.001, longest_pause=0.01, **{"retries": 1, **limits})
    return EndpointScorer(endpoint, "tiny", tokenizer, dialect=dialect, **options)


@cache
def searched(turns: tuple[str, ...]) -> Episode:
    """An episode with documents and counterfactual evidence, without gains."""
    engine = make_engine(
        QUESTIONS,
        FakeRetriever(),
        None,
        protocol=PROTOCOL,
        num_counterfactuals=2,
        counterfactual="documents",
    )
    episode = engine.rules.begin(PERU)
    for turn in turns:
        ((episode, _),) = engine.step([episode], [turn])
    return episode


TURNS = ("<search> Peru </search>", "<search> Italy Cuba </search>", "<answer> Lima </answer>")


@cache
def pairs() -> tuple[list[Context], list[str]]:
    """Contexts that share prefixes, with answers of one token and of more, some of them twice."""
    gain = InformationGain(PROTOCOL, "documents")
    episode = searched(TURNS)
    contexts = [c for index in (0, 1) for c in gain.contexts(episode, index)]
    answers = [" Lima", " Fatos Branson"]
    every = [(context, answer) for context in contexts for answer in answers]
    every += every[:4]
    return [context for context, _ in every], [answer for _, answer in every]


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_it_equals_the_local_scorer(
    served: ServedPolicy,
    tokenizer: SegmentTokenizer,
    local: OneByOneScorer,
    dialect: Dialect,
    batch: int,
) -> None:
    contexts, answers = pairs()
    remote = scorer(served, tokenizer, dialect, batch=batch)
    found, expected = remote.log_probs(contexts, answers), local.log_probs(contexts, answers)
    assert len({len(scores) for scores in expected}) > 1
    for one, other in zip(found, expected, strict=True):
        assert one is not None
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)
    assert remote.vocabulary_size == local.vocabulary_size
    assert remote.counts["failed"] == 0


def test_it_keeps_the_promises_of_a_scorer(
    served: ServedPolicy, tokenizer: SegmentTokenizer
) -> None:
    check_scorer(scorer(served, tokenizer))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_gains_and_beliefs_are_those_of_the_local_scorer(
    served: ServedPolicy, tokenizer: SegmentTokenizer, local: OneByOneScorer, dialect: Dialect
) -> None:
    gain = InformationGain(PROTOCOL, "documents", floor=-30.0)
    episode = searched(TURNS)
    remote = scorer(served, tokenizer, dialect)
    (found,), (expected,) = gain.settle([episode], remote), gain.settle([episode], local)
    assert None not in expected.information_gains
    assert found.information_gains == pytest.approx(expected.information_gains, abs=1e-5)
    assert any(abs(value or 0) > 1e-3 for value in expected.information_gains)
    (found,), (expected,) = (settle_belief([episode], one, gain) for one in (remote, local))
    assert found.prior_log_prob == pytest.approx(expected.prior_log_prob, abs=1e-5)


def test_what_is_asked(served: ServedPolicy, tokenizer: SegmentTokenizer) -> None:
    contexts, answers = pairs()
    scorer(served, tokenizer, batch=4, concurrency=1).log_probs(contexts, answers)
    prompts = [tuple(ids) for body in served.asked for ids in body["prompt"]]
    assert len(prompts) == len(set(prompts)) == len(contexts) - 4  # what is there twice, once
    assert prompts == sorted(prompts)  # neighbours share prefixes
    assert [len(body["prompt"]) for body in served.asked] == [4, 4, 4]
    assert {body["model"] for body in served.asked} == {"tiny"}
    encoded, _ = tokenizer.encode_all_scored(contexts, answers)
    assert {tuple(ids) for ids, _ in encoded} == set(prompts)


def test_sglang_is_asked_for_the_answer_alone_one_prompt_after_another(
    served: ServedPolicy, tokenizer: SegmentTokenizer
) -> None:
    contexts, answers = pairs()
    scorer(served, tokenizer, "sglang", concurrency=1).log_probs(contexts, answers)
    prompts = [tuple(body["input_ids"]) for body in served.asked]
    assert prompts == sorted(set(prompts))
    counts = {tuple(ids): n for ids, n in tokenizer.encode_all_scored(contexts, answers)[0]}
    for body in served.asked:
        ids = tuple(body["input_ids"])
        assert body["logprob_start_len"] == len(ids) - counts[ids] - 1


def test_the_ids_that_were_sampled_are_scored(
    served: ServedPolicy, tokenizer: SegmentTokenizer
) -> None:
    odd = (5, 6, 7)  # a text that would be tokenised otherwise
    context = (Segment("abc", "policy", odd), Segment("<answer>", "system"))
    scorer(served, tokenizer).log_probs([context], [" Lima"])
    (ids,) = served.asked[0]["prompt"]
    assert tuple(ids[: len(odd)]) == odd


def without(answer: Any, *keys: Any) -> Any:
    """A copy of an answer with something deep inside it gone."""
    copied = json.loads(json.dumps(answer))
    place = copied
    for key in keys[:-1]:
        place = place[key]
    del place[keys[-1]]
    return copied


SPOILT: dict[str, Callable[[Any], Any]] = {
    "status": lambda answer: (500, {"error": "out of memory"}),
    "refused": lambda answer: (400, {"error": {"message": "too many tokens in the prompt"}}),
    "hung up": lambda answer: None,
    "no JSON": lambda answer: (200, b"<html>"),
    "empty": lambda answer: {},
    "no choices": lambda answer: {"choices": []},
    "no table": lambda answer: {"choices": [{"index": 0, "prompt_logprobs": None}]},
    "short": lambda answer: without(answer[1], "choices", 0, "prompt_logprobs", 3),
    "other tokens": lambda answer: json.loads(json.dumps(answer[1]).replace('"logprob"', '"x"')),
    "certain": lambda answer: {
        "choices": [{"index": 0, "prompt_logprobs": [{"1": {"logprob": 0.0}}] * 999}]
    },
    "text": lambda answer: json.loads(
        json.dumps(answer[1])
        .replace('"logprob": -', '"logprob": "-')
        .replace(', "rank"', '", "rank"')
    ),
    "above 0": lambda answer: json.loads(
        json.dumps(answer[1]).replace('"logprob": -', '"logprob": ')
    ),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_a_failure_is_a_missing_gain_and_is_counted(
    served: ServedPolicy, tokenizer: SegmentTokenizer, local: OneByOneScorer, kind: str
) -> None:
    """One of the requests of the second search fails; the first one's gain is what it was."""
    gain = InformationGain(PROTOCOL, "documents", floor=-30.0)
    episode = searched(TURNS)
    (expected,) = gain.settle([episode], local)
    remote = scorer(served, tokenizer, batch=1, concurrency=1, retries=0)
    order = sorted(
        (tuple(ids), index)
        for index in (0, 1)
        for ids, _ in tokenizer.encode_all_scored(gain.contexts(episode, index), [" Lima"] * 3)[0]
    )
    last = max(place for place, (_, index) in enumerate(order) if index == 1)
    served.spoil = lambda number, answer: SPOILT[kind](answer) if number == last else answer
    (found,) = gain.settle([episode], remote)
    first, second = found.searches
    assert (second.information_gain, second.log_prob) == (None, None)
    assert remote.counts["failed"] >= 1
    assert remote.failure
    assert f"{remote.counts['failed']} failed; the last because" in remote.summary()
    if kind != "hung up":  # the rest is not asked of a server that is gone
        assert first.information_gain == pytest.approx(expected.information_gains[0], abs=1e-5)
    served.spoil = lambda number, answer: answer  # and is there when the server is back
    (again,) = gain.settle([found], remote)
    assert again.information_gains == pytest.approx(expected.information_gains, abs=1e-5)


def test_one_prompt_that_is_refused_does_not_cost_the_others_of_its_request(
    served: ServedPolicy, tokenizer: SegmentTokenizer, local: OneByOneScorer
) -> None:
    contexts, answers = pairs()
    longest = max(len(ids) for ids, _ in tokenizer.encode_all_scored(contexts, answers)[0])

    def refuse(number: int, answer: Any) -> Any:
        if any(len(ids) == longest for ids in served.asked[number]["prompt"]):
            return 400, {"error": {"message": "the prompt is longer than the context length"}}
        return answer

    served.spoil = refuse
    remote = scorer(served, tokenizer, batch=8)
    found, expected = remote.log_probs(contexts, answers), local.log_probs(contexts, answers)
    encoded, _ = tokenizer.encode_all_scored(contexts, answers)
    for one, other, (ids, _) in zip(found, expected, encoded, strict=True):
        assert (one is None) == (len(ids) == longest)
        if one is not None:
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)
    # Where the length is known, such contexts are left out beforehand.
    known = scorer(served, tokenizer, max_length=longest)
    assert known.fits(contexts, answers) == [len(ids) < longest for ids, _ in encoded]


def test_a_server_that_goes_away_is_not_asked_for_the_rest(
    served: ServedPolicy, tokenizer: SegmentTokenizer
) -> None:
    contexts, answers = pairs()
    remote = scorer(served, tokenizer, batch=1, concurrency=1, retries=2)
    served.spoil = lambda number, answer: answer if number < 3 else (503, {})
    found = remote.log_probs(contexts, answers)
    assert len(served.asked) == 3 + 3  # the fourth prompt and its repetitions
    scored = [one for one in found if one is not None]
    assert 3 <= len(scored) < len(found)
    assert remote.counts["failed"] == remote.counts["answers"] - 3


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((401, {"error": {"message": "no key"}}), "scored no answer .*no key"),
        ((404, {"error": {"message": "no such model"}}), "no such model"),
        ({"choices": [{"text": "no log-probs here"}]}, "does not hold the log-probs"),
    ],
)
def test_one_that_never_scored_anything_is_an_error(
    served: ServedPolicy, tokenizer: SegmentTokenizer, answer: Any, said: str
) -> None:
    served.spoil = lambda number, whole: answer
    with pytest.raises(EndpointError, match=said):
        scorer(served, tokenizer).log_probs(*pairs())


@pytest.mark.parametrize("dialect", ["sglang", "llama.cpp"])
def test_other_tokens_than_were_asked_for_are_no_score(
    served: ServedPolicy, tokenizer: SegmentTokenizer, dialect: Dialect
) -> None:
    contexts, answers = pairs()
    remote = scorer(served, tokenizer, dialect, concurrency=1)
    remote.log_probs(contexts[:1], answers[:1])

    def other(number: int, answer: Any) -> Any:
        told = answer[1]
        for row in told.get("meta_info", {}).get("input_token_logprobs", ()):
            row[1] += 1
        for row in told.get("completion_probabilities", ()):
            row["id"] += 1
        return told

    served.spoil = other
    assert remote.log_probs(contexts[:1], answers[:1]) == [None]
    served.spoil = lambda number, answer: {}
    assert remote.log_probs(contexts[:1], answers[:1]) == [None]
    assert remote.counts["failed"] == 2


def test_an_impossible_token_is_floored_and_never_averaged_as_a_number(
    served: ServedPolicy, tokenizer: SegmentTokenizer
) -> None:
    contexts, answers = pairs()

    def impossible(number: int, answer: Any) -> Any:
        for choice in answer[1]["choices"]:
            for row in choice["prompt_logprobs"][1:]:
                for value in row.values():
                    value["logprob"] = -9999.0
        return answer

    served.spoil = impossible
    (found,) = scorer(served, tokenizer).log_probs(contexts[:1], answers[:1])
    assert found is not None
    assert np.isneginf(found).all()
    gain = InformationGain(PROTOCOL, "documents", floor=-7.0)
    (episode,) = gain.settle([searched(TURNS[:1])], scorer(served, tokenizer))
    assert episode.searches[0].log_prob == -7.0
    with pytest.raises(ValueError, match="needs a floor"):
        replace(gain, floor=None).settle([searched(TURNS[:1])], scorer(served, tokenizer))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([-1.0, -2], [-1.0, -2.0]),
        ([0.0, 1e-7], [0.0, 1e-7]),
        ([np.float32(-0.5)], [-0.5]),
        ([-1e30], [-math.inf]),
        *(([bad], None) for bad in (None, "-1", True, [], math.nan, 0.1, math.inf)),
    ],
)
def test_values_of_a_server(values: list[Any], expected: list[float] | None) -> None:
    found = checked(values)
    assert (None if found is None else found.tolist()) == expected


@pytest.mark.parametrize("known", [None, {}, "abc", [None], [None, None, None], [1, 2, 3]])
def test_a_table_of_another_form_is_no_score(known: Any) -> None:
    assert answer_log_probs(known, ((1, 2, 3), 2)) is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dialect": "tgi"}, "dialect must be one of"),
        ({"batch": 0}, "of at least 1"),
        ({"concurrency": 0}, "of at least 1"),
        ({"max_length": 1}, "of at least 2"),
        ({"dialect": "sglang"}, "without /v1"),
    ],
)
def test_refusals(tokenizer: SegmentTokenizer, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        EndpointScorer(Endpoint("http://127.0.0.1:9/v1"), "m", tokenizer, **options)
