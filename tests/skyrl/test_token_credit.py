"""Token credit in the real SkyRL: its client, its trainer's steps and its loss, on a CPU.

A stand-in answers where SkyRL has vLLM servers. It has an environment of its own: make test-skyrl.
"""

from __future__ import annotations

import asyncio
import shlex
import threading
from collections.abc import Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import skyrl_gym
import torch
from skyrl.backends.skyrl_train.inference_servers.engine_utils import (
    get_sampling_params_for_backend,
)
from skyrl.backends.skyrl_train.inference_servers.remote_inference_client import (
    RemoteInferenceClient,
)
from skyrl.backends.skyrl_train.utils.ppo_utils import PolicyLossRegistry
from skyrl.backends.skyrl_train.utils.torch_utils import logprobs_from_logits
from skyrl.train.config import SkyRLTrainConfig
from skyrl.train.dataset import PromptDataset
from skyrl.train.evaluate import evaluate
from skyrl.train.generators.skyrl_gym_generator import SkyRLGymGenerator
from skyrl.train.generators.utils import prepare_generator_input
from skyrl.train.utils.utils import validate_cfg
from skyrl_gym.envs.registration import deregister
from transformers import AutoModelForCausalLM

from agents.grpo_agent import GRPOAgent
from agents.transformers_policy import TransformersPolicy
from igsearch_env import load_questions
from igsearch_env.episode import Document, Episode, Step
from igsearch_env.retrieval.base import RetrievalError
from igsearch_env.rollout import collect
from igsearch_env.settings import EnvironmentSettings, make_engine
from tests.doc_pages import read_blocks
from tests.scripted_server import ScriptedServer
from tests.token_sampler import TokenSampler
from trainers.config import make_credit_from
from trainers.local.update import policy_loss
from trainers.rollout_settings import RolloutSettings
from trainers.skyrl import token_credit
from trainers.skyrl.environment import NAME, register, rows
from trainers.skyrl.token_credit import SearchExperiment, SearchGenerator
from trainers.steady import RetrieverLostError

ROOT = Path(__file__).resolve().parents[2]
POLICY = ROOT / "agents" / "world-tiny"
GROUP = 4
ROLLOUT = {
    "questions": "world-train",
    "eval_questions": "world-train",
    "retriever": "world",
    "protocol": "refine-bare",
    "max_searches": 4,
    "top_k": 1,
    "max_new_tokens": 16,
}
CREDIT = {"method": "ig_search", "alpha": 1.0}
QUESTIONS = load_questions("world-train")


def make_config(**changes: Any) -> Any:
    return SkyRLTrainConfig.from_cli_overrides(
        {
            "trainer.policy.model.path": str(POLICY),
            "trainer.algorithm.advantage_estimator": NAME,
            "trainer.algorithm.use_kl_loss": False,
            "trainer.train_batch_size": 6,
            "trainer.policy_mini_batch_size": 6,
            "trainer.placement.policy_num_gpus_per_node": 1,
            "trainer.logger": "console",
            "trainer.print_example_interval": 0,
            "trainer.dump_eval_results": False,
            "trainer.enable_ray_gpu_monitor": False,
            "trainer.eval_batch_size": 12,
            "generator.n_samples_per_prompt": GROUP,
            "generator.max_input_length": 384,
            "generator.inference_engine.enable_ray_prometheus_stats": False,
            "generator.sampling_params.max_generate_length": 16,
            "data.dataloader.num_workers": 0,
            **changes,
        }
    )


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    """Speaks as vLLM does at ``/inference/v1/generate``, and as SkyRL's router."""
    torch.set_num_threads(1)
    policy, one_at_a_time = TokenSampler(POLICY, seed=1), threading.Lock()
    server = ScriptedServer()

    def answer(number: int, body: dict[str, Any]) -> tuple[int, Any]:
        if not server.paths[number].endswith("/inference/v1/generate"):
            return 200, {}
        asked = body["sampling_params"]
        found: dict[str, Any] = {}
        with one_at_a_time:
            if asked.get("prompt_logprobs") is not None:
                picked = policy.prompt_log_probs(body["token_ids"])
                table = zip(body["token_ids"][1:], picked, strict=True)
                rows = [{str(token): {"logprob": value}} for token, value in table]
                found["prompt_logprobs"] = [None, *rows]
            ids, log_probs = policy.sample(
                body["token_ids"],
                asked["max_tokens"],
                asked["temperature"],
                asked.get("stop") or (),
            )
        stopped = len(ids) < asked["max_tokens"]
        choice = {
            "token_ids": ids,
            "finish_reason": "stop" if stopped else "length",
            "logprobs": {"content": [{"logprob": value} for value in log_probs]},
        }
        return 200, {"choices": [choice], **found}

    server.answer = answer
    yield server
    server.close()


