"""The program up to the start of Ray: OpenRLHF's own parser and validators, and clear errors."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
import vllm

from tests.doc_pages import read_blocks
from trainers.openrlhf.flags import read_flags
from trainers.openrlhf.launch import Checked, launch

from .conftest import POLICY, ROOT, write_questions

CONFIGS = sorted((ROOT / "trainers" / "configs").glob("openrlhf_*.toml"))
DOCUMENTED = [
    pytest.param(words, id=block.where)
    for page in ("README.md", "docs/openrlhf.md")
    for block in read_blocks(ROOT / page)
    for words in re.findall(
        r"python -m scripts\.train_openrlhf (.*)", block.text.replace("\\\n", " ")
    )
]


def check(words: list[str]) -> Any:
    """Run the program up to the start of Ray; OpenRLHF's settings."""
    with pytest.raises(Checked) as checked:
        launch(read_flags([*words, "--check"]))
    assert not ray.is_initialized()
    return checked.value.args[0]


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
        ["--train.dynamic_batch_enable", "--algo.dynamic_filtering_enable"],
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


def test_the_async_form_of_a_config_passes_too(
    command: Callable[..., list[str]], tmp_path: Path
) -> None:
    assert check([*command(), "--train.async_enable"]).train.async_enable


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
        ({"rollout__batch_size": 64, "train__batch_size": 64}, "48 questions, fewer than a batch"),
        ({"data__max_len": 12}, "tokens, which leaves no room for a turn in 12; raise --data"),
        ({"actor__model_name_or_path": "/nowhere"}, "cannot load a tokenizer from '/nowhere'"),
        ({"actor__model_name_or_path": None}, "there is no policy; give --actor"),
        ({"ig__retriever": "http://127.0.0.1:9/retrieve"}, "does not answer .* start it first"),
        ({"ig__retriever": "/nowhere"}, "unknown retriever '/nowhere'"),
        ({"ig__questions": "/nowhere.jsonl"}, "unknown question set"),
        ({"ig__chat": True}, "has no chat template"),
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
    command: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Started(Exception):
        pass

    def start(**options: Any) -> None:
        assert json.loads(options["runtime_env"]["env_vars"]["IGSEARCH_ROLLOUT"])["top_k"] == 1
        raise Started

    refuse([*command(), "--resume"], "there is no run to resume")
    monkeypatch.setattr(ray, "init", start)
    with pytest.raises(Started):
        launch(read_flags(command()))
    rows = (tmp_path / "run" / "data" / "train.jsonl").read_text().splitlines()
    assert len({json.loads(row)["label"] for row in rows}) == 48
    refuse(command(), "holds a run already; pass --resume")
    refuse(
        [*command(ig__top_k=2, ig__alpha=0.5), "--resume"],
        r"rollout\.top_k was 1, got 2; credit\.alpha was 1\.0, got 0\.5",
    )
    with pytest.raises(Started):
        launch(read_flags([*command(train__num_episodes=2), "--resume"]))


def test_sampling_parameters_have_what_the_agent_sets() -> None:
    names = {"max_tokens", "stop", "include_stop_str_in_output", "logprobs", "prompt_logprobs"}
    assert names <= set(vars(vllm.SamplingParams()))
