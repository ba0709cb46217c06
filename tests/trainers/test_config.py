"""Settings: what is read, what is refused, and in which words."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from pathlib import Path

import pytest

from agents.loading import CHECKOUT
from igsearch_env.cli.program import argument_docs
from trainers.config import (
    OptimizationSettings,
    TrainSettings,
    from_dict,
    load_config,
    make_credit_from,
)


@pytest.mark.parametrize("name", ["learning_rate", "max_grad_norm", "kl", "weight_decay"])
@pytest.mark.parametrize("number", [math.inf, math.nan])
def test_settings_that_are_built_in_code_are_finite_too(name: str, number: float) -> None:
    with pytest.raises(ValueError, match=f"optimization.{name} must be a finite number"):
        TrainSettings(optimization=replace(OptimizationSettings(), **{name: number}))  # type: ignore[arg-type]


def test_a_file_and_overrides(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(
        "[world]\npeople = 50\nhops = [2]\n[optimization]\nlearning_rate = 1\nsteps = 7\n"
        '[credit]\nmethod = "ig_search"\nalpha = 0.5\n'
    )
    config = load_config(path, ["optimization.steps=9", " run.seed = 4 ", "policy.path=runs/a-b"])
    assert config.world == replace(TrainSettings().world, people=50, hops=(2,))
    assert isinstance(config.world.hops, tuple)
    assert config.optimization.learning_rate == 1.0
    assert isinstance(config.optimization.learning_rate, float)
    assert (config.optimization.steps, config.run.seed) == (9, 4)
    assert config.policy.path == "runs/a-b"
    assert config.credit == {"method": "ig_search", "alpha": 0.5}
    assert config.environment == TrainSettings().environment


def test_later_overrides_win_and_reach_new_sections() -> None:
    config = load_config(None, ["run.seed=1", "run.seed=2", 'credit={method = "outcome"}'])
    assert config.run.seed == 2
    assert config.credit == {"method": "outcome"}
    assert load_config(None, ["credit.method=outcome"]).credit == {"method": "outcome"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [("uniform", "uniform"), ('"none"', "none"), ("-5", -5.0), ("-2.5", -2.5)],
)
def test_a_floor_is_a_word_or_a_number(text: str, expected: object) -> None:
    floor = load_config(None, [f"environment.floor={text}"]).environment.floor
    assert floor == expected
    assert type(floor) is type(expected)


def test_an_outcome_is_a_word_or_a_table_of_weights(tmp_path: Path) -> None:
    assert load_config(None, ["environment.outcome=f1"]).environment.outcome == "f1"
    path = tmp_path / "run.toml"
    path.write_text(
        "[environment]\noutcome_range = [-1, 2]\n[environment.outcome]\nem = 1\nsearches = -0.05\n"
    )
    environment = load_config(path).environment
    assert environment.outcome == {"em": 1.0, "searches": -0.05}
    assert environment.outcome_range == (-1.0, 2.0)
    config = load_config(None, ["environment.outcome={em = 1, format = 0.2}"])
    assert config.environment.outcome == {"em": 1.0, "format": 0.2}
    with pytest.raises(ValueError, match="outcome must be one of em, f1"):
        load_config(None, ["environment.outcome={emm = 1}"])
    with pytest.raises(ValueError, match=r"environment\.outcome must be"):
        load_config(None, ["environment.outcome={em = 'much'}"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "optimization.stpes=1",
            "unknown setting optimization.stpes; did you mean optim",
        ),
        ("run.stpes=1", "unknown setting run.stpes; did you mean optimization.steps"),
        ("run.eval_evry=1", "did you mean run.eval_every"),
        ("run.steps=1", "unknown setting run.steps; did you mean optimization.steps"),
        ("optimizer.steps=1", "unknown setting optimizer; did you mean optimization"),
        (
            "ig.top_k=1",
            "unknown setting ig; these are settings of python -m scripts.train_openrlhf",
        ),
        ("steps=1", "unknown setting steps; did you mean optimization.steps"),
        ("run.zzzz=1", "unknown setting run.zzzz; known are world, world.seed, "),
        (
            "optimization.learning_rate=nan",
            "optimization.learning_rate must be a finite number, got",
        ),
        ("optimization.learning_rate=inf", "learning_rate must be a finite number, got inf"),
        ("environment.floor=nan", "environment.floor must be a finite number or .*, got nan"),
        ("optimization.steps=1.5", "optimization.steps must be a valid integer, got 1.5"),
        ("optimization.steps=true", "optimization.steps must be a valid integer, got True"),
        ("optimization.steps=many", "optimization.steps must be a valid integer, got 'many'"),
        (
            "optimization.learning_rate=true",
            "optimization.learning_rate must be a valid number, got True",
        ),
        ('optimization.learning_rate="1e-4"', "must be a valid number, got '1e-4'"),
        ("world.informative_bridges=1", "world.informative_bridges must be a valid boolean, got 1"),
        ("world.hops=2", r"world.hops must be a valid array, got 2"),
        ('world.hops="12"', r"world.hops must be a valid array, got '12'"),
        ("world.hops=[1, 2.5]", r"world.hops must be a valid integer, got \[1, 2.5\]"),
        ("policy.path=3", "policy.path must be a valid string, got 3"),
        ("environment.outcome=bleu", "outcome must be one of em, f1, .* got 'bleu'"),
        ("environment.floor=low", "environment.floor must be .*'uniform' or 'none', got 'low'"),
        ("environment.floor=true", "environment.floor must be .*got True"),
        ("world=3", "world must be a section, got 3"),
        ("credit=outcome", "credit must be an object, got 'outcome'"),
        ("run.seed.x=3", r"run.seed must be a valid integer, got \{'x': 3\}"),
        ("run.seed", "expected section.key=value, got 'run.seed'"),
        ("=3", "expected section.key=value, got '=3'"),
    ],
)
def test_what_does_not_fit_is_refused(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        load_config(None, [override])
    assert "\n" not in str(raised.value)
    assert "generator" not in str(raised.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        *(
            (
                f"optimization.{name}=0",
                f"optimization.{name} must be greater than or equal to 1, got 0",
            )
            for name in ("steps", "questions_per_step", "group_size", "epochs", "minibatches")
        ),
        ("optimization.micro_batch_size=0", "micro_batch_size must be greater than or equal to 1"),
        ("optimization.learning_rate=0", "learning_rate must be greater than 0"),
        ("optimization.clip=0", "clip must be greater than 0"),
        ("optimization.clip=1.0", "clip must be less than 1"),
        ("optimization.clip_high=0", "clip_high must be greater than 0"),
        ("optimization.max_grad_norm=-1", "max_grad_norm must be greater than 0"),
        ("optimization.kl=-0.1", "kl must be greater than or equal to 0"),
        ("optimization.weight_decay=-1", "weight_decay must be greater than or equal to 0"),
        ("optimization.warmup_steps=-1", "warmup_steps must be greater than or equal to 0"),
        ("run.checkpoint_every=0", "run.checkpoint_every must be greater than or equal to 1"),
        ("run.keep_checkpoints=0", "run.keep_checkpoints must be greater than or equal to 1"),
        ("run.eval_every=-1", "run.eval_every must be greater than or equal to 0"),
        ("run.eval_limit=0", "run.eval_limit must be greater than or equal to 1"),
        ("run.threads=-1", "run.threads must be greater than or equal to 0"),
        ("run.threads=1025", "run.threads must be less than or equal to 1024"),
        (f"run.seed={2**63}", f"run.seed must be less than {2**63}"),
        ("policy.temperature=1e-300", "policy.temperature must be greater than or equal to 0.001"),
        ("run.seed=-1", "run.seed must be greater than or equal to 0"),
        (
            "run.max_failed_searches=-0.1",
            "run.max_failed_searches must be greater than or equal to 0",
        ),
        ("run.failed_tries=0", "run.failed_tries must be greater than or equal to 1"),
        (
            "environment.floor=0",
            "floor must be 'uniform', 'none' or a finite number below 0, got 0.0",
        ),
    ],
)
def test_ranges(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(None, [override])


def test_a_value_where_a_section_should_be(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("run = 3\n")
    with pytest.raises(ValueError, match="is a value, not a section"):
        load_config(path, ["run.seed=1"])


@pytest.mark.parametrize("text", ["[run\n", "seed = \n", "a = " + "[" * 100_000])
def test_a_file_that_is_not_toml(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"cannot read the settings of .*run\.toml.*(line|deeply)"):
        load_config(path)
    with pytest.raises(ValueError, match="cannot read the settings of"):
        load_config(tmp_path / "absent.toml")


def test_files_as_windows_writes_them(tmp_path: Path) -> None:
    """With a mark of UTF-8 they are read; in another encoding the file is named."""
    path = tmp_path / "run.toml"
    path.write_text("[run]\nseed = 7\n", encoding="utf-8-sig")
    assert load_config(path).run.seed == 7
    for encoding in ("utf-16", "cp1252"):
        path.write_text("# café\n[run]\nseed = 7\n", encoding=encoding)
        with pytest.raises(ValueError, match=r"cannot read the settings of .*run\.toml: 'utf-8'"):
            load_config(path)


def test_settings_survive_json() -> None:
    config = load_config(CHECKOUT / "trainers/configs/demo.toml", ["environment.floor=-4"])
    assert from_dict(json.loads(json.dumps(config.to_dict()))) == config


LOCAL = [p for p in (CHECKOUT / "trainers/configs").glob("*.toml") if "openrlhf" not in p.name]


@pytest.mark.parametrize("path", sorted(LOCAL), ids=str)
def test_the_shipped_settings_are_valid(path: Path) -> None:
    config = load_config(path)
    assert config.credit["method"]
    make_credit_from(config.credit)


def test_every_setting_is_documented() -> None:
    config = TrainSettings()
    sections = (config.world, config.environment, config.policy, config.optimization, config.run)
    for section in (config, *sections):
        named = {field.name for field in fields(section)} if section is not config else {"credit"}
        assert named <= argument_docs(type(section)).keys()


def test_credit_options_alone_keep_the_default_method() -> None:
    assert load_config(None, ["credit.alpha=1.0"]).credit == {"method": "ig_search", "alpha": 1.0}
    assert load_config(None, ["credit.method=outcome"]).credit == {"method": "outcome"}