@pytest.fixture
def client(server: ScriptedServer) -> RemoteInferenceClient:
    url = server.url.removesuffix("/v1")
    tokenizer = TransformersPolicy.from_pretrained(POLICY).tokenizer.tokenizer
    return RemoteInferenceClient(url, [url], 1, model_name=str(POLICY), tokenizer=tokenizer)


def make_trainer(client: Any, folder: Path, config: Any = None, credit: Any = CREDIT) -> Any:
    """SkyRL's trainer as its entry point makes it, without workers: those need GPUs."""
    config = config or make_config()
    tokenizer = client.tokenizer
    tokenizer.chat_template = "{{ messages[0].content }}"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    pd.DataFrame(rows(QUESTIONS[:12])).to_parquet(folder / "train.parquet")
    data = PromptDataset(str(folder / "train.parquet"), tokenizer, 512, num_workers=1)
    experiment = SearchExperiment.__new__(SearchExperiment)  # its own __init__ waits for GPUs
    experiment.rollout = RolloutSettings(**ROLLOUT)
    experiment.credit = make_credit_from(credit)
    generator = experiment.get_generator(config, tokenizer, client)
    trainer = experiment.get_trainer(
        cfg=config,
        tracker=None,
        tokenizer=tokenizer,
        train_dataset=data,
        eval_dataset=data,
        inference_engine_client=client,
        generator=generator,
        colocate_pg=None,
    )
    trainer.dispatch = SimpleNamespace(get_lcm_dp_size=lambda: 1)
    return trainer


def watch(generator: SearchGenerator, patch: pytest.MonkeyPatch) -> list[list[Episode]]:
    """The episodes of each batch that the generator plays."""
    batches: list[list[Episode]] = []
    found = token_credit.batch_metrics
    patch.setattr(
        token_credit, "batch_metrics", lambda played: (batches.append([*played]), found(played))[1]
    )
    return batches


def run(job: Coroutine[Any, Any, Any], client: Any) -> Any:
    async def main() -> Any:
        try:
            return await job
        finally:
            await client._get_generate_client().aclose()

    return asyncio.run(main())


