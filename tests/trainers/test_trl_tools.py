"""TRL's real trainer, which samples itself and calls the environment's tools."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

trl = pytest.importorskip("trl", reason="needs the extra trl")

from transformers import AddedToken, Qwen2Config, Qwen2ForCausalLM  # noqa: E402

from agents.loading import load_policy  # noqa: E402
from igsearch_env import BM25Retriever, Document, RetrievalError, SearchQAEnv, World  # noqa: E402
from igsearch_env.engine import SearchQAEngine  # noqa: E402
from igsearch_env.settings import make_engine  # noqa: E402
from tests.doc_pages import ROOT, read_blocks  # noqa: E402
from tests.trainers.test_trl_rollouts import cpu_config  # noqa: E402
from trainers.trl.tools import SearchTools, search_tools, tool_prompts, tool_reward  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
RULES: dict[str, Any] = {
    "max_searches": 2,
    "top_k": 1,
    "counterfactual": "documents",
    "information_gain_weight": 0.5,
}
WORDS = ("<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>")
WORDS += ("<tool_response>", "</tool_response>", "<think>", "</think>")


class Flaky:
    """BM25 that gives up on one query."""

    def __init__(self, retriever: BM25Retriever, query: str) -> None:
        self.retriever, self.query = retriever, query

    def search(self, queries: Sequence[str], k: int) -> list[list[Document]]:
        if self.query in queries:
            raise RetrievalError("down")
        return self.retriever.search(queries, k)


@pytest.fixture
def engine(world: World) -> SearchQAEngine:
    asked = [question for question in world.train_questions if question.hops == 1][:4]
    return make_engine(asked, BM25Retriever.build(world.documents), "unigram", **RULES)


@pytest.fixture
def make(engine: SearchQAEngine, tmp_path: Path) -> Callable[[], Any]:
    """A trainer over a small random model, with the template of Qwen3."""

    def make() -> Any:
        tokenizer = deepcopy(load_policy("agents/world-tiny").tokenizer.tokenizer)
        tokenizer.add_tokens([AddedToken(word, normalized=False) for word in WORDS])
        tokenizer.eos_token = "<|im_end|>"
        template = Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja"
        tokenizer.chat_template = template.read_text(encoding="utf-8")
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_key_value_heads=2,
                max_position_embeddings=8192,
            )
        )
        config = cpu_config(
            tmp_path,
            per_device_train_batch_size=4,
            num_generations=2,
            max_completion_length=1024,
            max_steps=2,
            shuffle_dataset=False,
        )
        return trl.GRPOTrainer(
            model,
            tool_reward,
            args=config,
            train_dataset=tool_prompts(engine),
            processing_class=tokenizer,
            environment_factory=search_tools(engine),
        )

    return make


def script(trainer: Any, engine: SearchQAEngine) -> None:
    """The model searches for its question; then half of the completions answer it rightly."""
    encode = trainer.processing_class.encode

    def sampled(prompt_ids: list[list[int]], *others: Any, **more: Any) -> tuple[Any, None]:
        turns = []
        for tools, ids in zip(playing(trainer, len(prompt_ids)), prompt_ids, strict=True):
            question = tools._episode.question
            call = json.dumps({"name": "search", "arguments": {"query": question.text}})
            said = f"<tool_call>\n{call}\n</tool_call>"
            if tools._episode.searches:
                place = trainer.environments.index(tools)
                right = question.golden_answers[0] if place % 2 else "nobody"
                said = f"<answer> {right} </answer>"
            assert ids
            turns.append(encode(f"{said}<|im_end|>", add_special_tokens=False))
        return turns, None

    trainer._generate_single_turn = sampled


def playing(trainer: Any, count: int) -> list[SearchTools]:
    tools = trainer.environments
    assert len(tools) == count  # all of them search once, so all turns are asked for together
    return list(tools)


def test_two_optimisation_steps_with_calls_and_answers(
    make: Callable[[], Any], engine: SearchQAEngine
) -> None:
    trainer = make()
    script(trainer, engine)
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    assert trainer.state.global_step == 2
    moved = [not torch.equal(before[n], w) for n, w in trainer.model.named_parameters()]
    assert any(moved)
    logged = trainer.state.log_history[0]
    assert logged["tools/call_frequency"] == 1.0
    assert logged["tools/failure_frequency"] == 0.0


def test_documents_and_outcomes_are_those_of_the_environment_and_masked(
    make: Callable[[], Any], engine: SearchQAEngine
) -> None:
    trainer = make()
    script(trainer, engine)
    engine.pool.seed(0)
    rows = [trainer.train_dataset[i] for i in (0, 0, 1, 1)]
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    batch = trainer._generate_and_score_completions(rows)
    direct = SearchQAEnv(
        engine.questions, engine.retriever, "unigram", **RULES
    )  # plays the searches first, as TRL does
    direct.engine.pool.seed(0)
    begun = [direct.engine.rules.begin(tools._episode.question) for tools in trainer.environments]
    protocol = engine.rules.protocol
    for place, (episode, tools) in enumerate(zip(begun, trainer.environments, strict=True)):
        query = protocol.write_search(episode.question.text)
        ((begun[place], _),) = direct.engine.step([episode], [query])
        assert begun[place].steps[0].documents == tools._episode.steps[0].documents
    paid = []
    for place, tools in enumerate(trainer.environments):
        question = tools._episode.question
        answer = f"<answer> {question.golden_answers[0] if place % 2 else 'nobody'} </answer>"
        ((played, _),) = direct.engine.step([begun[place]], [answer])
        assert played.outcome == tools._episode.outcome == place % 2
        assert played.information_gains == tools._episode.information_gains
        paid.append(sum(step.reward for step in played.steps))
    assert paid == tool_reward([[{"role": "assistant"}]] * 4, trainer.environments)
    grouped = torch.tensor(paid).reshape(2, 2)
    centred = grouped - grouped.mean(1, keepdim=True)
    expected = (centred / (grouped.std(1, keepdim=True) + 1e-4)).flatten()
    torch.testing.assert_close(
        batch["advantages"], expected.to(batch["advantages"]), atol=1e-4, rtol=1e-4
    )
    learned = (batch["tool_mask"] * batch["completion_mask"]).bool()
    for row, tools in enumerate(trainer.environments):
        said = trainer.processing_class.decode(batch["completion_ids"][row][learned[row]])
        read = trainer.processing_class.decode(batch["completion_ids"][row][~learned[row]])
        title = tools._episode.steps[0].documents[0].title
        assert "<answer>" in said
        assert "<documents>" not in said
        assert title in read


def test_nothing_is_learned_where_a_search_failed(
    make: Callable[[], Any], engine: SearchQAEngine
) -> None:
    engine.retriever = Flaky(engine.retriever, engine.questions[0].text)  # type: ignore[arg-type]
    trainer = make()
    script(trainer, engine)
    rows = [trainer.train_dataset[i] for i in (0, 0, 1, 1)]
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    batch = trainer._generate_and_score_completions(rows)
    assert [tools._episode.left_out for tools in trainer.environments] == [True, True, False, False]
    assert not batch["advantages"][:2].any()
    assert batch["advantages"][2:].all()


def test_searches_run_out_and_no_answer_pays_no_outcome(engine: SearchQAEngine) -> None:
    tools = SearchTools(engine)
    question = engine.questions[0]
    tools.reset(question_id=question.id, prompt=[])
    for _ in range(2 * engine.rules.max_searches + 1):
        tools.search(question.text)
    assert tools.search(question.text) == "The searches are used up. Answer now."
    assert tools._episode.truncated
    other = SearchTools(engine)
    other.reset(question_id=question.id)
    (paid,) = tool_reward([[{"role": "assistant", "content": "no idea"}]], [other])
    assert paid == 0.0


def test_an_unknown_question_is_named(engine: SearchQAEngine) -> None:
    with pytest.raises(ValueError, match="the question 'other' is none of the engine's"):
        SearchTools(engine).reset(question_id="other")


def test_the_code_of_the_page_trains(
    make: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make()
    trainer.model.save_pretrained(tmp_path / "my-chat-model")
    trainer.processing_class.save_pretrained(tmp_path / "my-chat-model")
    (tmp_path / "agents").symlink_to(ROOT / "agents")
    monkeypatch.chdir(tmp_path)
    blocks = [b for b in read_blocks(ROOT / "docs/extend/trl.md") if b.language == "python"]
    assert len(blocks) == 2
    for block in blocks:
        text = block.text.replace("1024", "16")  # what a random model writes has no end
        names: dict[str, Any] = {}
        exec(compile(text, block.where, "exec"), names)
        assert names["trainer"].state.global_step == 2
