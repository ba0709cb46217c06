"""The plan of a run's memory against what a small run really holds."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from agents.inference import computing_in, decoder
from igsearch_env.checkpoint_settings import CheckpointSettings
from igsearch_env.cli.program import run
from scripts.train import main
from trainers.config import LoraSettings, TrainSettings, load_config
from trainers.plan import (
    GIB,
    cheapest_changes,
    longest_transcript,
    longest_turn,
    memory_of,
    plan,
)
from trainers.setup import make_policy

Settings = Callable[..., list[str]]
SIZES = (
    "environment.max_searches=2",
    "environment.top_k=2",
    "policy.max_new_tokens=10",
    "optimization.micro_batch_size=4",
)


@pytest.fixture
def words(tiny_settings: Settings) -> list[str]:
    return [*tiny_settings(), *SIZES]


@pytest.fixture
def config(words: list[str]) -> TrainSettings:
    return load_config(None, words)


@pytest.mark.parametrize("precision", ["float32", "bfloat16-autocast"])
def test_activations_and_weights_are_those_of_the_real_model(
    words: list[str], precision: str
) -> None:
    config = load_config(None, [*words, f"policy.precision={precision}"])
    rows, width = config.optimization.micro_batch_size, longest_transcript(config, 20)
    policy = make_policy(config.policy, "refine-bare")
    weights = {p.untyped_storage().data_ptr() for p in policy.model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    mask = torch.ones((rows, width), dtype=torch.long)
    mask[0, -1] = 0  # padded, as batches are
    with hooks, computing_in(policy.model, policy.autocast):
        decoder(policy.model)(input_ids=torch.zeros_like(mask), attention_mask=mask)
    saved = sum(t.untyped_storage().nbytes() for at, t in kept.items() if at not in weights)
    update = plan(config, 20).phases["update"]
    found = update["activations"] + update["rounded weights"]
    assert found == pytest.approx(saved, rel=0.03)
    numbers = sum(p.numel() for p in policy.model.parameters())
    assert update["weights"] == update["gradients"] == 4 * numbers
    assert update["optimizer states"] == 8 * numbers


def test_each_setting_changes_its_own_component(config: TrainSettings) -> None:
    def parts(**fields: object) -> dict[str, int]:
        changed = replace(config, optimization=replace(config.optimization, **fields))
        return plan(changed, 20).phases["update"]

    before = parts()
    assert before["reference"] == 0
    assert parts(kl=0.1)["reference"] == before["weights"]
    small = parts(optimizer="adamw8bit")["optimizer states"] / before["weights"]
    assert 0.5 < small < 0.52
    assert parts(logits_at_once=50_000)["logits"] == 4 * 4 * 50_000  # bytes of four copies
    written = config.optimization.micro_batch_size * (2 + 1) * 10  # turns of 10 tokens
    vocabulary = json.loads((Path(config.policy.path) / "config.json").read_text())["vocab_size"]
    assert parts(logits_at_once=1 << 40)["logits"] == 4 * 4 * written * vocabulary
    width = longest_transcript(config, 20)
    single = parts(micro_batch_tokens=width)
    ratio = single["activations"] * config.optimization.micro_batch_size / before["activations"]
    assert ratio == pytest.approx(1, rel=0.05)
    assert single["weights"] == before["weights"]


def test_checkpointing_keeps_the_inputs_of_layers_and_one_layer(
    config: TrainSettings, tmp_path: Path
) -> None:
    shape = SHAPES["smollm2"]
    (tmp_path / "config.json").write_text(json.dumps(shape), encoding="utf-8")
    config = replace(config, policy=replace(config.policy, path=str(tmp_path)))

    def activations(**fields: object) -> int:
        changed = replace(config, optimization=replace(config.optimization, **fields))
        return plan(changed, 20).phases["update"]["activations"]

    rows, width = config.optimization.micro_batch_size, longest_transcript(config, 20)
    inputs = 4 * rows * width * 576 * 30
    layer = 2 * activations() / 30  # with the gradients of what it keeps
    few, many = 49_152, 1 << 40  # logits at a time; they are gone when a layer is run again
    found = activations(gradient_checkpointing=True, logits_at_once=few)
    assert found == pytest.approx(inputs + layer - 4 * 4 * few)
    assert activations(gradient_checkpointing=True, logits_at_once=many) == inputs


def test_a_single_pass_holds_gradients_or_what_it_keeps(config: TrainSettings) -> None:
    o = replace(config.optimization, questions_per_step=4, group_size=3)

    def gradients(managed: bool = False, method: str = "outcome", **fields: int) -> int:
        e = replace(config.environment, drop_thoughts=managed)
        changed = replace(config, environment=e, optimization=replace(o, **fields))
        changed = replace(changed, credit={"method": method})
        return plan(changed, 20).phases["update"]["gradients"]

    several = gradients(micro_batch_size=11)
    assert several == plan(config, 20).phases["update"]["weights"]
    assert gradients(micro_batch_size=12) < several
    assert gradients(micro_batch_size=12) == gradients(micro_batch_size=100)
    assert gradients(micro_batch_size=1, minibatches=12) < several
    longest = longest_transcript(config, 20)
    assert gradients(micro_batch_size=12, micro_batch_tokens=12 * longest) < several
    assert gradients(micro_batch_size=12, micro_batch_tokens=12 * longest - 1) == several
    # Contexts that are managed make more sequences than episodes, and a teacher makes passes more.
    assert gradients(managed=True, micro_batch_size=12) == several
    assert gradients(method="sd_search", micro_batch_size=12) == several


def test_short_sequences_fill_a_micro_batch_of_tokens(config: TrainSettings) -> None:
    def update(tokens: int) -> dict[str, int]:
        o = replace(config.optimization, micro_batch_tokens=tokens, micro_batch_size=100)
        return plan(replace(config, optimization=o), 20).phases["update"]

    longest = longest_transcript(config, 20)
    found = [update(tokens)["activations"] for tokens in range(1, 5 * longest, longest // 3)]
    assert found == sorted(found)
    assert found[0] == update(longest)["activations"]  # a single episode may be longer
    assert found[-1] > 4 * found[0]


def test_logits_of_a_token_are_the_least(config: TrainSettings) -> None:
    shape = json.loads((Path(config.policy.path) / "config.json").read_text(encoding="utf-8"))
    o = replace(config.optimization, logits_at_once=1)
    logits = plan(replace(config, optimization=o), 20).phases["update"]["logits"]
    assert logits == 4 * 4 * shape["vocab_size"]


def test_bfloat16_weights_and_adapters(config: TrainSettings) -> None:
    pytest.importorskip("peft")

    def update(**fields: object) -> dict[str, int]:
        policy = replace(config.policy, **fields)
        kl = replace(config.optimization, kl=0.1)
        return plan(replace(config, policy=policy, optimization=kl), 20).phases["update"]

    before, rounded = update(), update(precision="bfloat16")
    assert rounded["weights"] == rounded["gradients"] == before["weights"] // 2
    assert rounded["optimizer states"] == 3 * rounded["weights"]
    assert rounded["rounded weights"] == 0
    assert rounded["activations"] < 0.7 * before["activations"]
    lora = LoraSettings(rank=4, targets=("q_proj",))
    adapted = update(precision="bfloat16", lora=lora)
    shape = json.loads((Path(config.policy.path) / "config.json").read_text(encoding="utf-8"))
    head = shape["hidden_size"]  # of this model, all heads together are as wide
    numbers = shape["num_hidden_layers"] * 4 * (shape["hidden_size"] + head)
    assert adapted["gradients"] == 4 * numbers
    assert adapted["optimizer states"] == 8 * numbers
    assert adapted["weights"] == rounded["weights"] + 4 * numbers
    assert adapted["reference"] == 0


def test_longer_documents_and_more_searches_make_longer_transcripts(config: TrainSettings) -> None:
    assert longest_transcript(config, 30) - longest_transcript(config, 20) == 2 * 2 * 10
    longer = replace(config, environment=replace(config.environment, max_searches=3))
    assert longest_transcript(longer, 20) - longest_transcript(config, 20) == 10 + 2 * 20


def test_changes_shrink_the_run_and_stop_when_it_fits(
    config: TrainSettings, words: list[str]
) -> None:
    peak = plan(config, 20).peak
    changes = cheapest_changes(config, memory=0, document_tokens=20)
    peaks = [smaller for _, smaller in changes]
    assert 1 <= len(changes) <= 3
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[0] < peak
    changed = load_config(None, [*words, *(word for word, _ in changes)])
    assert plan(changed, 20).peak == peaks[-1]
    assert cheapest_changes(config, memory=peak - 1, document_tokens=20) == changes[:1]


def test_the_program_says_whether_it_fits_and_writes_nothing(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    options = [part for word in words for part in ("--set", word)]

    def program(*more: str) -> int:
        monkeypatch.setattr(sys, "argv", ["train", "--out", str(out), "--plan", *options, *more])
        with pytest.raises(SystemExit) as ended:
            run(main)
        return int(ended.value.code or 0)

    assert program("--memory", "64") == 0
    assert "it fits" in capsys.readouterr().out
    for words in (("--memory", "inf"), ("--memory", "nan"), ("--memory", "-1")):
        assert program(*words) == 2
        assert "--memory must be a number of GiB above 0" in capsys.readouterr().err
    for number in ("0", "-500", "1000000000000"):
        assert program("--document-tokens", number) == 2
        assert "a document has from 1 to 1,000,000 tokens" in capsys.readouterr().err
    for multiplies in (True, False):  # stand-ins of two processors
        found = {"avx512_bf16": multiplies}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda f=found: f, raising=False)
        assert program("--memory", "0.001") == 2
        said = capsys.readouterr().err
        assert "it does not fit" in said
        assert ("--set policy.precision=bfloat16-autocast" in said) == multiplies
    assert program("--set", f"policy.path={tmp_path}") == 2
    assert "cannot read the configuration of policy.path" in capsys.readouterr().err
    assert not out.exists()


def test_keys_and_values_are_counted_up_to_their_limit(config: TrainSettings) -> None:
    def held(tokens: int) -> int:
        policy = replace(config.policy, memory_tokens=tokens, batch_size=1)
        return plan(replace(config, policy=policy), 20).phases["sampling"]["keys and values"]

    o = config.optimization
    width, episodes = longest_transcript(config, 20), o.questions_per_step * o.group_size
    assert held(width) / held(0) == pytest.approx(3 / (2 * episodes))


SHAPES: dict[str, dict[str, object]] = {
    "qwen2": {
        "model_type": "qwen2",
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },  # Qwen2.5-3B's
    "smollm2": {
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },  # SmolLM2-135M's
}
CONFIGS = Path("trainers/configs")
# Those of OpenRLHF hold its own flags, and memory is its own business.
NAMES = sorted(p.stem for p in CONFIGS.glob("*.toml") if not p.stem.startswith("openrlhf"))
SHAPE_OF = {"paper": "qwen2", "instruct": "qwen2", "smollm2": "smollm2", "demo": None}


@pytest.mark.parametrize("name", NAMES)
def test_every_config_fits_the_device_that_it_names(name: str, tmp_path: Path) -> None:
    if name == "instruct":
        pytest.importorskip("peft")
    file = CONFIGS / f"{name}.toml"
    words, shape = [], SHAPE_OF[name]
    if shape:  # the model itself is not at hand
        (tmp_path / "config.json").write_text(json.dumps(SHAPES[shape]), encoding="utf-8")
        words = [f"policy.path={tmp_path}"]
    named = re.search(r"of (\d+) GB|with (\d+) GB", file.read_text(encoding="utf-8"))
    assert named, "the first lines of a config say how much memory its device has"
    config = load_config(file, words)
    assert config.policy.device == ("cuda" if named[1] else "cpu")
    # What is sold as 80 GB has 79 GiB, and the driver takes some.
    assert plan(config).peak < 0.95 * int(named[1] or named[2]) * GIB


def test_a_turn_is_as_long_as_the_checkpoint_says_unless_the_settings_do(
    config: TrainSettings,
) -> None:
    saved = CheckpointSettings.load(Path(config.policy.path)).max_new_tokens
    for stated, expected in ((0, saved), (7, 7)):
        policy = replace(config.policy, max_new_tokens=stated)
        assert longest_turn(policy) == expected
        assert make_policy(policy, "refine-bare").max_new_tokens == expected
    elsewhere = replace(config.policy, path="somebody/model", max_new_tokens=0)
    assert longest_turn(elsewhere) == CheckpointSettings().max_new_tokens


@pytest.mark.parametrize("multiplies", [True, False])
def test_auto_is_planned_as_what_it_means_here(
    multiplies: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stand-ins of two processors."""
    monkeypatch.setattr(
        torch.cpu, "get_capabilities", lambda: {"avx512_bf16": multiplies}, raising=False
    )
    meant = "bfloat16-autocast" if multiplies else "float32"
    auto, named = (load_config(None, [f"policy.precision={p}"]) for p in ("auto", meant))
    assert plan(auto) == plan(named)
    assert cheapest_changes(auto, 1) == cheapest_changes(named, 1)
    adapted = load_config(None, ["policy.precision=float32", "policy.lora.rank=4"])
    exact = load_config(None, ["policy.precision=float32"])
    words = "policy.precision=bfloat16-autocast"
    assert (words in dict(cheapest_changes(exact, 1))) == multiplies  # it would only be slower
    assert words not in dict(cheapest_changes(adapted, 1))  # adapters refuse it


def test_the_memory_of_what_is_no_device_cannot_be_asked() -> None:
    with pytest.raises(ValueError, match="cannot use the device 'gpu'"):
        memory_of("gpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps"])
def test_the_memory_of_a_device_that_is_not_here_has_to_be_said(device: str) -> None:
    with pytest.raises(ValueError, match=f"the memory of '{device}' is not known here.* --memory"):
        memory_of(device)
    assert memory_of("cpu") > GIB
