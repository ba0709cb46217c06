"""The program up to the start of Ray: OpenRLHF's own parser and validators, and clear errors."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
import vllm

from tests.doc_pages import read_blocks
from trainers.openrlhf.flags import read_flags
from trainers.openrlhf.launch import Checked, launch

from .conftest import POLICY, ROOT, as_words, write_questions

CONFIGS = sorted((ROOT / "trainers" / "configs").glob("openrlhf_*.toml"))
DOCUMENTED = [
    pytest.param(words, id=block.where)
    for block in read_blocks(ROOT / "docs/guides/cluster.md")
    for words in re.findall(
        r"python -m scripts\.train_openrlhf (.*)", block.text.replace("\\\n", " ")
    )
]
HALVES = as_words({"actor.num_gpus_per_node": 4, "ref.num_gpus_per_node": 4, "vllm.num_engines": 4})
"""8 GPUs for an asynchronous run."""


def check(words: list[str]) -> Any:
    """Run the program up to the start of Ray; OpenRLHF's settings."""
    with pytest.raises(Checked) as checked:
        launch(read_flags([*words, "--check"]))
    assert not ray.is_initialized()
    return checked.value.args[0]


class Started(Exception):
    """Raised in place of the start of Ray."""


def start(**options: Any) -> None:
    assert json.loads(options["runtime_env"]["env_vars"]["IGSEARCH_ROLLOUT"])["top_k"] == 1
    raise Started


def refuse(words: list[str], message: str) -> None:
    """Check that the program ends with an error that says what to do, and starts nothing."""
    with pytest.raises(ValueError, match=message):
        launch(read_flags(words))
    assert not ray.is_initialized()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.parametrize(
    "more",
    [
        [],
        ["--ig.credit", "outcome"],
        ["--ig.scorer", "vllm", "--ig.alpha", "0.5"],
        ["--train.dynamic_batch_enable"],
        ["--train.async_enable", "--vllm.enable_sleep=false", *HALVES],
    ],
)
def test_the_configs_pass_openrlhfs_parser_and_validators(
    config: Path, more: list[str], tmp_path: Path, world: Any, index: Path
) -> None:
    questions = write_questions(tmp_path / "q.jsonl", world.train_questions[:300])
    here = ["--actor.model_name_or_path", str(POLICY), "--ig.questions", str(questions)]
    here += ["--ig.retriever", str(index), "--out", str(tmp_path / "run")]
    args = check(["--config", str(config), *here, *more])
    assert args.rollout.n_samples_per_prompt == 5
    assert args.rollout.batch_size * args.rollout.n_samples_per_prompt == args.train.batch_size
    assert args.data.max_samples == 200 * args.rollout.batch_size
    assert args.algo.kl.use_loss
    assert args.critic.model_name_or_path is None
    assert args.ig.rollout.max_searches == 5
    assert not (tmp_path / "run").exists()


def test_the_pages_have_command_lines() -> None:
    assert len(DOCUMENTED) >= 3


@pytest.mark.parametrize("words", DOCUMENTED)
def test_the_command_lines_of_the_pages_pass(
    words: str, tmp_path: Path, world: Any, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)  # they name configs of the checkout
    questions = write_questions(tmp_path / "q.jsonl", world.train_questions[:300])
    here = ["--actor.model_name_or_path", str(POLICY), "--ig.questions", str(questions)]
    here += ["--ig.retriever", str(index), "--out", str(tmp_path / "run")]
    args = check([*shlex.split(words), *here])
    assert args.ig.rollout.max_searches == 5
    assert args.ig.credit["method"] == "ig_search"
    assert not (tmp_path / "run").exists()


