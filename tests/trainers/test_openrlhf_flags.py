"""The command line of the OpenRLHF program, read without OpenRLHF."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from igsearch_env.credit import CREDIT, make_credit
from igsearch_env.episode import Question
from igsearch_env.gain.shaping import Shaping
from trainers.openrlhf.flags import Flags, read_flags
from trainers.rollout_settings import RolloutSettings, make_label, read_label

POLICY = Path(__file__).resolve().parents[2] / "agents" / "world-tiny"
NEEDED = ["--ig.questions", "world-train", "--ig.retriever", "bm25"]


def read(tmp_path: Path, *words: str) -> Flags:
    return read_flags(["--out", str(tmp_path / "run"), *NEEDED, *words])


def value(flags: Flags, name: str) -> str:
    return flags.arguments[flags.arguments.index(f"--{name}") + 1]


def test_flags_find_their_places(tmp_path: Path) -> None:
    words = ["--ig.credit", "ig_search", "--ig.alpha", "0.5", "--ig.dead_zone=0.2"]
    words += [
        "--ig.floor",
        "-5",
        "--ig.protocol",
        "chat",
        "--ig.top_k",
        "7",
        "--actor.adam.lr",
        "1e-5",
    ]
    flags = read(tmp_path, *words, "--train.async_enable")
    assert flags.credit == {"method": "ig_search", "alpha": 0.5, "dead_zone": 0.2}
    assert (flags.rollout.floor, flags.rollout.protocol, flags.rollout.top_k) == (-5.0, "chat", 7)
    assert flags.arguments[:3] == ("--actor.adam.lr", "1e-5", "--train.async_enable")
    assert value(flags, "algo.advantage.estimator") == "group_norm"
    assert value(flags, "train.agent_func_path").endswith("trainers/openrlhf/agent_function.py")
    assert value(flags, "data.prompt_dataset") == str(tmp_path / "run" / "data" / "train.jsonl")
    assert "--ckpt.load_enable" not in flags.arguments
    assert "--ckpt.load_enable" in read(tmp_path, "--resume").arguments
    assert "--eval.dataset" in read(tmp_path, "--ig.eval_questions", "world-test").arguments


def test_tables_stand_for_flags_and_the_command_line_wins(tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text(
        '[ig]\ntop_k = 7\nalpha = 0.5\n[actor]\nadam.lr = 1e-5\noptim = "adam"\n'
        "[train]\nasync_enable = true\ncolocate_all = false\n[actor.muon]\nlr = 2\n"
        "[algo]\ndynamic_filtering_range = [0.1, 0.9]\n"
    )
    flags = read(tmp_path, "--config", str(config), "--ig.top_k", "2", "--actor.muon.lr", "3")
    assert flags.rollout.top_k == 2
    assert flags.credit["alpha"] == 0.5
    end = flags.arguments.index("--train.agent_func_path")
    assert " ".join(flags.arguments[:end]) == (
        "--actor.adam.lr 1e-05 --actor.optim adam --actor.muon.lr 2 --train.async_enable "
        "--algo.dynamic_filtering_range 0.1 0.9 --actor.muon.lr 3"
    )


def test_the_command_line_can_take_back_a_flag_of_the_file(tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text(
        "[vllm]\nenable_sleep = true\nnum_engines = 8\n[ds]\npacking_samples = true\n"
    )
    words = ["--config", str(config), "--vllm.enable_sleep=false", "--train.async_enable"]
    end = read(tmp_path, *words).arguments.index("--train.agent_func_path")
    assert read(tmp_path, *words).arguments[:end] == (
        *("--vllm.num_engines", "8", "--ds.packing_samples", "--train.async_enable"),
    )
    # What has a value, or is not in the file, is left for OpenRLHF to refuse.
    for word in ("--vllm.num_engines=false", "--vllm.enforce_eager=false"):
        assert word in read(tmp_path, *words, word).arguments


def test_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("index", "world-train", "bm25"):
        (tmp_path / folder).mkdir()
    (tmp_path / "q.jsonl").touch()
    given = ["--ig.questions", "q.jsonl", "--ig.eval_questions", "q.jsonl"]
    rollout = read(tmp_path, *given, "--ig.retriever", "index").rollout
    assert rollout.questions == rollout.eval_questions == str(tmp_path / "q.jsonl")
    assert rollout.retriever == str(tmp_path / "index")
    named = read(tmp_path).rollout
    assert (named.questions, named.eval_questions, named.retriever) == ("world-train", "", "bm25")
    given = ["--ig.questions", "missing.jsonl", "--ig.retriever", "http://host/retrieve"]
    named = read(tmp_path, *given).rollout
    assert (named.questions, named.retriever) == ("missing.jsonl", "http://host/retrieve")


def test_another_method_leaves_out_the_options_of_the_file(tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text('[ig]\ncredit = "ig_search"\nalpha = 0.5\ntop_k = 7\n')
    words = ["--config", str(config), "--ig.credit"]
    assert read(tmp_path, *words, "outcome").credit == {"method": "outcome"}
    assert read(tmp_path, *words, "outcome").rollout.top_k == 7
    assert read(tmp_path, *words, "ig_search").credit["alpha"] == 0.5


def test_a_method_without_gains_draws_no_counterfactuals(tmp_path: Path) -> None:
    assert read(tmp_path, "--ig.credit", "outcome").rollout.num_counterfactuals == 0
    with pytest.raises(ValueError, match="needs information gain; set ig"):
        read(tmp_path, "--ig.num_counterfactuals", "0")


REFUSED = {n for n, one in CREDIT.items() if one.has_teacher() or make_credit(n).reads_corpus()}


@pytest.mark.parametrize("name", sorted(CREDIT.keys() - REFUSED))
def test_every_credit_method_is_a_flag(tmp_path: Path, name: str) -> None:
    assert read(tmp_path, "--ig.credit", name).credit == {"method": name}


def test_no_option_of_a_credit_method_has_the_name_of_a_setting() -> None:
    settings = {field.name for field in fields(RolloutSettings)} | {"credit"}
    for name, method in CREDIT.items():
        options = {field.name for field in fields(method)} | {f.name for f in fields(Shaping)}
        assert not settings & options, name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ig.credit", "nothing"], "unknown credit method 'nothing'; known are"),
        (["--ig.alhpa", "1"], "'ig_search' does not take alhpa; its options are alpha"),
        (["--ig.alpha", "much"], r"credit\.alpha must be a valid number, got 'much'"),
        (["--ig.top_k", "many"], r"ig\.top_k must be a valid integer, got 'many'"),
        (["--ig.scorer", "gpu"], r"ig\.scorer must be 'policy' or 'vllm', got 'gpu'"),
        (["--ig.failed_tries", "0"], "failed_tries at least 1, got 0.2 and 0"),
        (["--ig.max_failed_searches", "1.5"], "max_failed_searches must be from 0 to 1"),
        (["--ig.max_new_tokens", "0"], "max_new_tokens must be at least 1, got 0"),
        (["--ig.credit", "igpo", "--ig.scorer", "vllm"], "belief .* set ig"),
        (["--ig.credit", "pbsd", "--ig.scorer", "vllm"], "turns with the gold answer .* set ig"),
        (["--ig.credit", "silver_chain"], "'silver_chain' reads silver evidence"),
        (["--ig.credit", "gdcr"], "'gdcr' reads silver evidence"),
        (["--data.prompt_dataset", "x"], "cannot be set: it is made of ig.questions"),
        (["--algo.advantage.estimator=gae"], "cannot be set: set ig.credit"),
        (["--algo.advantage.est", "gae"], "--algo.advantage.est cannot be set: set ig.credit"),
        (["--ckpt.load"], "--ckpt.load cannot be set: pass --resume"),
        (["--config", "missing.toml"], "cannot read the settings of missing.toml"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path, *words)


def test_questions_are_needed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ig\.questions"):
        read_flags(["--out", str(tmp_path), "--ig.retriever", "bm25"])


def test_settings_and_questions_survive_as_text() -> None:
    settings = RolloutSettings("world-train", "bm25", floor=-5.0, protocol="chat", scorer="vllm")
    assert RolloutSettings.from_json(settings.to_json()) == settings
    known = (("a",), ("b",), ("c",), (("d", 1),))
    question = Question("é", "where is Zürich?", ("CH", "Schweiz"), "x", 2, *known)
    assert read_label(make_label(question, training=False)) == (question, False)


def test_help_and_typos_need_neither_torch_nor_openrlhf() -> None:
    check = (
        "import sys\n"
        "from scripts.train_openrlhf import main\n"
        "try: main(sys.argv[1:])\n"
        "except (ValueError, SystemExit) as ended: print(ended, file=sys.stderr)\n"
        "assert not {'torch', 'transformers', 'openrlhf', 'ray'} & set(sys.modules)\n"
    )
    root = Path(__file__).resolve().parents[2]
    words = ["--out", "x", *NEEDED, "--ig.top_k", "many"]
    for given, said in ((["--help"], "0"), (words, "ig.top_k must be a valid integer")):
        command = [sys.executable, "-c", check, *given]
        ended = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        assert said in ended.stderr


def test_the_grammar_of_a_run_is_written_once(tmp_path: Path) -> None:
    """A chat template may print today's date; every worker, and a resumed run, reads the file."""
    tokenizer: Any = AutoTokenizer.from_pretrained(POLICY)
    tokenizer.chat_template = (
        "Monday {% for m in messages %}<u> {{ m.content }} {% endfor %}"
        "{% if add_generation_prompt %}<a> {% endif %}"
    )
    settings = RolloutSettings("world-train", "bm25", protocol="chat:refine-bare")
    file = tmp_path / "protocol.json"
    frozen = RolloutSettings.from_json(settings.frozen(tokenizer, file).to_json())
    protocol = frozen.tag_protocol(tokenizer)
    assert protocol == settings.tag_protocol(tokenizer)
    assert protocol.prompt.startswith("Monday <u> question : {question}")
    tokenizer.chat_template = tokenizer.chat_template.replace("Monday", "Tuesday")
    assert settings.tag_protocol(tokenizer) != protocol
    assert settings.frozen(tokenizer, file).tag_protocol(tokenizer) == protocol
    assert frozen.engine(tokenizer).rules.protocol == protocol
    assert frozen.information_gain(tokenizer).protocol == protocol
