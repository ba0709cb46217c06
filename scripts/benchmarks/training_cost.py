r"""What information gain adds to a training step: seconds of rollout, scoring and update.

python -m scripts.benchmarks.training_cost --out runs/bench_training_cost
python -m scripts.benchmarks.training_cost --out runs/cost_gpu --device cuda --layers 28 \
    --hidden 1536 --rollouts 40 --searches 2

The model has random weights (60 million by default) and would never write a search, so its
turns are dictated: every token is sampled as usual, but which one comes out is fixed beforehand.
Decoding, log-probabilities, retrieval, scoring and the update are those of real training; documents
are synthetic, 150 words each.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from igsearch_env.cli.program import parse_early, positive, run
from scripts.benchmarks.kit import benchmark_parser, print_rows


def _parser() -> argparse.ArgumentParser:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    for name, default in {"layers": 9, "hidden": 512, "rollouts": 2, "searches": 4}.items():
        parser.add_argument(f"--{name}", type=positive, default=default)
    return parser


if __name__ == "__main__":
    parse_early(_parser)

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from agents.grpo_agent import GRPOAgent
from agents.tokenization import SegmentTokenizer
from agents.transformers_policy import TransformersPolicy
from igsearch_env import BM25Retriever, Document, Evidence, Question, Segment, make_credit
from igsearch_env.completion import Completion
from igsearch_env.data.lexicon import FIRST_NAMES, NAME_WORDS
from igsearch_env.engine import SearchQAEngine
from igsearch_env.episode import Episode
from igsearch_env.files import write_json
from igsearch_env.rollout import collect
from igsearch_env.settings import make_engine
from igsearch_env.threads import set_threads
from scripts.benchmarks.scoring import make_model
from trainers.config import OptimizationSettings
from trainers.local.update import Updater
from trainers.warm_start.tiny_policy import PROTOCOL, build_tokenizer

WORDS = sorted({*FIRST_NAMES, *(word for words in NAME_WORDS.values() for word in words)})
DOCUMENT, QUESTION = 150, 190  # words
REFINEMENT, THOUGHT, QUERY = 90, 45, 8  # words
QUESTIONS = 40
COLUMNS = {"part": ("part", "s"), "seconds": ("seconds", ".1f"), "share": ("share", ".0%")}


class DictatedPolicy(TransformersPolicy):
    """Samples turns whose tokens are fixed beforehand: searches, then an answer.

    All rows of a call are in the same step, and their turns have the same length.

    Args:
        model: A causal language model.
        tokenizer: The tokenizer of the shipped policy: each of ``WORDS`` is one token.
        searches: Number of searches before the answer.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: SegmentTokenizer, searches: int) -> None:
        super().__init__(model, tokenizer, PROTOCOL, max_new_tokens=512)
        self.searches = searches
        self._turns = torch.empty(0, 0, dtype=torch.long)  # (B, tokens)
        self._written = 0

    def act(self, episodes: Sequence[Episode]) -> list[Completion]:
        """Write the next turn of each episode; they are all at the same step."""
        rng = np.random.default_rng([len(episodes[0].steps), len(episodes)])
        turns = [self.tokenizer.encode_segment(self._turn(e, rng)) for e in episodes]
        self._turns = torch.tensor(turns)
        self._written = 0
        return super().act(episodes)

    def _turn(self, episode: Episode, rng: np.random.Generator) -> Segment:
        refinement = f" <refine>{_words(rng, REFINEMENT)} </refine>" if episode.steps else ""
        if len(episode.steps) == self.searches:
            return Segment(f"{refinement} <answer>{_words(rng, 2)} </answer>", "policy")
        search = f" <search>{_words(rng, QUERY)} </search>"
        return Segment(f"{refinement}{_words(rng, THOUGHT)}{search}", "policy")

    def _choose(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        log_probs = torch.log_softmax(logits / self.temperature, dim=-1)
        ids = self._turns[:, self._written, None].to(logits.device)
        self._written += 1
        return ids[:, 0], log_probs.gather(1, ids)[:, 0]


def main(argv: Sequence[str] | None = None) -> None:
    """Run one step and print where its time went.

    Args:
        argv: Command line arguments; None for those of the process.
    """
    arguments = _parser().parse_args(argv)
    if arguments.hidden % 128:
        raise ValueError(f"--hidden must be a multiple of 128, got {arguments.hidden}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda needs a GPU that PyTorch sees; there is none")
    set_threads(arguments.threads)
    size = {name: getattr(arguments, name) for name in ("layers", "hidden", "searches")}
    if arguments.device != "cpu":  # the first kernels of a process are loaded and chosen
        train_step(**size, rollouts=2, device=arguments.device)
    size["rollouts"] = arguments.rollouts
    seconds, _, parameters = train_step(**size, device=arguments.device)
    total = sum(seconds.values())
    rows: list[dict[str, Any]] = [
        {"part": part, "seconds": round(value, 2), "share": round(value / total, 3)}
        for part, value in seconds.items()
    ]
    print_rows(f"one training step, {parameters / 1e6:.0f} M random parameters", rows, COLUMNS)
    machine = torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu"
    run_with = {"parameters": parameters, "size": size, "device": machine}
    write_json(arguments.out / "results.json", {"rows": rows, **run_with})


def train_step(
    layers: int, hidden: int, searches: int, rollouts: int, device: str = "cpu"
) -> tuple[dict[str, float], list[Episode], int]:
    """A step of GRPO with information gain.

    Returns:
        Wall seconds by part, the settled episodes, and the number of parameters.
    """
    model: Any = make_model(layers, hidden)
    model.to(device)
    tokenizer = SegmentTokenizer(build_tokenizer())
    policy = DictatedPolicy(model, tokenizer, searches)
    engine = make_engine_of_words(searches)
    agent = GRPOAgent(policy, engine.information_gain, make_credit("ig_search"))
    config = OptimizationSettings(steps=1, kl=0.001, micro_batch_size=1)
    updater = Updater(model, tokenizer, config, reference=copy.deepcopy(model).eval())
    seconds: defaultdict[str, float] = defaultdict(float)
    asked = [engine.questions[0]] * rollouts
    episodes = collect(engine, agent, asked, ["group"] * rollouts, seconds=seconds)
    started = time.perf_counter()
    episodes = agent.settle(episodes)
    settled = time.perf_counter()
    updater.step(episodes, agent.advantages(episodes), np.random.default_rng(0))
    if model.device.type == "cuda":
        torch.cuda.synchronize()  # the other parts end with numbers that they wait for
    seconds["information gain"] = settled - started
    seconds["update"] = time.perf_counter() - settled
    return dict(seconds), episodes, model.num_parameters()


def make_engine_of_words(searches: int) -> SearchQAEngine:
    """An engine over synthetic documents, its pool filled by searches for other questions."""
    rng = np.random.default_rng(0)
    documents = [Document(str(i), "", _words(rng, DOCUMENT).strip()) for i in range(400)]
    questions = [
        Question(str(i), _words(rng, QUESTION).strip(), (_words(rng, 2).strip(),))
        for i in range(QUESTIONS)
    ]
    engine = make_engine(
        questions,
        BM25Retriever.build(documents),
        None,
        protocol=PROTOCOL,
        max_searches=searches,
    )
    for question in questions[1:]:
        (found,) = engine.retriever.search([_words(rng, QUERY)], engine.top_k)
        refinement = Segment(f" <refine>{_words(rng, REFINEMENT)} </refine>", "policy")
        engine.pool.add(Evidence(tuple(found), refinement, question.id, question.text))
    return engine


def _words(rng: np.random.Generator, count: int) -> str:
    return "".join(f" {word}" for word in rng.choice(WORDS, count))


if __name__ == "__main__":
    run(main)
