r"""Teach a policy to search and answer, on demonstrations of mixed query quality.

With --policy, a pretrained model learns the tags on real questions whose gold titles are known:
python -m scripts.warm_start --out runs/warm --policy models/SmolLM2-135M-Instruct.Q4_1.gguf \
    --questions data/train.questions.jsonl --index indexes/wiki

Without, the shipped policy of the embedded world is rebuilt from random weights:
python -m scripts.warm_start --out runs/warm_start
python -m scripts.warm_start --out runs/reader --random-facts --steps 3200
python -m scripts.warm_start --out runs/three_hops --hops 0.2 0.4 0.4 --steps 3200
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from igsearch_env.cli.program import (
    Parser,
    on_interrupt,
    output_folder,
    parse_early,
    quiet_transformers,
    run,
)
from igsearch_env.evaluation.settings import Precision


def _parser() -> argparse.ArgumentParser:
    parser = Parser(None, __doc__)
    parser.add_argument(
        "--out", type=output_folder, required=True, help="folder for policy and results.json"
    )
    parser.add_argument("--steps", type=int, help="updates")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--random-facts", action="store_true", help="in worlds whose names hint at nothing"
    )
    parser.add_argument(
        "--hops",
        type=float,
        nargs=3,
        metavar="SHARE",
        help="how often a question of the embedded world has 1, 2 and 3 hops (default: .3 .6 .1)",
    )
    real = parser.add_argument_group("real questions")
    real.add_argument("--policy", help="a checkpoint folder, a .gguf file or a name of the hub")
    real.add_argument("--questions", nargs="+", metavar="FILE", help="with gold titles")
    real.add_argument("--index", help="folder of a search index, or address of a server")
    real.add_argument(
        "--protocol",
        default="refine-bare",
        help="grammar that is taught: a preset, chat or tools for the model's own chat template "
        "(chat:refine-bare, say), or a .toml or .json file (default: refine-bare)",
    )
    real.add_argument("--top-k", type=int, default=1, help="documents per search")
    real.add_argument("--max-searches", type=int, default=3)
    real.add_argument("--max-new-tokens", type=int, default=32, help="longest turn, saved with it")
    real.add_argument("--batch-size", type=int, help="demonstrations per update")
    real.add_argument("--learning-rate", type=float)
    real.add_argument("--precision", choices=get_args(Precision), default="auto")
    real.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--resume", action="store_true", help="go on where a run was cut short")
    parser.add_argument("--smoke", action="store_true", help="a few steps, to see that it works")
    return parser


if __name__ == "__main__":
    parse_early(_parser)

from igsearch_env.cli.console import console, progress_bar
from igsearch_env.data.questions import load_questions
from igsearch_env.extras import extra
from igsearch_env.files import write_json
from igsearch_env.settings import EnvironmentSettings, make_engine
from igsearch_env.threads import set_threads


def main(argv: Sequence[str] | None = None) -> None:
    """Train and save.

    Args:
        argv: Command line arguments; None for those of the process.
    """
    arguments = _parser().parse_args(argv)
    if arguments.steps is not None and arguments.steps < 1:
        raise ValueError(f"--steps must be at least 1, got {arguments.steps}")
    policy_folder, checkpoint = arguments.out / "policy", arguments.out / "warm_start.pt"
    if policy_folder.exists():
        raise ValueError(f"{policy_folder} exists already; choose another folder or remove it")
    if checkpoint.exists() and not arguments.resume:
        raise ValueError(
            f"{checkpoint} is that of a run which was cut short; pass --resume to go on with it, "
            "or remove it"
        )
    if arguments.policy and not (arguments.questions and arguments.index):
        raise ValueError("--policy needs --questions and --index, the questions and the index")
    if arguments.policy and (arguments.hops or arguments.random_facts):
        raise ValueError("--hops and --random-facts are of the embedded world, not of --policy")
    with console.status("loading torch"), extra("train"):  # --help and typos need not wait for it
        import trainers.warm_start.training  # noqa: F401

    quiet_transformers()
    set_threads(arguments.threads)
    train = _on_real_questions if arguments.policy else _on_the_embedded_world
    with on_interrupt("--resume goes on after the last update"):
        train(arguments, policy_folder, checkpoint)


def _on_real_questions(arguments: argparse.Namespace, folder: Path, checkpoint: Path) -> None:
    import torch

    from agents.loading import load_policy, resolve_precision
    from trainers.local.checkpoint import save_policy
    from trainers.warm_start.real_questions import RealWarmStart, RealWarmStartSettings

    given: dict[str, Any] = {"seed": arguments.seed, "steps": arguments.steps}
    given |= {"batch_size": arguments.batch_size, "learning_rate": arguments.learning_rate}
    settings = RealWarmStartSettings(**{k: v for k, v in given.items() if v is not None})
    if arguments.smoke:
        settings = replace(settings, steps=2, batch_size=2)
    questions = [q for file in arguments.questions for q in load_questions(file)]
    known = [question for question in questions if question.gold_titles]
    if len(known) < len(questions):
        console.print(f"{len(questions) - len(known)} questions without gold titles are left out")
    if not known:
        raise ValueError("none of the questions has gold titles, which demonstrations search for")
    precision = resolve_precision(arguments.precision, arguments.device)
    policy = load_policy(
        arguments.policy,
        arguments.protocol,
        dtype=torch.float32,
        device=arguments.device,
        precision=precision,
        max_new_tokens=arguments.max_new_tokens,
        trained_in=EnvironmentSettings(
            top_k=arguments.top_k, max_searches=arguments.max_searches, counterfactual="documents"
        ).rules,
    )
    engine = make_engine(
        known,
        arguments.index,
        None,
        protocol=policy.protocol,
        max_searches=arguments.max_searches,
        top_k=arguments.top_k,
        num_counterfactuals=0,
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    losses: list[float] = []
    with progress_bar() as bar:
        task = bar.add_task("warm start", total=settings.steps, note="")

        def report(number: int, loss: float) -> None:
            losses.append(round(loss, 4))
            bar.update(task, completed=number, note=f"loss {loss:.3f}")
            if not console.is_terminal and number % 10 == 0:
                console.print(f"update {number}: loss {loss:.3f}")

        RealWarmStart(settings, policy, engine).run(report, checkpoint)
    save_policy(folder, policy)
    checkpoint.unlink(missing_ok=True)
    seconds = round(time.perf_counter() - started, 1)
    found = {"seconds": seconds, "precision": precision, "losses": losses}
    write_json(arguments.out / "results.json", found)
    console.print(f"policy: {folder}")


def _on_the_embedded_world(arguments: argparse.Namespace, folder: Path, checkpoint: Path) -> None:
    from agents.transformers_policy import TransformersPolicy
    from trainers.local.checkpoint import save_policy
    from trainers.warm_start.tiny_policy import PROTOCOL
    from trainers.warm_start.training import WarmStart, WarmStartSettings

    given: dict[str, Any] = {"seed": arguments.seed}
    if arguments.steps is not None:
        given["steps"] = arguments.steps
    if arguments.hops is not None:
        given["hops"] = tuple(arguments.hops)
    config = WarmStartSettings(**given, informative_bridges=not arguments.random_facts)
    if arguments.smoke:
        config = replace(config, steps=3, spoiling_steps=2, people=60, episodes_per_world=64)
    arguments.out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    with progress_bar() as bar:
        total = config.steps + config.spoiling_steps
        task = bar.add_task("warm start", total=total, note="")
        warm_start = WarmStart(config)
        warm_start.run(
            lambda n, loss: bar.update(task, completed=n, note=f"loss {loss:.3f}"), checkpoint
        )
    policy = TransformersPolicy(
        warm_start.model,
        warm_start.tokenizer,
        PROTOCOL,
        max_new_tokens=16,
        trained_in=EnvironmentSettings(
            max_searches=config.max_searches, top_k=1, counterfactual="documents"
        ).rules,
    )
    save_policy(folder, policy)
    checkpoint.unlink(missing_ok=True)
    seconds = round(time.perf_counter() - started, 1)
    write_json(arguments.out / "results.json", {"seconds": seconds})
    people = f"{config.people}:0"  # of a world that no demonstration came from
    console.print(
        f"policy: {folder}; see what it can do with igsearch evaluate --questions "
        f"world-test:{people} --corpus world:{people} --agent {folder} --out ..."
    )


if __name__ == "__main__":
    run(main)
