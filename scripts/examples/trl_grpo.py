"""TRL's GRPOTrainer on the environment, with information gain on the tokens of each query.

python -m scripts.examples.trl_grpo
python -m scripts.examples.trl_grpo --shaped    # TRL's own trainer: gains in the rewards instead

It needs the extra ``trl``: pip install -e ".[train,trl]"
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence

from igsearch_env.cli.program import Parser, parse_early, positive, run


def _parser() -> argparse.ArgumentParser:
    parser = Parser(None, __doc__)
    parser.add_argument("--steps", type=positive, default=60)
    parser.add_argument("--shaped", action="store_true", help="rewards instead of token credit")
    parser.add_argument("--eval-questions", type=positive, default=600)
    parser.add_argument("--people", type=positive, default=320, help="size of the world")
    parser.add_argument("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    parse_early(_parser)

from trl import GRPOConfig, GRPOTrainer

from agents.grpo_agent import GRPOAgent
from agents.loading import load_policy
from igsearch_env import BM25Retriever, SearchQAVectorEnv, World, make_credit
from igsearch_env.answers import bootstrap_interval
from igsearch_env.evaluation.play import play_questions
from trainers.trl.rollouts import SearchRollouts, TokenCreditTrainer, prompts, reward


def main(argv: Sequence[str] | None = None) -> None:
    """Train; print the exact match of sampled answers to held-out questions before and after.

    Args:
        argv: Command line arguments; None for those of the process.
    """
    arguments = _parser().parse_args(argv)
    world = World.generate(seed=0, people=arguments.people)  # the demo's world and rules
    train = [question for question in world.train_questions if question.hops == 2]
    held_out = [question for question in world.test_questions if question.hops == 2]
    held_out = held_out[: arguments.eval_questions]
    policy = load_policy("agents/world-tiny", seed=arguments.seed)
    envs = SearchQAVectorEnv(
        questions=train,
        retriever=BM25Retriever.build(world.documents),
        scorer=policy.scorer() if arguments.shaped else None,
        protocol=policy.protocol,
        max_searches=4,
        top_k=1,
        counterfactual="documents",
        information_gain_weight=0.3 if arguments.shaped else 0.0,
    )
    engine = envs.engine
    method = make_credit("outcome") if arguments.shaped else make_credit("ig_search", alpha=1.0)
    agent = GRPOAgent(policy, engine.information_gain, method)

    def exact_match() -> str:
        played = play_questions(engine, policy, held_out, seed=arguments.seed)
        values = [float(episode.em or 0.0) for episode in played]
        low, high = bootstrap_interval(values)
        return f"{sum(values) / len(values):.3f} [{low:.3f}, {high:.3f}]"

    before = exact_match()
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            folder,
            max_steps=arguments.steps,
            per_device_train_batch_size=80,
            num_generations=5,
            learning_rate=2e-4,
            lr_scheduler_type="constant",
            logging_steps=10,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            seed=arguments.seed,
        )
        trainer = (GRPOTrainer if arguments.shaped else TokenCreditTrainer)(
            policy.model,
            reward,
            args=config,
            train_dataset=prompts(train),
            processing_class=policy.tokenizer.tokenizer,
            rollout_func=SearchRollouts(engine, agent),
        )
        trainer.train()
    print(f"sampled EM on {len(held_out)} held-out questions: {before} -> {exact_match()}")


if __name__ == "__main__":
    run(main)