def test_greedy_episodes_are_those_of_the_environment(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SkyRL's own evaluation plays, at temperature 0."""
    policy = TransformersPolicy.from_pretrained(POLICY, greedy=True)
    settings = EnvironmentSettings("world-train", "world", max_searches=4, top_k=1)
    engine = make_engine(scorer=None, settings=settings, protocol=policy.protocol)
    expected = collect(engine, policy, QUESTIONS[:12], [q.id for q in QUESTIONS[:12]])
    trainer = make_trainer(client, tmp_path)
    batches = watch(trainer.generator, monkeypatch)
    metrics = run(
        evaluate(trainer.eval_dataloader, trainer.generator, trainer.cfg, 0, trainer.tokenizer),
        client,
    )
    (played,) = batches
    assert sum(len(episode.searches) for episode in played) > 12
    for episode, ours in zip(played, expected, strict=True):
        assert [s.text for s in episode.transcript] == [s.text for s in ours.transcript]
        assert (episode.outcome, episode.em, episode.answer) == (ours.outcome, ours.em, ours.answer)
    outcomes = [float(episode.outcome or 0.0) for episode in expected]
    assert metrics["eval/all/avg_score"] == pytest.approx(sum(outcomes) / 12)
    assert sum(outcomes) > 0
    assert metrics["eval/all/igsearch_mean/em"] == pytest.approx(
        sum(float(episode.em or 0.0) for episode in expected) / 12
    )


@pytest.fixture(scope="module")
def batch(
    server: ScriptedServer, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, list[Episode], Any, Any]:
    """A batch on its way through SkyRL's trainer: trainer, episodes, what was made, its tensors."""
    url = server.url.removesuffix("/v1")
    tokenizer = TransformersPolicy.from_pretrained(POLICY).tokenizer.tokenizer
    client = RemoteInferenceClient(url, [url], 1, model_name=str(POLICY), tokenizer=tokenizer)
    trainer = make_trainer(client, tmp_path_factory.mktemp("skyrl"))
    assert trainer.generator.steps == trainer.total_training_steps == 2
    sampling = get_sampling_params_for_backend("vllm", trainer.cfg.generator.sampling_params)
    asked, uids = prepare_generator_input(
        next(iter(trainer.train_dataloader)), GROUP, sampling, NAME, "train", 1
    )
    with pytest.MonkeyPatch.context() as patch:
        batches = watch(trainer.generator, patch)
        made = run(trainer.generate(asked), client)
    made, uids = trainer.postprocess_generator_output(made, uids)
    data = trainer.convert_to_training_input(made, uids)
    data["values"] = None
    data = trainer.compute_advantages_and_returns(data)
    return trainer, batches[0], made, data


def unsettled(step: Step) -> Step:
    return replace(
        step, information_gain=None, log_prob=None, before_log_prob=None, baseline_log_probs=None
    )


def test_token_advantages_are_those_of_the_local_trainer(batch: Any) -> None:
    """The local agent settles the same episodes with the same weights."""
    trainer, played, _, data = batch
    gain = trainer.generator.tables.training.engine.information_gain
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
        mask = data["loss_mask"][row].bool()
        torch.testing.assert_close(
            data["advantages"][row][mask],
            torch.tensor(values, dtype=torch.float32),
            atol=1e-5,
            rtol=0,
        )
        assert not data["advantages"][row][~mask].any()


def test_documents_are_masked_and_log_probs_stand_at_their_tokens(batch: Any) -> None:
    trainer, played, made, data = batch
    tokenizer = trainer.tokenizer
    for row, episode in enumerate(played):
        ids, mask = made["response_ids"][row], made["loss_masks"][row]
        written = [token for step in episode.steps for token in step.turn.token_ids]
        assert [token for token, mine in zip(ids, mask, strict=True) if mine] == written
        others = tokenizer.decode([t for t, mine in zip(ids, mask, strict=True) if not mine])
        for document in (d for step in episode.searches for d in step.documents):
            assert document.text in others
        logged = [value for step in episode.steps for value in step.log_probs]
        mine = data["loss_mask"][row].bool()
        assert data["rollout_logprobs"][row][mine].tolist() == pytest.approx(logged)
        assert not data["rollout_logprobs"][row][~mine].any()


def test_two_steps_of_skyrls_loss_learn(batch: Any) -> None:
    """SkyRL's workers need a GPU; its loss, on its batch, does not. Its first value is ours."""
    trainer, _, _, data = batch
    raw = data["advantages"].clone()
    bounds = data.metadata["policy_mini_batch_boundaries"]
    scaled = trainer._normalize_advantages(data, bounds)["advantages"]
    model = AutoModelForCausalLM.from_pretrained(POLICY, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    algorithm = trainer.cfg.trainer.algorithm
    loss_of = PolicyLossRegistry.get(algorithm.policy_loss_type)
    mask, width = data["loss_mask"], data["loss_mask"].shape[1]

    def log_probs() -> torch.Tensor:
        attention = data["attention_mask"]
        places = (attention.cumsum(-1) - 1).clamp(min=0)
        logits = model(data["sequences"], attention_mask=attention, position_ids=places).logits
        known: torch.Tensor = logprobs_from_logits(logits, data["sequences"].roll(-1, 1))
        return known[:, -width - 1 : -1]

    with torch.no_grad():
        old = log_probs()
    chosen = mask.bool()
    torch.testing.assert_close(old[chosen], data["rollout_logprobs"][chosen], atol=1e-4, rtol=0)
    losses = []
    for _ in range(2):
        loss, _ = loss_of(log_probs(), old, scaled, algorithm, mask, data["rollout_logprobs"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    ours = policy_loss(old[chosen], old[chosen], raw[chosen], int(mask.sum()))
    assert losses[0] == pytest.approx(float(ours.loss), abs=1e-5)
    assert losses[1] < losses[0]
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_skyrls_own_generator_masks_documents_and_pays_at_the_ends_of_turns(
    client: Any, tmp_path: Path
) -> None:
    """The text environment, where SkyRL's generator plays it."""
    settings = {k: v for k, v in ROLLOUT.items() if k not in ("eval_questions", "max_new_tokens")}
    register({**settings, "information_gain_weight": 0.5}, scorer="unigram")
    trainer = make_trainer(client, tmp_path)
    config = trainer.cfg.generator
    config.max_turns = 9
    tokenizer = client.tokenizer
    end = tokenizer.eos_token
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}" + end + "{% endif %}"
        "{% endfor %}"
    )
    generator = SkyRLGymGenerator(
        config, trainer.cfg.environment.skyrl_gym, client, tokenizer, str(POLICY)
    )
    played: dict[int, Any] = {}  # by row: episodes begin in no order
    make = skyrl_gym.make

    def kept(*given: Any, extras: Any, **more: Any) -> Any:
        played[extras["row"]] = made = make(*given, extras=extras, **more)
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(skyrl_gym, "make", kept)
        sampling = get_sampling_params_for_backend("vllm", config.sampling_params)
        sampling = {**sampling, "stop": ["</search>", "</answer>"]}
        asked, _ = prepare_generator_input(
            next(iter(trainer.train_dataloader)), GROUP, sampling, NAME, "train", 1
        )
        for row, extras in enumerate(asked["env_extras"]):
            extras["row"] = row
        made = run(generator.generate(asked, disable_tqdm=True), client)
    deregister(NAME)
    documents = 0
    for row, env in played.items():
        ids, mask, paid = (made[name][row] for name in ("response_ids", "loss_masks", "rewards"))
        shown = tokenizer.decode([t for t, mine in zip(ids, mask, strict=True) if not mine])
        written = tokenizer.decode([t for t, mine in zip(ids, mask, strict=True) if mine])
        steps = env.episode.steps
        for step in steps[:-1]:
            for document in step.documents:
                documents += 1
                assert document.text in shown
                assert document.text not in written
        given = [value for value in paid if value]
        assert given == pytest.approx([step.reward for step in steps if step.reward])
    assert documents > 24
    assert any(paid for paid in made["rewards"])


class Down:
    """A retriever that fails: for the first query that it ever gets, or for all."""

    def __init__(self, retriever: Any = None) -> None:
        self.retriever = retriever
        self.first = ""

    def search(self, queries: list[str], k: int) -> list[list[Document]]:
        self.first = self.first or queries[0]
        if self.retriever is None or self.first in queries:
            raise RetrievalError("down")
        found: list[list[Document]] = self.retriever.search(queries, k)
        return found


def play(trainer: Any, client: Any) -> Any:
    sampling = get_sampling_params_for_backend("vllm", trainer.cfg.generator.sampling_params)
    asked, _ = prepare_generator_input(
        next(iter(trainer.train_dataloader)), GROUP, sampling, NAME, "train", 1
    )
    return run(trainer.generate(asked), client)


def test_nothing_is_learned_from_an_episode_whose_search_failed(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(client, tmp_path, credit={"method": "outcome"})
    engine = trainer.generator.tables.training.engine
    engine.retriever = Down(engine.retriever)
    object.__setattr__(trainer.generator.settings, "max_failed_searches", 1.0)
    batches = watch(trainer.generator, monkeypatch)
    made = play(trainer, client)
    left_out = [episode.left_out for episode in batches[0]]
    assert any(left_out)
    for row, out in enumerate(left_out):
        assert any(made["loss_masks"][row]) != out
        assert not (out and any(made["rewards"][row]))


def test_a_lost_retriever_ends_the_run(client: Any, tmp_path: Path) -> None:
    trainer = make_trainer(client, tmp_path)
    trainer.generator.tables.training.engine.retriever = Down()
    with pytest.raises(RetrieverLostError, match="100% of the searches failed in the last of 3"):
        play(trainer, client)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"trainer.algorithm.advantage_estimator": "grpo"}, "advantage_estimator=igsearch, got"),
        ({"trainer.algorithm.advantage_batch_normalize": True}, "does not go with token credit"),
        ({"trainer.algorithm.dynamic_sampling.type": "filter"}, "dynamic_sampling.type=filter"),
        ({"generator.step_wise_trajectories": True}, "of whole episodes; leave it out"),
        ({"generator.sampling_params.max_generate_length": 8}, "is only 8; make it larger"),
    ],
)
def test_settings_of_skyrl_that_do_not_fit_are_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        SearchExperiment(make_config(**change), ROLLOUT, CREDIT)


