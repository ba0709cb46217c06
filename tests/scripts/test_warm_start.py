"""The program that rebuilds the shipped policy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from igsearch_env.cli.program import run
from igsearch_env.data.world import World
from scripts.warm_start import main
from trainers.warm_start.tiny_policy import PROTOCOL, build_tokenizer

ROOT = Path(__file__).resolve().parents[2]


def warm_start(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["warm_start", *arguments])
    with pytest.raises(SystemExit) as ended:
        run(main)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_the_checkpoint_loads_with_the_auto_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert warm_start(monkeypatch, "--out", str(tmp_path), "--smoke") == 0
    folder = tmp_path / "policy"
    tokenizer, built = AutoTokenizer.from_pretrained(folder), build_tokenizer()
    assert tokenizer.get_vocab() == built.get_vocab()
    world = World.generate(seed=9, people=30)
    texts = [PROTOCOL.render_documents(world.documents[i : i + 3]).text for i in range(0, 90, 3)]
    texts += [PROTOCOL.render_prompt(question.text).text for question in world.test_questions[:30]]
    texts += ["<search> Ashby born </search>", "<answer> Delmora </answer>\n", "Zürich 日本 <x>"]
    for text in texts:
        assert tokenizer(text)["input_ids"] == built(text)["input_ids"]
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (
        built.eos_token_id,
        built.pad_token_id,
    )
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float32
    logits = model(input_ids=torch.tensor([tokenizer(texts[0])["input_ids"]])).logits
    assert logits.shape[-1] == len(tokenizer)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert size <= 3_000_000
    assert json.loads((tmp_path / "results.json").read_text())["seconds"] > 0
    capsys.readouterr()
    assert warm_start(monkeypatch, "--out", str(tmp_path), "--smoke") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "exists already" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("multiplies", [True, False])
def test_a_pretrained_model_is_taught_in_what_the_processor_multiplies(
    multiplies: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stand-ins of two processors."""
    monkeypatch.setattr(
        torch.cpu, "get_capabilities", lambda: {"amx_bf16": multiplies}, raising=False
    )
    given = ("--policy", "agents/world-tiny", "--questions", "world-train", "--index", "world")
    assert warm_start(monkeypatch, "--out", str(tmp_path), "--smoke", *given) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["precision"] == ("bfloat16-autocast" if multiplies else "float32")
    assert len(results["losses"]) == 2
    assert (tmp_path / "policy/model.safetensors").is_file()


def test_bad_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert warm_start(monkeypatch, "--out", str(tmp_path / "new"), "--steps", "0") == 2
    assert "--steps must be at least 1, got 0" in capsys.readouterr().err
    new = ("--out", str(tmp_path / "new"))
    assert warm_start(monkeypatch, *new, "--hops", "0", "0", "0") == 2
    assert "hops must be three weights" in capsys.readouterr().err
    real = ("--policy", "p", "--questions", "q", "--index", "i", "--hops", "0", "0", "1")
    assert warm_start(monkeypatch, *new, *real) == 2
    assert "are of the embedded world, not of --policy" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_help_and_typos_load_nothing_heavy() -> None:
    check = (
        "import sys\n"
        "from scripts.warm_start import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    for word, said in (("--help", "pretrained model"), ("--stpes", "did you mean --steps?")):
        command = [sys.executable, "-c", check, "--out", "new", word]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        assert said in ended.stdout + ended.stderr
