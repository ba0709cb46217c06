"""The warm start: which tokens are learned from, and that learning happens."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from agents.tokenization import SegmentTokenizer
from igsearch_env.data.world import World
from trainers.warm_start.tiny_policy import build_model
from trainers.warm_start.training import (
    Demonstration,
    WarmStart,
    WarmStartSettings,
)

CONFIG = WarmStartSettings(
    steps=3, spoiling_steps=2, batch_size=8, people=40, episodes_per_world=48, world_seed=50
)
TURN = r"<search>(?P<query>.*?)</search>|<answer>.*?</answer>"


def parts(one: Demonstration, tokenizer: SegmentTokenizer) -> list[tuple[str, str, float]]:
    """Each token as (text, part, weight); the parts are found in the text, not by ids."""
    text = tokenizer.decode(one.ids)
    documents = [
        match.span() for match in re.finditer(r"\n<documents>\n.*?</documents>\n", text, re.S)
    ]
    turns = list(re.finditer(TURN, text))
    found, start = [], 0
    for token, weight in zip(one.ids, one.weights, strict=True):
        piece = tokenizer.decode([token])
        end = start + len(piece)
        part = "system"
        if any(a <= start and end <= b for a, b in documents):
            part = "document"
        for match in turns:
            if match.start() <= start and end <= match.end():
                query = match.span("query")
                part = "query" if query[0] <= start and end <= query[1] else "policy"
        found.append((piece, part, weight))
        start = end
    assert start == len(text)
    return found


def weights_by_part(one: Demonstration, tokenizer: SegmentTokenizer) -> dict[str, set[float]]:
    by_part: dict[str, set[float]] = {}
    for _, part, weight in parts(one, tokenizer):
        by_part.setdefault(part, set()).add(weight)
    return by_part


def test_competent_demonstrations_are_learned_whole(tokenizer: SegmentTokenizer) -> None:
    made = WarmStart(CONFIG).competent()
    assert len(made) == 48
    for one in made:
        assert weights_by_part(one, tokenizer) == {
            "system": {0.0},
            "query": {1.0},
            "policy": {1.0},
            "document": {CONFIG.document_weight},
        }


def test_spoiling_teaches_bad_queries_or_all_but_queries(tokenizer: SegmentTokenizer) -> None:
    """The tags of a search and what stands beside them are no query: readers learn them."""
    made = WarmStart(CONFIG).spoiling()
    queries = {"system": {0.0}, "document": {0.0}, "policy": {0.0}, "query": {1.0}}
    others = {"system": {0.0}, "document": {0.0}, "policy": {1.0}, "query": {0.0}}
    kinds = [weights_by_part(one, tokenizer) for one in made]
    assert [kind for kind in kinds if kind not in (queries, others)] == []
    assert kinds.count(queries) == kinds.count(others) == 24
    assert kinds[:24] != [queries] * 24  # they are mixed
    searcher = parts(made[kinds.index(queries)], tokenizer)
    learned = [piece for piece, _, weight in searcher if weight]
    assert not {"<search", ">", " </", "search", "<answer"} & set(learned)


def test_worlds_are_new_every_time_and_follow_from_the_seed() -> None:
    one, same = WarmStart(CONFIG), WarmStart(CONFIG)
    first = one.competent()
    assert first == same.competent()
    assert one.spoiling() == same.spoiling()
    assert first != one.competent()
    assert first != WarmStart(replace(CONFIG, seed=1)).competent()
    ids = [episode.question.id for episode in one.play_world({"good": 1.0}, 40)]
    worlds = {name.split("-")[0] for name in ids}
    assert len(worlds) == 1
    assert not worlds & {f"w{CONFIG.world_seed}", "w0"}


def test_worlds_hint_at_facts_unless_told_otherwise() -> None:
    facts = {}
    for hints in (True, False):
        config = replace(CONFIG, informative_bridges=hints)
        question = WarmStart(config).play_world({"good": 1.0}, 1)[0].question
        world = World.generate(CONFIG.world_seed, people=CONFIG.people, informative_bridges=hints)
        assert question in world.train_questions
        facts[hints] = world.facts
    assert facts[True] != facts[False]


def test_hops_are_drawn_in_their_shares() -> None:
    config = replace(CONFIG, hops=(0.0, 1.0, 0.0))
    assert {e.question.hops for e in WarmStart(config).play_world({"good": 1.0}, 30)} == {2}
    drawn = [e.question.hops for e in WarmStart(CONFIG).play_world({"good": 1.0}, 200)]
    assert 0.45 < drawn.count(2) / 200 < 0.75


def test_it_learns() -> None:
    config = replace(CONFIG, steps=25, spoiling_steps=1, learning_rate=2e-2)
    losses: list[float] = []
    numbers: list[int] = []
    warm_start = WarmStart(config)
    warm_start.model = build_model(0, layers=1, hidden=64)
    warm_start._optimizer = torch.optim.AdamW(warm_start.model.parameters())

    def progress(number: int, loss: float) -> None:
        numbers.append(number)
        losses.append(loss)

    warm_start.run(progress)
    assert numbers == list(range(1, 27))
    assert losses[0] > 5
    assert sum(losses[20:25]) / 5 < 0.75 * losses[0]
    assert not warm_start.model.training


def test_the_loss_is_the_weighted_mean_over_learned_tokens() -> None:
    warm_start = WarmStart(CONFIG)
    warm_start.model = build_model(1, layers=1, hidden=32)
    batch = warm_start.competent()[:3]
    total, weight = 0.0, 0.0
    with torch.no_grad():
        for one in batch:  # one by one, unpadded
            logits = warm_start.model(input_ids=torch.tensor([one.ids])).logits[0]
            for place in range(1, len(one.ids)):
                log_probs = torch.log_softmax(logits[place - 1].double(), dim=-1)
                total -= one.weights[place] * float(log_probs[one.ids[place]])
                weight += one.weights[place]
    warm_start._optimizer = torch.optim.AdamW(warm_start.model.parameters())
    assert warm_start._update(batch) == pytest.approx(total / weight, rel=1e-4)


def test_too_few_demonstrations_for_a_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="episodes_per_world"):
        WarmStartSettings(batch_size=64, episodes_per_world=63)


@pytest.mark.parametrize(
    "hops", [(0.0, 0.0, 0.0), (1.0, -0.1, 0.0), (1.0, math.nan, 0.0), (1e308,) * 3]
)
def test_hops_are_weights(hops: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="hops must be three weights of at least 0"):
        WarmStartSettings(hops=hops)


@pytest.mark.parametrize(
    ("end", "left"),
    [(KeyboardInterrupt, [6, 7]), (RuntimeError, [5, 6, 7])],
    ids=["Ctrl-C keeps the last update", "other ends keep the last state"],
)
def test_a_resumed_warm_start_ends_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: type[BaseException], left: list[int]
) -> None:
    monkeypatch.setattr("trainers.warm_start.training.CHECKPOINT_EVERY", 2)
    config = WarmStartSettings(
        steps=5, spoiling_steps=2, batch_size=4, people=40, episodes_per_world=8
    )
    whole = WarmStart(config)
    whole.run(lambda number, loss: None)

    def cut(number: int, loss: float) -> None:
        if number == 5:
            raise end

    checkpoint = tmp_path / "warm_start.pt"
    with pytest.raises(end):
        WarmStart(config).run(cut, checkpoint)
    resumed, numbers = WarmStart(config), []
    resumed.run(lambda number, loss: numbers.append(number), checkpoint)
    assert numbers == left
    with pytest.raises(ValueError, match="is of a warm start with other settings"):
        WarmStart(replace(config, informative_bridges=False)).run(cut, checkpoint)
    other = resumed.model.state_dict()
    assert all(torch.equal(value, other[name]) for name, value in whole.model.state_dict().items())
