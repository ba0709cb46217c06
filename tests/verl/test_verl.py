"""The agent loop and the advantages in the real verl: its workers, its queue, its trainer's step.

A stand-in samples where verl has vLLM servers. It has an environment of its own: make test-verl.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import ray
import torch
import transfer_queue as tq
import verl.trainer.config
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from tensordict import TensorDict
from transformers import AutoModelForCausalLM
from verl import DataProto
from verl.experimental.agent_loop.agent_loop import AgentLoopWorker
from verl.tools.tool_registry import load_all_tools
from verl.trainer.ppo.core_algos import get_adv_estimator_fn
from verl.trainer.ppo.padding_utils import upsample_batch_to_divisible_size
from verl.trainer.ppo.v1 import AgentLoopWorkerTQ, get_trainer_cls
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.torch_functional import logprobs_from_logits
from verl.workers.utils.losses import ppo_loss
from verl.workers.utils.padding import no_padding_2_padding, response_to_nested

from agents.grpo_agent import GRPOAgent
from agents.transformers_policy import TransformersPolicy
from igsearch_env import load_questions, open_retriever
from igsearch_env.episode import Document, Episode, Step
from igsearch_env.record import episode_from_record
from igsearch_env.retrieval.base import RetrievalError
from igsearch_env.rollout import collect
from igsearch_env.settings import EnvironmentSettings, make_engine
from tests.doc_pages import read_blocks
from trainers.config import make_credit_from
from trainers.local.update import policy_loss
from trainers.verl import agent_loop
from trainers.verl.rows import EPISODE, NAME, rows
from trainers.verl.token_credit import credit_of

from .policy_server import PolicyServer
from .queue_in_process import QueueInProcess

ROOT = Path(__file__).resolve().parents[2]
POLICY = ROOT / "agents" / "world-tiny"
GROUP = 4
ROLLOUT = {
    "questions": "world-train",
    "retriever": "world",
    "protocol": "refine-bare",
    "max_searches": 4,
    "top_k": 1,
    "max_new_tokens": 16,
}
CREDIT = {"method": "ig_search", "alpha": 1.0}
QUESTIONS = load_questions("world-train")


@pytest.fixture(scope="module")
def loops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("verl") / "loops.yaml"
    entry = {
        "name": NAME,
        "_target_": "trainers.verl.agent_loop.SearchAgentLoop",
        "rollout": ROLLOUT,
        "credit": CREDIT,
    }
    OmegaConf.save(OmegaConf.create([entry]), file)
    return file


def make_config(loops: Path, *changes: str) -> Any:
    folder = str(Path(verl.trainer.config.__file__).parent)
    with initialize_config_dir(folder, version_base=None):
        return compose(
            "ppo_trainer",
            [
                f"actor_rollout_ref.model.path={POLICY}",
                "actor_rollout_ref.model.custom_chat_template='{{messages[0].content}}'",
                "actor_rollout_ref.rollout.name=vllm",
                "actor_rollout_ref.rollout.skip_tokenizer_init=False",
                "actor_rollout_ref.rollout.calculate_log_probs=True",
                f"actor_rollout_ref.rollout.n={GROUP}",
                f"actor_rollout_ref.rollout.agent.agent_loop_config_path={loops}",
                "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1",
                "data.max_prompt_length=128",
                "data.max_response_length=384",
                f"algorithm.adv_estimator={NAME}",
                "transfer_queue.backend.SimpleStorage.num_data_storage_units=1",
                *changes,
            ],
        )


@pytest.fixture(scope="module")
def config(loops: Path) -> Any:
    return make_config(loops)


def batch_of(asked: list[dict[str, Any]], **meta: Any) -> DataProto:
    """Rows as verl's data loader hands them to its agent loops."""
    columns = {
        name: np.array([row[name] for row in asked], dtype=object)
        for name in ("agent_name", "data_source", "label")
    }
    prompts = np.empty(len(asked), dtype=object)
    prompts[:] = [row["prompt"] for row in asked]
    index = np.array([row["extra_info"]["index"] for row in asked])
    uids = np.array([str(number) for number in index], dtype=object)
    others = {**columns, "raw_prompt": prompts, "index": index, "uid": uids}
    return DataProto(non_tensor_batch=others, meta_info={"global_steps": 1, **meta})


