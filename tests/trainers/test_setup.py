"""From settings to the objects of a run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from agents.transformers_policy import TransformersPolicy
from igsearch_env.credit import GRPO, IGPO, IGPOWithIGSearch, IGSearch
from igsearch_env.data.corpus import load_corpus
from igsearch_env.episode import Question
from igsearch_env.gain.shaping import Shaping
from igsearch_env.protocol.tags import PROTOCOLS
from igsearch_env.retrieval.bm25 import BM25Retriever
from igsearch_env.retrieval.http import HTTPRetriever
from trainers.config import (
    PolicySettings,
    TrainingEnvironment,
    TrainSettings,
    WorldSettings,
    load_config,
    make_credit_from,
)
from trainers.local.grpo import GRPOTrainer
from trainers.setup import (
    group_ids,
    make_agent,
    make_policy,
    make_questions,
    make_training_engine,
    make_world,
    with_protocol,
)

Settings = Callable[..., list[str]]
WORLD = WorldSettings(seed=5, people=40, hops=(2,))


def corpus_file(folder: Path) -> Path:
    path = folder / "corpus.jsonl"
    rows = [{"id": str(n), "contents": f'"Page {n}"\nword{n} and others'} for n in range(9)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_questions_of_the_world_are_those_asked_for() -> None:
    world = make_world(WORLD)
    assert world.seed == 5
    assert len(world.entities["person"]) == 40
    for name, every in (
        ("world-train", world.train_questions),
        ("world-test", world.test_questions),
    ):
        found = make_questions(name, WORLD)
        assert found == [question for question in every if question.hops == 2]
        assert 0 < len(found) < len(every)
    with pytest.raises(ValueError, match=r"no questions of \(4,\) hops"):
        make_questions("world-train", WorldSettings(people=40, hops=(4,)))


def test_worlds_differ_by_every_setting() -> None:
    base = make_world(WorldSettings(people=40)).documents
    assert base != make_world(WorldSettings(people=40, seed=1)).documents
    assert base != make_world(WorldSettings(people=41)).documents
    assert base != make_world(WorldSettings(people=40, informative_bridges=False)).documents


def test_questions_and_documents_from_files(tmp_path: Path) -> None:
    questions = tmp_path / "set.jsonl"
    row = '{"id": "%s", "question": "Capital of Peru?", "golden_answers": "Lima"}\n'
    questions.write_text(row % "a" + row % "b")
    corpus = corpus_file(tmp_path)
    BM25Retriever.build(load_corpus(corpus)).save(tmp_path / "index")
    for retriever in (str(corpus), str(tmp_path / "index")):
        environment = TrainingEnvironment(str(questions), retriever)
        engine = make_training_engine(TrainSettings(WORLD, environment), 0)
        assert engine.questions[0] == Question("a", "Capital of Peru?", ("Lima",), dataset="set")
        assert [d.title for d in engine.retriever.search(["word7"], 1)[0]] == ["Page 7"]


def test_the_retriever_may_be_the_address_of_a_server() -> None:
    environment = TrainingEnvironment(retriever="http://127.0.0.1:8000")
    retriever = make_training_engine(TrainSettings(WORLD, environment), 0).retriever
    assert isinstance(retriever, HTTPRetriever)
    assert retriever.url == "http://127.0.0.1:8000/retrieve"


@pytest.mark.parametrize("retriever", ["bm25", "world"])
def test_documents_of_the_world_of_the_run(retriever: str) -> None:
    world = make_world(WORLD)
    settings = TrainSettings(WORLD, TrainingEnvironment(retriever=retriever))
    documents = make_training_engine(settings, 0).retriever.documents  # type: ignore[attr-defined]
    assert {document.id for document in documents} == {doc.id for doc in world.documents}


def test_a_world_that_is_named_by_its_size_is_searched(tiny_settings: Settings) -> None:
    named = ["environment.questions=world-train:40:3", "environment.eval_questions=world-test:40:3"]
    engine = make_training_engine(load_config(None, named), 0)
    documents = {document.id for document in engine.retriever.documents}  # type: ignore[attr-defined]
    assert all({*question.gold_ids} <= documents for question in engine.questions)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["questions=world-train:320"], "'world-test' are about another world"),
        (["eval_questions=world-test:320"], "'world-test:320' are about another world"),
        (["retriever=world:320"], "'world-train' are about another world than .*'world:320'"),
        (["questions=mine.jsonl"], "'mine.jsonl', but 'bm25' searches the documents of the embed"),
        (["eval_questions=mine.jsonl"], "'mine.jsonl', but 'bm25' searches"),
    ],
)
def test_questions_and_documents_of_different_worlds_are_refused(
    settings: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(None, [f"environment.{setting}" for setting in settings])


def test_the_world_of_the_run_and_one_named_by_its_size_do_not_mix() -> None:
    settings = ["world.people=40", "environment.eval_questions=world-test:120"]
    with pytest.raises(ValueError, match=r"world-test:120 is a world of its own, and world-train"):
        load_config(None, settings)


def test_the_engine_has_the_settings(tiny_settings: Settings) -> None:
    settings = tiny_settings(
        "environment.protocol=search-r1",
        "environment.max_searches=4",
        "environment.top_k=2",
        "environment.num_counterfactuals=1",
        "environment.counterfactual=documents+refinement",
        "environment.floor=-3",
        "environment.aliases=logmeanexp",
        "environment.outcome=f1",
    )
    engine = make_training_engine(load_config(None, settings), seed=3)
    assert engine.rules.protocol.name == engine.information_gain.protocol.name == "search-r1"
    assert (engine.rules.max_searches, engine.top_k, engine.num_counterfactuals) == (4, 2, 1)
    gain = engine.information_gain
    assert (gain.counterfactual, gain.floor) == ("documents+refinement", -3)
    assert (gain.aliases, engine.outcome) == ("logmeanexp", "f1")
    assert engine.scorer is None  # gains are settled by the agent, with the weights that sampled
    assert engine.information_gain_weight == 0


@pytest.mark.parametrize(("floor", "expected"), [("uniform", "uniform"), ("none", None)])
def test_the_floor(tiny_settings: Settings, floor: str, expected: str | None) -> None:
    config = load_config(None, tiny_settings(f"environment.floor={floor}"))
    assert make_training_engine(config, 0).information_gain.floor == expected


def test_the_seed_is_that_of_the_counterfactuals(tiny_settings: Settings) -> None:
    config = load_config(None, tiny_settings())
    draws = [
        make_training_engine(config, seed).pool.rng.integers(1 << 60, size=4).tolist()
        for seed in (1, 1, 2)
    ]
    assert draws[0] == draws[1] != draws[2]


def test_credit_with_its_options() -> None:
    credit = make_credit_from(
        {
            "method": "ig_search",
            "alpha": 1,
            "normalizer": "batch_mean_query",
            "dead_zone": 0.2,
            "negative_scale": 0.5,
            "clip": 2,
        }
    )
    assert credit == IGSearch(1.0, "batch_mean_query", shaping=Shaping(0.2, 0.5, 2.0))
    assert make_credit_from({"method": "ig_search"}) == IGSearch()
    assert make_credit_from(TrainSettings().credit) == IGSearch()
    assert make_credit_from({"method": "outcome"}) == GRPO()


def test_a_composition_has_its_options_one_level_deeper() -> None:
    settings = load_config(
        None,
        ["credit.method=igpo_ig_search", "credit.igpo.gamma=0.5", "credit.ig_search.alpha=1.0"],
    ).credit
    assert make_credit_from(settings) == IGPOWithIGSearch(IGPO(gamma=0.5), IGSearch(alpha=1.0))


def test_none_can_be_said_in_toml() -> None:
    credit = make_credit_from({"method": "ig_search", "clip": "none", "normalizer": "none"})
    assert credit == IGSearch(shaping=Shaping(clip=None), normalizer="none")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "ppo"}, "unknown credit method 'ppo'; known are .*ig_search.*outcome"),
        ({"method": 3}, "unknown credit method '3'"),
        (
            {"method": "ig_search", "alfa": 1},
            "'ig_search' does not take alfa; its options are alpha, alpha_final, alpha_from, "
            "alpha_until, baseline, center, clip, dead_zone, gamma, groups, measure, "
            "negative_scale, new_only, normalizer, scale, skip_last",
        ),
        ({"method": "outcome", "alpha": 1}, "'outcome' does not take alpha; .* are none. To drop"),
        ({"method": "outcome", "dead_zone": 1}, "'outcome' does not take dead_zone"),
        ({"method": "ig_search", "alpha": "x"}, "credit.alpha must be a valid number, got 'x'"),
        ({"method": "ig_search", "dead_zone": "x"}, "dead_zone must be a valid number, got 'x'"),
        ({"method": "ig_search", "normalizer": "x"}, "credit.normalizer must be 'query', "),
        ({"method": "ig_search", "alpha": math.inf}, "credit.alpha must be a finite number, got"),
        ({"method": "ig_search", "clip": 0}, "clip must be a finite number above 0"),
    ],
)
def test_credit_that_does_not_fit(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_credit_from(settings)


def test_credit_from_gains_needs_counterfactuals(tiny_settings: Settings) -> None:
    """Without them every gain would be None, and IG-Search silently be GRPO."""
    config = load_config(None, tiny_settings("environment.num_counterfactuals=0"))
    with pytest.raises(ValueError, match="'ig_search' needs information gain"):
        make_agent(config, make_training_engine(config, 0))
    settings = tiny_settings("environment.num_counterfactuals=0", "credit.method=outcome")
    config = load_config(None, settings)
    assert not make_agent(config, make_training_engine(config, 0)).credit.uses_information_gain


def test_the_agent_has_the_settings(tiny_settings: Settings) -> None:
    settings = tiny_settings(
        "policy.temperature=0.5", "policy.batch_size=7", "credit.method=ig_search"
    )
    config = load_config(None, settings)
    engine = make_training_engine(config, 0)
    agent = make_agent(config, engine)
    policy = agent.policy
    engine = with_protocol(engine, policy.protocol)
    assert (policy.temperature, policy.batch_size, policy.max_new_tokens) == (0.5, 7, 12)
    assert policy.model.dtype == torch.float32
    assert policy.protocol == engine.rules.protocol
    assert agent.information_gain == engine.information_gain
    assert agent.credit == IGSearch()


def test_attempts_need_more_than_one(
    tiny_settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    for attempts in (2, 1):
        words = ["credit.method=mr_search", f"environment.max_attempts={attempts}"]
        config = load_config(None, tiny_settings(*words))
        make_agent(config, make_training_engine(config, 0))
        assert ("set environment.max_attempts to 2 or more" in caplog.text) is (attempts == 1)


def test_a_checkpoints_own_grammar_is_taken_over(tiny_settings: Settings, tmp_path: Path) -> None:
    config = load_config(None, tiny_settings())
    taught = make_policy(config.policy, None)
    assert taught.protocol == PROTOCOLS["refine-bare"]
    own = replace(PROTOCOLS["search-r1"], name="own", prompt="Ask. {question}\n")
    TransformersPolicy(taught.model, taught.tokenizer, own).save_pretrained(tmp_path)
    settings = tiny_settings(f"policy.path={json.dumps(str(tmp_path))}")
    config = load_config(None, [s for s in settings if not s.startswith("environment.protocol")])
    engine = make_training_engine(config, 0)
    agent = make_agent(config, engine)
    assert agent.policy.protocol == agent.information_gain.protocol == own
    assert with_protocol(engine, own).rules.protocol == own
    config = load_config(None, [*settings, "environment.protocol=refine"])
    with pytest.raises(ValueError, match=r"was taught the grammar 'own', and .* asks for 'refine'"):
        make_agent(config, engine)


@pytest.mark.parametrize("path", ["runs/not/there", "{folder}"])
def test_a_policy_that_is_not_there(tmp_path: Path, path: str) -> None:
    path = path.format(folder=tmp_path)
    with pytest.raises(ValueError, match="cannot load a policy from") as raised:
        make_policy(PolicySettings(path=path), "refine-bare")
    assert path in str(raised.value)
    assert "\n" not in str(raised.value)


def test_groups_are_told_apart_by_place() -> None:
    """A question that is drawn twice in a step makes two groups, and so it does in another step."""
    one, two = Question("q1", "one?", ("a",)), Question("q2", "two?", ("b",))
    found = group_ids([one, two, one], step=4, size=2)
    assert len(found) == 6
    assert found[0] == found[1]
    assert len(set(found)) == 3
    assert not set(found) & set(group_ids([one, two, one], step=5, size=2))


def test_silver_chains_are_looked_for_in_the_corpus_of_the_run() -> None:
    config = load_config(overrides=["world.people=40", "credit.method=silver_chain"])
    engine = make_training_engine(config, seed=0)
    assert all(question.silver_ids for question in engine.questions)
    assert engine.num_counterfactuals == 0  # nothing is scored for it


def test_silver_chains_need_a_corpus() -> None:
    settings = ["credit.method=silver_chain", "environment.retriever=http://127.0.0.1:9/retrieve"]
    with pytest.raises(ValueError, match="HTTPRetriever does not hold one; give an index"):
        make_training_engine(load_config(overrides=settings), seed=0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="cannot use the device 'cuda'"):
        make_policy(PolicySettings(device="cuda"), "refine-bare")


def test_a_resumed_run_keeps_the_prompt_that_it_began_with(
    tiny_settings: Settings, taught_policy: Path, tmp_path: Path
) -> None:
    """The template prints the day; when the run goes on it is another one."""
    folder = tmp_path / "model"
    taught = TransformersPolicy.from_pretrained(taught_policy)
    taught.save_pretrained(folder)
    (folder / "igsearch.json").unlink()
    template = (
        "Monday {% for m in messages %}<u> {{ m.content }} {% endfor %}"
        "{% if add_generation_prompt %}<a> {% endif %}"
    )
    (folder / "chat_template.jinja").write_text(template)
    settings = tiny_settings(
        f"policy.path={json.dumps(str(folder))}",
        "environment.protocol=chat:refine-bare",
        "optimization.steps=2",
        "run.checkpoint_every=1",
    )
    out = tmp_path / "run"
    first = GRPOTrainer(load_config(None, settings), out)
    assert first.engine.rules.protocol.prompt.startswith("Monday <u> question : {question}")
    first.run()
    (folder / "chat_template.jinja").write_text(template.replace("Monday", "Tuesday"))
    longer = load_config(None, [*settings, "optimization.steps=3"])
    again = GRPOTrainer(longer, out, resume=True)
    assert again.policy.protocol == first.policy.protocol == again.engine.rules.protocol
    assert again.engine.information_gain.protocol == first.policy.protocol
    kept = TransformersPolicy.from_pretrained(out / "policy")
    assert kept.protocol == first.policy.protocol
    # The policy that came out is trained further in its own words, whatever the day is.
    later = tiny_settings(
        f"policy.path={json.dumps(str(out / 'policy'))}", "environment.protocol=chat:refine-bare"
    )
    config = load_config(None, later)
    agent = make_agent(config, make_training_engine(config, 0))
    assert agent.policy.protocol == first.policy.protocol