def test_questions_are_asked_in_whole_batches(
    command: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The rest of a data set would be a batch that ranks cannot share out evenly."""

    def asked(name: str, **changes: Any) -> int:
        folder = tmp_path / name
        with pytest.raises(Started):
            launch(read_flags(command(out=folder, **changes)))
        return len((folder / "data" / "train.jsonl").read_text().splitlines())

    batch = {"rollout__batch_size": 10, "train__batch_size": 40, "train__micro_batch_size": 2}
    batch["rollout__micro_batch_size"] = 2
    monkeypatch.setattr(ray, "init", start)
    assert asked("all", **batch) == 40  # of 48
    assert asked("some", **batch, data__max_samples=25) == 20
    assert check(command(**batch, train__num_episodes=3)).ig.steps == 12
    assert check(command(**batch, data__max_samples=25)).ig.steps == 2
    refuse(command(**batch, data__max_samples=9), "max_samples is 9, but a batch .* asks 10")


def test_openrlhfs_validators_speak_in_one_line(command: Callable[..., list[str]]) -> None:
    refuse(
        command(rollout__n_samples_per_prompt=1),
        "OpenRLHF refuses these flags: group_norm requires n_samples_per_prompt > 1",
    )
    with pytest.raises(SystemExit):
        launch(read_flags([*command(), "--no.such_flag"]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algo__kl__init_coef": 0.01}, "add --algo.kl.use_loss"),
        ({"reward__overlong_buffer_len": 9}, "overlong_buffer_len changes the reward"),
        ({"ds__tensor_parallel_size": 2}, "tensor_parallel_size above 1, got 2"),
        (
            {"rollout__batch_size": 64, "train__batch_size": 64},
            "48 questions .* asks 64",
        ),
        ({"vllm__num_engines": None}, "by vLLM engines, got --vllm.num_engines None"),
        ({"vllm__num_engines": 0}, "by vLLM engines, got --vllm.num_engines 0"),
        ({"train__colocate_all": True}, r"got 1 .* and 2; set --vllm\.num_engines 2"),
        ({"train__batch_size": 28}, r"--train\.batch_size must be a multiple of 8.* got 28"),
        ({"rollout__batch_size": 7, "train__batch_size": 24}, "n_samples.* multiple of 8.* got 28"),
        ({"train__batch_size": 64}, r"--train\.batch_size must divide 32"),
        ({"data__disable_fast_tokenizer": True}, "no character offsets.*leave it out"),
        ({"critic__freezing_steps": 1000}, "a critic, and there is none"),
        ({"algo__dynamic_filtering_enable": True}, "credit of searches still teaches"),
        ({"ig__eval_questions": "world-test"}, r"not set; give --eval\.steps"),
        ({"data__max_len": 12}, "tokens, which leaves no room for a turn in 12; raise --data"),
        ({"actor__model_name_or_path": "/nowhere"}, "cannot load a tokenizer from '/nowhere'"),
        ({"actor__model_name_or_path": None}, "there is no policy; give --actor"),
        ({"ig__retriever": "http://127.0.0.1:9/retrieve"}, "does not answer .* start it first"),
        ({"ig__retriever": "/nowhere"}, "unknown retriever '/nowhere'"),
        ({"ig__questions": "/nowhere.jsonl"}, "unknown question set"),
        ({"ig__protocol": "chat"}, "has no chat template"),
    ],
)
def test_what_cannot_go_well_is_refused_before_ray_starts(
    command: Callable[..., list[str]], changes: dict[str, Any], message: str
) -> None:
    refuse(command(**changes), message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; a question set needs at least one row"),
        ('{"question": "who?", "golden_answers": []}\n', "has no golden answers"),
        ('{"question": "who?"}\n', "line 1"),
    ],
)
def test_a_bad_question_file_is_refused_before_ray_starts(
    command: Callable[..., list[str]], tmp_path: Path, text: str, message: str
) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text(text)
    refuse(command(ig__questions=file), message)


def test_a_folder_keeps_to_one_run(
    command: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    questions: list[Any],
) -> None:
    mine = write_questions(tmp_path / "mine.jsonl", questions)
    run = partial(command, ig__questions=mine)
    refuse([*run(), "--resume"], "there is no run to resume")
    monkeypatch.setattr(ray, "init", start)
    with pytest.raises(Started):
        launch(read_flags(run()))
    rows = (tmp_path / "run" / "data" / "train.jsonl").read_text().splitlines()
    assert len({json.loads(row)["label"] for row in rows}) == 48
    refuse(run(), "holds a run already; pass --resume")
    refuse(
        [*run(ig__top_k=2, ig__alpha=0.5), "--resume"],
        "rollout: top_k was 1, got 2; credit: alpha was 1.0, got 0.5",
    )
    refuse(
        [*run(train__seed=1, data__max_samples=32), "--resume"],
        "data: data.max_samples was 100000000, got 32; data: train.seed was 42, got 1",
    )
    rows = mine.read_text().splitlines(keepends=True)
    mine.write_text("".join(reversed(rows)))
    refuse([*run(), "--resume"], "the questions have changed since the run")
    mine.write_text("".join(rows))
    with pytest.raises(Started):
        launch(read_flags([*run(train__num_episodes=2), "--resume"]))


def test_sampling_parameters_have_what_the_agent_sets() -> None:
    names = {"max_tokens", "stop", "include_stop_str_in_output", "logprobs", "prompt_logprobs"}
    assert names <= set(vars(vllm.SamplingParams()))