def play(config: Any, server: PolicyServer, asked: list[dict[str, Any]], **meta: Any) -> DataProto:
    async def run() -> DataProto:
        worker = AgentLoopWorker(config, server)
        return await worker.generate_sequences(batch_of(asked, **meta))

    return asyncio.run(run())


def episodes_of(values: Any) -> list[Episode]:
    return [episode_from_record(json.loads(value)) for value in values]


@pytest.fixture(scope="module")
def server() -> PolicyServer:
    torch.set_num_threads(1)
    return PolicyServer(POLICY)


def test_greedy_episodes_are_those_of_the_environment(config: Any, server: PolicyServer) -> None:
    """The environment's own policy and verl's worker play the same questions."""
    asked = QUESTIONS[:12]
    policy = TransformersPolicy.from_pretrained(POLICY, greedy=True)
    settings = EnvironmentSettings("world-train", "world", max_searches=4, top_k=1)
    engine = make_engine(scorer=None, settings=settings, protocol=policy.protocol)
    expected = collect(engine, policy, asked, [q.id for q in asked])
    batch = play(config, server, rows(asked, training=False), validate=True)
    played = episodes_of(batch.non_tensor_batch[EPISODE])
    assert sum(len(episode.searches) for episode in played) > 12
    for row, (episode, ours) in enumerate(zip(played, expected, strict=True)):
        assert [s.text for s in episode.transcript] == [s.text for s in ours.transcript]
        assert (episode.outcome, episode.em, episode.answer) == (ours.outcome, ours.em, ours.answer)
        assert batch.batch["rm_scores"][row].sum() == ours.outcome
        mask = batch.batch["response_mask"][row].bool()
        written = [token for step in ours.steps for token in step.turn.token_ids]
        assert batch.batch["responses"][row][mask].tolist() == written
        log_probs = [value for step in ours.steps for value in step.log_probs]
        given = batch.batch["rollout_log_probs"][row]
        assert given[mask].tolist() == pytest.approx(log_probs, abs=1e-4)
        assert not given[~mask].any()
    assert sum(bool(episode.outcome) for episode in played) > 0
    assert set(batch.non_tensor_batch["max_global_steps"]) == {3}


def test_documents_are_masked(config: Any, server: PolicyServer) -> None:
    batch = play(config, server, rows(QUESTIONS[:4], training=False), validate=True)
    tokenizer = server.tokenizer
    for row, episode in enumerate(episodes_of(batch.non_tensor_batch[EPISODE])):
        mask = batch.batch["response_mask"][row].bool()
        response = batch.batch["responses"][row]
        text = tokenizer.decode(response[mask])
        assert episode.searches
        for document in episode.searches[0].documents:
            assert document.text not in text
            assert document.text in tokenizer.decode(response[~mask])


@pytest.fixture
def down(config: Any, server: PolicyServer) -> Iterator[None]:
    """Every search for the first question fails."""
    play(config, server, rows(QUESTIONS[:1], training=False), validate=True)  # makes the tables
    (tables,) = agent_loop._tables.values()
    retriever = tables.evaluation.engine.retriever

    class Down:
        def search(self, queries: list[str], k: int) -> list[list[Document]]:
            raise RetrievalError("down")

    for table in (tables.training, tables.evaluation):
        table.engine.retriever = Down()
    yield
    for table in (tables.training, tables.evaluation):
        table.engine.retriever = retriever


def test_of_an_episode_whose_search_failed_one_token_is_left(
    config: Any, server: PolicyServer, down: None
) -> None:
    batch = play(config, server, rows(QUESTIONS[:3], training=True))
    episodes = episodes_of(batch.non_tensor_batch[EPISODE])
    assert any(episode.left_out for episode in episodes)
    for row, episode in enumerate(episodes):
        left = int(batch.batch["response_mask"][row].sum())
        assert left == 1 if episode.left_out else left > 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("actor_rollout_ref.rollout.skip_tokenizer_init=True", "set .*skip_tokenizer_init=False"),
        ("actor_rollout_ref.rollout.name=sglang", "rollout.name must be 'vllm'"),
        ("data.max_prompt_length=8", "data.max_prompt_length is 8; make it larger"),
    ],
)
def test_settings_of_verl_that_do_not_fit_are_refused(
    loops: Path, server: PolicyServer, change: str, says: str
) -> None:
    with pytest.raises(Exception, match=says):
        play(make_config(loops, change), server, rows(QUESTIONS[:1], training=True))