def test_a_row_of_another_set_is_named(client: Any, tmp_path: Path) -> None:
    trainer = make_trainer(client, tmp_path)
    trainer.generator.questions["train"].clear()
    with pytest.raises(ValueError, match="is not one of the settings; make the data sets"):
        play(trainer, client)


def test_the_program_of_the_page_is_what_skyrl_accepts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its settings pass SkyRL's own check, and ours; then it would wait for GPUs."""
    (code,) = [
        block
        for block in read_blocks(ROOT / "docs/extend/skyrl.md")
        if block.language == "python" and "SearchExperiment" in block.text
    ]
    (command,) = [
        block
        for block in read_blocks(ROOT / "docs/extend/skyrl.md")
        if block.language == "text" and "advantage_estimator" in block.text
    ]
    names: dict[str, Any] = {"__name__": "my_training"}
    exec(compile(code.text, code.where, "exec"), names)
    words = shlex.split(command.text.replace("\\\n", " "))
    config = SkyRLTrainConfig.from_cli_overrides(words[words.index("train_skyrl.py") + 1 :])
    monkeypatch.setenv("WANDB_API_KEY", "none")
    validate_cfg(config)
    started: list[Any] = []
    monkeypatch.setattr(
        SearchExperiment.__mro__[1], "__init__", lambda self, cfg: started.append(cfg)
    )
    monkeypatch.setattr(SearchExperiment, "run", lambda self: started.append(self))
    names["train"](config)
    assert started[0] is config
    assert started[1].credit == make_credit_from({"method": "ig_search", "alpha": 1.0})
