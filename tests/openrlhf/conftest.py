"""What the tests with OpenRLHF share. They need an environment of their own: make test-openrlhf.

OpenRLHF, Ray, DeepSpeed and transformers are real. Only vLLM's engine and flash-attn have
stand-ins, in ``standins``, and ``torch.cuda`` is told that it is a CPU.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
STANDINS = HERE / "standins"
collect_ignore = ["standins"]

if find_spec("openrlhf") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    # DeepSpeed compiles two small extensions when it is first used; they stay in the environment.
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # ninja
    sys.path.insert(0, str(STANDINS))
    import cpu_for_cuda

    cpu_for_cuda.install()

POLICY = ROOT / "agents" / "world-tiny"
TINY = {
    "ig.protocol": "refine-bare",
    "ig.max_searches": 4,
    "ig.top_k": 1,
    "ig.max_new_tokens": 16,
    "ig.counterfactual": "documents",
    "ig.alpha": 1.0,
    "ig.dead_zone": 0.0,
    "actor.model_name_or_path": POLICY,
    "actor.num_gpus_per_node": 2,
    "actor.lr_scheduler": "constant_with_warmup",
    "actor.adam.lr": 1e-3,
    "rollout.batch_size": 8,
    "rollout.n_samples_per_prompt": 4,
    "rollout.micro_batch_size": 4,
    "train.batch_size": 32,
    "train.micro_batch_size": 4,
    "data.max_len": 512,
    "algo.kl.init_coef": 0.0,
    "ds.zero_stage": 3,
    "ds.attn_implementation": "eager",
    "vllm.num_engines": 1,
    "vllm.sync_backend": "gloo",
    "ckpt.save_steps": 1,
}
"""Flags of a run with the shipped policy in its own world."""


def as_words(flags: dict[str, Any]) -> list[str]:
    """Flags as a command line; None for none, True for one without a value, False for off."""
    words: list[str] = []
    for name, value in flags.items():
        if value is False:
            words.append(f"--{name}=false")
        elif value is not None:
            words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return words


@pytest.fixture(scope="session")
def world() -> Any:
    """The world that the shipped policy was taught in."""
    from igsearch_env.data.world import World

    return World.generate(0, people=320)


WriteQuestions = Callable[[Path, Sequence[Any]], Path]


def write_questions(path: Path, questions: Sequence[Any]) -> Path:
    """A question set as JSONL."""
    from igsearch_env.record import to_record

    rows = []
    for question in questions:
        record = to_record(question)
        rows.append({**record, "question": record.pop("text")})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def questions(world: Any) -> list[Any]:
    """2-hop questions, which the policy searches for."""
    return [question for question in world.train_questions if question.hops == 2][:48]


@pytest.fixture(scope="session")
def question_file(tmp_path_factory: pytest.TempPathFactory, questions: list[Any]) -> Path:
    return write_questions(tmp_path_factory.mktemp("questions") / "train.jsonl", questions)


@pytest.fixture(scope="session")
def index(tmp_path_factory: pytest.TempPathFactory, world: Any) -> Path:
    """The world's passages as a saved index."""
    from igsearch_env.retrieval.bm25 import BM25Retriever

    folder = tmp_path_factory.mktemp("index") / "world"
    BM25Retriever.build(world.documents).save(folder)
    return folder


@pytest.fixture
def command(tmp_path: Path, question_file: Path, index: Path) -> Callable[..., list[str]]:
    """The command line of a tiny run, its retriever an index unless it is told of a server."""

    def make(**changes: Any) -> list[str]:
        flags = {
            "out": tmp_path / "run",
            "ig.questions": question_file,
            "ig.retriever": index,
            **TINY,
            **{name.replace("__", "."): value for name, value in changes.items()},
        }
        return as_words(flags)

    return make