@pytest.fixture(scope="module", params=["in process", "under Ray"])
def queue(request: pytest.FixtureRequest, config: Any) -> Iterator[None]:
    """TransferQueue, and a stand-in of it which shows what went wrong without Ray's processes."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "in process":
            queue = QueueInProcess()
            for name in (name for name in dir(queue) if "kv" in name or name == "init"):
                patch.setattr(tq, name, getattr(queue, name))
            yield
            return
        ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
        tq.init(OmegaConf.merge(config.transfer_queue, {"enable": True}))
        yield
        tq.close()
        ray.shutdown()


@pytest.fixture(scope="module")
def trained(config: Any, queue: None) -> tuple[Any, Any, PolicyServer]:
    """A trainer of verl with a batch of groups in its queue, played by verl's worker."""
    server = PolicyServer(POLICY, seed=1)
    trainer = get_trainer_cls("sync")(config)
    trainer.global_steps, trainer.total_training_steps = 1, 2
    asked = rows(QUESTIONS[:6], training=True)

    # As the trainer submits prompts.
    waiting = {"is_prompt": True, "status": "pending", "global_steps": 1}
    tq.kv_batch_put(
        keys=[str(number) for number in range(len(asked))],
        partition_id="train",
        tags=[dict(waiting) for _ in asked],
    )

    async def run() -> None:
        worker = AgentLoopWorkerTQ.__ray_metadata__.modified_class(config, server)
        batch = batch_of(asked).non_tensor_batch
        await worker.generate_sequences(
            tu.get_tensordict(
                {name: list(values) for name, values in batch.items()}, {"global_steps": 1}
            )
        )
        await asyncio.gather(*worker.background_tasks)

    asyncio.run(run())
    batch, _ = trainer.replay_buffer.sample(global_steps=1, partition_id="train", batch_size=6)
    assert len(batch.keys) == 6 * GROUP
    data = tq.kv_batch_get(batch.keys, "train", ["rollout_log_probs"])
    old = TensorDict({"old_log_probs": data["rollout_log_probs"]}, batch_size=len(batch.keys))
    tq.kv_batch_put(batch.keys, "train", old)
    return trainer, batch, server


@pytest.fixture(scope="module")
def advantages(trained: Any) -> tuple[list[Episode], torch.Tensor, torch.Tensor]:
    """The episodes of the batch, the advantages that verl's step computes, and the mask."""
    trainer, batch, _ = trained
    metrics: dict[str, Any] = {}
    trainer._compute_advantage(batch, metrics)
    data = tq.kv_batch_get(keys=batch.keys, partition_id="train")
    played = episodes_of(field[EPISODE] for field in data["extra_fields"])
    assert metrics["igsearch/em"] == pytest.approx(np.mean([episode.em for episode in played]))
    padded = data.select("advantages", "response_mask").to_padded_tensor()
    return played, padded["advantages"], padded["response_mask"]


def test_token_advantages_are_those_of_the_local_trainer(advantages: Any) -> None:
    """The local agent settles the same episodes with the same weights."""
    played, given, mask = advantages
    (tables,) = agent_loop._tables.values()
    gain = tables.training.engine.information_gain
    policy = TransformersPolicy.from_pretrained(POLICY, dtype=torch.float32)
    agent = GRPOAgent(policy, gain, make_credit_from(CREDIT))
    bare = [replace(episode, steps=tuple(map(unsettled, episode.steps))) for episode in played]
    settled = agent.settle(bare)
    gains = [gain for episode in settled for gain in episode.information_gains if gain is not None]
    assert len(gains) > 12
    assert len({episode.group_id for episode in played}) == 6
    expected = agent.advantages(settled)
    assert sum(len(set(values.tolist())) > 1 for values in expected) > 6
    for row, values in enumerate(expected):
        columns = mask[row].bool()
        torch.testing.assert_close(
            given[row][columns], torch.tensor(values, dtype=torch.float32), atol=1e-5, rtol=0
        )
        assert not given[row][~columns].any()


def unsettled(step: Step) -> Step:
    return replace(
        step,
        information_gain=None,
        log_prob=None,
        before_log_prob=None,
        baseline_log_probs=None,
    )


def test_rows_that_pad_a_batch_change_nothing(trained: Any, advantages: Any) -> None:
    trainer, batch, _ = trained
    _, given, _ = advantages
    padded = upsample_batch_to_divisible_size(batch, 5 * len(batch.keys) // 4, 0)
    assert len(padded.keys) > len(batch.keys)
    trainer._compute_advantage(padded, {})
    data = tq.kv_batch_get(keys=padded.keys, partition_id="train", select_fields=["advantages"])
    again = data["advantages"].to_padded_tensor(0.0)
    torch.testing.assert_close(again[: len(given)], given, atol=0, rtol=0)
    assert not again[len(given) :].any()


def test_kl_in_the_reward_is_refused(trained: Any) -> None:
    trainer, batch, _ = trained
    trainer.config.algorithm.use_kl_in_reward = True
    with pytest.raises(ValueError, match="use_kl_in_reward=True would do nothing"):
        trainer._compute_advantage(batch, {})
    trainer.config.algorithm.use_kl_in_reward = False


def test_without_the_episodes_the_estimator_says_what_to_set() -> None:
    with pytest.raises(RuntimeError, match="set the environment variable VERL_USE_EXTERNAL"):
        get_adv_estimator_fn(NAME)(torch.zeros(1, 2), torch.ones(1, 2))


def next_log_probs(model: Any, data: Any) -> torch.Tensor:
    """What verl's engines give its loss: at each token the log-prob of the next, rows joined."""
    rows = []
    for ids in data["input_ids"].unbind():
        logits = model(ids[None]).logits[0]
        rows.append(logprobs_from_logits(logits, ids.roll(-1)))
    return torch.cat(rows)


def test_two_steps_of_verls_loss_learn(trained: Any, advantages: Any) -> None:
    """verl's actors need a GPU; its loss, on its batch, does not. Its first value is ours."""
    trainer, batch, _ = trained
    data = tq.kv_batch_get(keys=batch.keys, partition_id="train")
    model = AutoModelForCausalLM.from_pretrained(POLICY, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    actor = omega_conf_to_dataclass(trainer.config.actor_rollout_ref.actor)
    with torch.no_grad():
        old = no_padding_2_padding(next_log_probs(model, data), data)
    data["old_log_probs"] = response_to_nested(old, data["response_mask"])
    _, given, mask = advantages
    mask = mask.bool()
    sampled = data["rollout_log_probs"].to_padded_tensor(0.0)
    torch.testing.assert_close(old[mask], sampled[mask], atol=1e-4, rtol=0)
    tokens = int(mask.sum())
    tu.assign_non_tensor(data, dp_size=1, batch_num_tokens=tokens, global_batch_size=len(given))
    losses = []
    for _ in range(2):
        loss, _ = ppo_loss(actor, {"log_probs": next_log_probs(model, data)}, data)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    ours = policy_loss(old[mask], old[mask], given[mask], tokens)
    assert losses[0] == pytest.approx(float(ours.loss), abs=1e-5)
    assert losses[1] < losses[0]
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_the_retriever_is_a_tool_of_verls_own_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IGSEARCH_RETRIEVER", "world")
    monkeypatch.setenv("IGSEARCH_TOP_K", "2")
    (tool,) = load_all_tools(None, str(ROOT / "trainers/verl/search_tool.py"))
    assert tool.tool_schema.function.parameters.required == ["query"]
    found = json.loads(asyncio.run(tool.call({"query": QUESTIONS[0].text})))
    (expected,) = open_retriever("world").search([QUESTIONS[0].text], 2)
    assert [one["id"] for one in found] == [document.id for document in expected]


def test_the_code_of_the_page_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: PolicyServer
) -> None:
    """Its rows are played as its file of agent loops says, in validation."""
    blocks = read_blocks(ROOT / "docs/extend/verl.md")
    (code,) = [block for block in blocks if block.language == "python"]
    (loops,) = [block for block in blocks if block.language == "yaml"]
    monkeypatch.chdir(tmp_path)
    exec(compile(code.text, code.where, "exec"), {})
    (tmp_path / "loops.yaml").write_text(loops.text, encoding="utf-8")
    config = make_config(
        tmp_path / "loops.yaml", "data.max_prompt_length=256", "data.max_response_length=512"
    )
    asked = pd.read_parquet(tmp_path / "test.parquet").to_dict("records")[:2]
    batch = play(config, server, asked, validate=True)
    assert all(episode.finished for episode in episodes_of(batch.non_tensor_batch[EPISODE]))
    credit = make_credit_from(OmegaConf.to_container(OmegaConf.load("loops.yaml"))[0]["credit"])
    assert credit_of(config) == credit
