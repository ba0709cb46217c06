"""The trainer: what a run is made of, and what must not matter to it."""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from igsearch_env.checkpoint_settings import CheckpointSettings
from igsearch_env.completion import Completion
from igsearch_env.credit import CREDIT
from igsearch_env.episode import Episode, Question
from igsearch_env.evaluation.metrics import METRICS, Metric, register_metric
from igsearch_env.files import read_sealed, write_sealed
from igsearch_env.outcome import COMPONENTS, Component
from igsearch_env.protocol.tags import PROTOCOLS
from igsearch_env.retrieval.base import RetrievalError
from igsearch_env.rollout import collect
from trainers.config import from_dict, load_config, read_settings
from trainers.local.checkpoint import checkpoints
from trainers.local.grpo import GRPOTrainer
from trainers.local.run_log import read_log
from trainers.steady import RetrieverLostError

MakeTrainer = Callable[..., GRPOTrainer]
Weights = dict[str, torch.Tensor]

RICH = (
    "optimization.kl=0.05",
    "optimization.minibatches=2",
    "optimization.micro_batch_size=2",
    "optimization.schedule=cosine",
    "optimization.warmup_steps=2",
    "run.eval_every=2",
    "run.eval_limit=6",
    "environment.counterfactual=documents+refinement",
)
RUNS = {
    "plain": (),
    "rich": RICH,
    "outcome": ("credit.method=outcome", "optimization.epochs=2", "environment.outcome=zero"),
}


def weights(trainer: GRPOTrainer) -> Weights:
    return copy.deepcopy(trainer.policy.model.state_dict())


def equal(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def rows(trainer: GRPOTrainer) -> list[dict[str, Any]]:
    """The log, without what depends on the clock."""
    log = read_log(trainer.out / "metrics.jsonl")
    return [{name: value for name, value in row.items() if name != "seconds"} for row in log]


def even(episode: Episode) -> float:
    """An outcome that a policy without a clue reaches now and then."""
    return float(len(episode.answer or "") % 2)


class Killed(BaseException):
    """Ends a process without its consent."""


def run_until(trainer: GRPOTrainer, step: int) -> None:
    """Run, and stop as if by a kill after this step's row (and checkpoint, if one is due)."""

    def stop(row: dict[str, Any]) -> None:
        if row["step"] == step:
            raise Killed

    with pytest.raises(Killed):
        trainer.run(stop)


class Down:
    """A retriever that gives up."""

    def search(self, queries: Sequence[str], k: int) -> list[list[Any]]:
        raise RetrievalError("the server is down")


def always_search(trainer: GRPOTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the policy of a trainer write nothing but searches."""
    tokenizer = trainer.policy.tokenizer
    ids = tokenizer.encode_answer("", "<search> Allia home </search>")[1]

    def search(episodes: Sequence[Episode]) -> list[Completion]:
        return [Completion.from_tokens(ids, [-1.0] * len(ids), tokenizer.decode) for _ in episodes]

    monkeypatch.setattr(trainer.policy, "act", search)


@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_ends_alike(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(COMPONENTS, "zero", Component(even))
    settings = (*RUNS[name], "optimization.steps=4", "run.checkpoint_every=2")
    whole = make_trainer(*settings, name="whole")
    last = whole.run()
    run_until(make_trainer(*settings, name="cut"), 3)
    cut = make_trainer(*settings, name="cut", resume=True)
    assert cut.step == 2
    assert [row["step"] for row in rows(cut)] == [1, 2, 3]  # the third will be done again
    again = cut.run()
    assert equal(weights(whole), weights(cut))
    assert rows(whole) == rows(cut)
    assert [row["step"] for row in rows(cut)] == [1, 2, 3, 4]
    assert {**again, "seconds": None} == {**last, "seconds": None}
    assert not equal(weights(whole), weights(make_trainer(*settings, name="fresh")))


def test_components_are_paid_logged_and_the_same_as_a_word_where_they_say_the_same(
    make_trainer: MakeTrainer,
) -> None:
    word = make_trainer("optimization.steps=2", name="word")
    table = make_trainer("optimization.steps=2", "environment.outcome={em = 1}", name="table")
    word.run()
    table.run()
    assert equal(weights(word), weights(table))
    logged = [{k: v for k, v in row.items() if k != "outcome_em"} for row in rows(table)]
    assert [{**row, "unscored_rollouts": 0.0} for row in rows(word)] == logged

    outcome = "environment.outcome={em = 1, searches = -0.05, format = 0.2}"
    settings = ("optimization.steps=2", outcome, "environment.outcome_range=[-1, 2]")
    paid = make_trainer(*settings, name="paid")
    paid.run()
    for row in rows(paid):
        parts = {name: row[f"outcome_{name}"] for name in ("em", "searches", "format")}
        assert parts["em"] == row["em"]
        assert parts["searches"] == row["searches"] > 0
        total = parts["em"] - 0.05 * parts["searches"] + 0.2 * parts["format"]
        assert row["outcome"] == pytest.approx(total)
    saved = CheckpointSettings.load(paid.out / "policy").trained_in
    assert saved.outcome == {"em": 1.0, "searches": -0.05, "format": 0.2}
    assert saved.outcome_range == (-1.0, 2.0)
    again = make_trainer(*settings, "run.eval_limit=7", name="paid", resume=True)
    assert again.step == 2


def test_every_part_of_a_checkpoint_matters(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """Negative control of the test above: whatever is not restored shows."""
    settings = (*RICH, "optimization.steps=3", "run.checkpoint_every=2")
    fresh = make_trainer(*settings, name="fresh")
    initial = {
        "weights": weights(fresh),
        "optimizer": copy.deepcopy(fresh.updater.optimizer.state_dict()),
        "schedule": fresh.updater.schedule.state_dict(),
        "policy": fresh.policy.state_dict(),
        "pool": fresh.engine.pool.state_dict(),
    }
    whole = make_trainer(*settings, name="whole")
    whole.run()
    for part in (None, *initial):
        name = f"without {part}"
        shutil.copytree(whole.out, tmp_path / name)
        shutil.rmtree(tmp_path / name / "checkpoints" / "step-000003")
        cut = make_trainer(*settings, name=name, resume=True)
        assert cut.step == 2
        owners: dict[str | None, Any] = {
            "weights": cut.policy.model,
            "optimizer": cut.updater.optimizer,
            "schedule": cut.updater.schedule,
            "policy": cut.policy,
            "pool": cut.engine.pool,
        }
        if part is not None:
            owners[part].load_state_dict(initial[part])
        cut.run()
        assert rows(whole)[:2] == rows(cut)[:2]
        assert (rows(whole) == rows(cut)) == (part is None)


def test_the_reference_stays_the_initial_policy(make_trainer: MakeTrainer) -> None:
    settings = (*RICH, "optimization.steps=4", "run.checkpoint_every=2")
    first = make_trainer(*settings)
    initial = weights(first)
    run_until(first, 2)
    for trainer in (first, make_trainer(*settings, resume=True)):
        assert trainer.updater.reference is not None
        assert equal(trainer.updater.reference.state_dict(), initial)
        assert not equal(weights(trainer), initial)
    assert rows(first)[0]["kl"] < rows(first)[1]["kl"]  # it has left the reference
    assert make_trainer(name="other").updater.reference is None


def test_the_same_seed_is_the_same_run(make_trainer: MakeTrainer) -> None:
    one, same, other = (
        make_trainer(f"run.seed={seed}", "optimization.steps=2", name=name)
        for name, seed in (("one", 0), ("same", 0), ("other", 1))
    )
    for trainer in (one, same, other):
        trainer.run()
    assert equal(weights(one), weights(same))
    assert rows(one) == rows(same) != rows(other)


def test_evaluation_leaves_training_alone(make_trainer: MakeTrainer) -> None:
    plain = make_trainer("optimization.steps=2", name="plain")
    watched = make_trainer(
        "optimization.steps=2", "run.eval_every=1", "run.eval_limit=5", name="watched"
    )
    for trainer in (plain, watched):
        trainer.run()
    assert equal(weights(plain), weights(watched))
    results = rows(watched)
    assert all(row.pop("eval")["n"] == 5 for row in results)
    assert results == rows(plain)


def test_evaluation_is_due_every_few_steps_and_at_the_end(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(
        "optimization.steps=5", "run.eval_every=2", "run.eval_limit=3", "run.checkpoint_every=3"
    )
    trainer.run()
    assert [row["step"] for row in rows(trainer) if "eval" in row] == [2, 4, 5]
    found = [path.name for path in checkpoints(trainer.out / "checkpoints")]
    assert found == ["step-000003", "step-000005"]


def test_evaluation_questions_are_a_sample_of_all(make_trainer: MakeTrainer) -> None:
    """The first ones of a world are all of one hop."""
    settings = ("run.eval_every=1", "run.eval_limit=40")
    asked = [
        make_trainer(*settings, f"run.seed={seed}", name=str(seed))._eval_questions
        for seed in (0, 1)
    ]
    assert asked[0] == asked[1]  # comparable over seeds of the run
    assert len({question.id for question in asked[0]}) == 40
    assert {question.hops for question in asked[0]} == {1, 2}
    everything = make_trainer("run.eval_every=1", "run.eval_limit=99999", name="all")
    assert len(everything._eval_questions) > 100


def test_methods_are_asked_the_same_questions(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the credit draws, and however many rollouts fail."""
    asked: list[list[str]] = []
    real = collect

    def watched(engine: Any, agent: Any, questions: Sequence[Question], *args: Any, **kw: Any):  # type: ignore[no-untyped-def]
        asked.append([question.id for question in questions])
        return real(engine, agent, questions, *args, **kw)

    monkeypatch.setattr("trainers.steady.collect", watched)
    options = (
        (),
        ("credit.method=outcome",),
        ("optimization.minibatches=3", "optimization.epochs=2"),
        ("run.eval_every=1", "run.eval_limit=2"),
    )
    for number, settings in enumerate(options):
        lenient = "run.max_failed_searches=1.0"
        trainer = make_trainer(*settings, lenient, name=str(number))
        trainer.train_step()
        if number == 1:
            monkeypatch.setattr(trainer.engine, "retriever", Down())
        trainer.train_step()
        trainer.train_step()
    assert asked[0:3] == asked[3:6] == asked[6:9] == asked[9:12]
    assert asked[0] != asked[1] != asked[2]
    assert [asked[0].count(name) for name in dict.fromkeys(asked[0])] == [3, 3, 3]


def test_gains_are_settled_with_the_weights_that_sampled(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer()
    events: list[tuple[str, float]] = []

    def watch(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def watched(*args: Any, **options: Any) -> Any:
            total = sum(value.double().abs().sum() for value in weights(trainer).values())
            events.append((name, float(total)))
            return real(*args, **options)

        monkeypatch.setattr(owner, name, watched)

    watch(trainer.policy, "act")
    watch(trainer.agent.scorer, "log_probs")
    watch(trainer.updater, "step")
    trainer.train_step()
    trainer.train_step()
    names = [name for name, _ in events]
    assert names.count("log_probs") == names.count("step") == 2
    first = names.index("step") + 1
    assert names[first - 2 : first] == ["log_probs", "step"]
    assert len({total for _, total in events[:first]}) == 1
    assert len({total for _, total in events}) == 2
    assert len(trainer.policy.memory) == 0  # keys of the old weights are gone


@pytest.mark.parametrize("method", sorted(set(CREDIT) - {"ig_search", "outcome"}))
def test_every_method_trains(make_trainer: MakeTrainer, method: str) -> None:
    attempts = 2 if method == "mr_search" else 1
    trainer = make_trainer(f"credit.method={method}", f"environment.max_attempts={attempts}")
    trainer.engine.outcome = even
    before = weights(trainer)
    row = trainer.train_step()
    assert math.isfinite(row["loss"])
    assert not equal(before, weights(trainer))


def test_a_method_is_told_how_far_training_has_come(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("credit.alpha=1.0", "credit.alpha_final=0.0")
    credit: Any = trainer.agent.credit
    told: list[float] = []

    class Annealed:
        uses_information_gain, uses_belief = False, False

        def at(self, progress: float) -> Any:
            told.append(credit.at(progress).alpha)
            return credit.at(progress)

    trainer.agent.credit = Annealed()  # type: ignore[assignment]
    trainer.run()
    # Each step asks to settle, for advantages, and for a teacher.
    assert told == pytest.approx([1.0] * 3 + [0.5] * 3 + [0.0] * 3)


def test_nothing_is_scored_once_the_weight_has_come_to_0(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer("credit.alpha=1.0", "credit.alpha_final=0.0", "credit.alpha_until=0.5")
    assert "information_gain" in trainer.train_step()

    def score(*arguments: Any) -> list[Any]:
        raise AssertionError("at half of the training the weight is 0")

    monkeypatch.setattr(trainer.agent.scorer, "log_probs", score)
    assert "information_gain" not in trainer.train_step()


def test_a_weight_that_begins_at_0_scores_from_the_second_step_on(
    make_trainer: MakeTrainer,
) -> None:
    trainer = make_trainer("credit.alpha=0.0", "credit.alpha_final=1.0")
    assert "information_gain" not in trainer.train_step()
    assert "information_gain" in trainer.train_step()


def test_gains_are_not_settled_for_nothing(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer("credit.method=outcome")

    def score(*arguments: Any) -> list[Any]:
        raise AssertionError("outcomes need no gain")

    monkeypatch.setattr(trainer.agent.scorer, "log_probs", score)
    assert "information_gain" not in trainer.train_step()


def test_a_step_whose_searches_all_fail_is_survived(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer("optimization.weight_decay=0.1", "run.max_failed_searches=1.0")
    always_search(trainer, monkeypatch)
    monkeypatch.setattr(trainer.engine, "retriever", Down())
    before = weights(trainer)
    row = trainer.train_step()
    assert row["failed_searches"] == 1.0
    assert not {"loss", "em", "all_fail"} & row.keys()
    assert equal(before, weights(trainer))
    assert json.loads(json.dumps(row)) == row


def test_a_row_tells_the_time_by_part(make_trainer: MakeTrainer) -> None:
    row = make_trainer().train_step()
    assert row["seconds"].keys() == {"rollout", "retrieval", "information_gain", "update"}
    assert all(value >= 0 for value in row["seconds"].values())
    assert row["pool"]["drawn"] + row["pool"]["fallback"] > 0
    assert json.loads(json.dumps(row)) == row
    assert {"em", "loss", "entropy", "clipped", "kl", "grad_norm", "sign_flips"} <= row.keys()


def test_nothing_is_written_before_the_run_starts(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    trainer = make_trainer()
    assert list(tmp_path.iterdir()) == []
    trainer.run()
    written = read_sealed(trainer.out / "config.json")
    assert written == json.loads(json.dumps(trainer.config.to_dict()))
    assert {"checkpoints", "config.json", "metrics.jsonl", "policy"} <= {
        path.name for path in trainer.out.iterdir()
    }


def test_a_folder_in_use_is_left_alone(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("optimization.steps=1")
    trainer.run()

    def times() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in trainer.out.rglob("*")}

    written = trainer.out / "config.json"
    before = times()
    with pytest.raises(ValueError, match="holds a run already; pass --resume"):
        make_trainer("optimization.steps=1")
    changed = ("optimization.clip=0.1", "world.seed=1", "credit.alpha=0.5")
    with pytest.raises(
        ValueError,
        match=r"other settings \(world.seed was 0, got 1; optimization.clip was 0.2, got 0.1; "
        r"credit.alpha was None, got 0.5",
    ):
        make_trainer(*changed, resume=True)
    assert times() == before
    written.unlink()
    with pytest.raises(ValueError, match="holds a run already"):  # its checkpoints tell
        make_trainer("optimization.steps=1")


def test_a_run_keeps_the_precision_that_it_began_in(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stand-ins of two processors."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    trainer = make_trainer("optimization.steps=1", "policy.precision=auto")
    trainer.run()
    assert trainer.updater.autocast == trainer.policy.autocast == torch.bfloat16
    written = read_sealed(trainer.out / "config.json")
    assert written["policy"]["precision"] == "bfloat16-autocast"
    make_trainer("optimization.steps=1", "policy.precision=auto", resume=True)
    own = from_dict(read_settings(trainer.out / "config.json"))
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    with pytest.raises(
        ValueError, match=r"policy.precision was 'bfloat16-autocast', got 'float32'"
    ):
        make_trainer("optimization.steps=1", "policy.precision=auto", resume=True)
    resumed = GRPOTrainer(own, trainer.out, resume=True)  # as by --resume alone
    assert resumed.policy.autocast == torch.bfloat16


def test_a_finished_run_can_be_resumed_and_says_the_same(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    last = trainer.run()
    assert last["step"] == 3
    assert last == read_log(trainer.out / "metrics.jsonl")[-1]
    written = trainer.out / "config.json"
    settings = json.loads(written.read_text(encoding="utf-8"))
    del settings["sha256"]  # older ones had none
    del settings["policy"]["lora"], settings["optimization"]["dynamic_sampling"]  # added since
    written.write_text(json.dumps(settings), encoding="utf-8")
    again = make_trainer(resume=True)
    assert again.run() == last
    assert equal(weights(trainer), weights(again))
    assert rows(trainer) == rows(again)


def test_resuming_where_nothing_is_starts_afresh(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("optimization.steps=1", resume=True)
    assert trainer.step == 0
    trainer.run()
    plain = make_trainer("optimization.steps=1", name="plain")
    plain.run()
    assert equal(weights(trainer), weights(plain))


def test_the_policy_of_a_run_can_be_trained_on(
    make_trainer: MakeTrainer, tiny_settings: Callable[..., list[str]], tmp_path: Path
) -> None:
    first = make_trainer(name="first")
    first.run()
    settings = tiny_settings(f"policy.path={tmp_path / 'first' / 'policy'}")
    second = GRPOTrainer(load_config(None, settings), tmp_path / "second")
    assert equal(weights(first), weights(second))


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("rollouts", signal.SIGINT),
        ("update", signal.SIGTERM),  # as programs take it: like Ctrl-C
        ("evaluation", signal.SIGINT),
    ],
)
def test_ctrl_c_writes_a_checkpoint_from_which_the_run_ends_alike(
    make_trainer: MakeTrainer, request: pytest.FixtureRequest, moment: str, number: signal.Signals
) -> None:
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGTERM, before))
    settings = (*RICH, "optimization.steps=3", "run.checkpoint_every=100")
    whole = make_trainer(*settings, name="whole")
    whole.run()
    cut = make_trainer(*settings, name="cut")

    def press(part: str, done: int, total: int) -> None:
        if part == moment and cut.step >= 1 and done:
            os.kill(os.getpid(), number)

    with pytest.raises(KeyboardInterrupt):
        cut.run(watch=press)
    done = 1 if moment == "rollouts" else 2  # an update is made to its end
    assert cut.step == done == len(rows(cut))
    again = make_trainer(*settings, name="cut", resume=True)
    assert again.step == done
    again.run()
    assert equal(weights(whole), weights(again))
    unevaluated = [{**row, "eval": None} for row in rows(again)]
    assert unevaluated == [{**row, "eval": None} for row in rows(whole)]


@pytest.mark.parametrize(
    ("file", "size"), [("trainer.pt", 100), ("model.safetensors", 5000), ("config.json", 0)]
)
def test_a_damaged_checkpoint_is_passed_over(
    make_trainer: MakeTrainer, caplog: pytest.LogCaptureFixture, file: str, size: int
) -> None:
    settings = ("optimization.steps=2", "run.checkpoint_every=1")
    trainer = make_trainer(*settings)
    trainer.run()
    first, second = checkpoints(trainer.out / "checkpoints")
    os.truncate(second / file, size)
    resumed = make_trainer(*settings, resume=True)
    assert resumed.step == 1
    assert f"{second} is damaged" in caplog.text
    again = resumed.run()
    assert {**again, "seconds": None} == {**rows(trainer)[-1], "seconds": None}
    assert equal(weights(resumed), weights(trainer))  # and the damaged one has been written anew
    for checkpoint in (first, second):
        os.truncate(checkpoint / file, size)
    with pytest.raises(ValueError, match=r"no checkpoint in .*checkpoints can be read; remove"):
        make_trainer(*settings, resume=True)


@pytest.mark.parametrize("state", [{"step": 2}, [1]])
def test_a_state_that_does_not_fit_is_passed_over(
    make_trainer: MakeTrainer, caplog: pytest.LogCaptureFixture, state: Any
) -> None:
    settings = ("optimization.steps=2", "run.checkpoint_every=1")
    trainer = make_trainer(*settings)
    trainer.run()
    second = checkpoints(trainer.out / "checkpoints")[-1]
    torch.save(state, second / "trainer.pt")
    resumed = make_trainer(*settings, resume=True)
    assert resumed.step == 1
    assert f"{second} is damaged" in caplog.text
    resumed.run()
    assert equal(weights(resumed), weights(trainer))


def test_what_comes_after_a_damaged_checkpoint_is_kept(make_trainer: MakeTrainer) -> None:
    settings = ("optimization.steps=5", "run.checkpoint_every=2", "run.keep_checkpoints=1")
    run_until(make_trainer(*settings, "run.keep_checkpoints=3"), 4)
    folder = make_trainer(*settings, resume=True).out / "checkpoints"
    os.truncate(folder / "step-000004" / "trainer.pt", 0)
    resumed = make_trainer(*settings, "run.checkpoint_every=3", resume=True)
    assert resumed.step == 2
    run_until(resumed, 3)
    assert [path.name for path in checkpoints(folder)] == ["step-000003"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"world": 3}'])
def test_damaged_settings_are_named(make_trainer: MakeTrainer, text: str) -> None:
    trainer = make_trainer("optimization.steps=1")
    trainer.run()
    (trainer.out / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"run.config\.json is damaged"):
        make_trainer("optimization.steps=1", resume=True)


def test_settings_that_have_changed_are_named(make_trainer: MakeTrainer) -> None:
    """A digit that is another one is as good JSON as before."""
    trainer = make_trainer("optimization.steps=2")
    run_until(trainer, 1)
    file = trainer.out / "config.json"
    file.write_text(file.read_text().replace('"seed": 0', '"seed": 1', 1))
    with pytest.raises(ValueError, match=r"config\.json is damaged \(it was changed since"):
        make_trainer("optimization.steps=2", resume=True)


def test_a_grammar_that_has_changed_is_named(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("optimization.steps=2")
    run_until(trainer, 1)
    file = trainer.out / "protocol.json"
    write_sealed(file, asdict(PROTOCOLS["refine-bare"]) | {"name": "as a template wrote it"})
    assert make_trainer("optimization.steps=2", resume=True).policy.protocol.name.startswith("as a")
    file.write_text(file.read_text().replace("as a", "as b"))
    with pytest.raises(ValueError, match=r"protocol\.json is damaged \(it was changed since"):
        make_trainer("optimization.steps=2", resume=True)


@pytest.mark.parametrize("damage", ["digit", "lost", "zeros"])
def test_a_changed_log_is_named(make_trainer: MakeTrainer, damage: str) -> None:
    trainer = make_trainer("optimization.steps=3")
    run_until(trainer, 2)
    log = trainer.out / "metrics.jsonl"
    whole = log.read_text()
    changed = {
        "digit": whole.replace('"em": ', '"em": 1', 1),
        "lost": "",
        "zeros": "\0" * len(whole),
    }[damage]
    log.write_text(changed)
    if damage == "lost":
        log.unlink()
    with pytest.raises(ValueError, match=r"metrics\.jsonl is not what it was after step 2"):
        make_trainer("optimization.steps=3", resume=True).run()
    log.write_text(whole)
    assert make_trainer("optimization.steps=3", resume=True).run()["step"] == 3
    assert [row["step"] for row in rows(trainer)] == [1, 2, 3]


def test_a_log_that_was_emptied_is_begun_again(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("optimization.steps=3")
    run_until(trainer, 1)
    (trainer.out / "metrics.jsonl").write_text("")
    run_until(make_trainer("optimization.steps=3", resume=True), 2)
    assert make_trainer("optimization.steps=3", resume=True).run()["step"] == 3
    assert [row["step"] for row in rows(trainer)] == [2, 3]


def test_a_full_disk_ends_with_the_name_of_the_checkpoint(make_trainer: MakeTrainer) -> None:
    """A limit on the size of files stands for the disk; it is the system that refuses."""
    resource = pytest.importorskip("resource")
    settings = ("optimization.steps=3", "run.checkpoint_every=1")
    trainer = make_trainer(*settings)
    run_until(trainer, 1)
    trainer = make_trainer(*settings, resume=True)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write .*step-000002.*is the disk full"):
            trainer.run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    names = [path.name for path in (trainer.out / "checkpoints").iterdir()]
    assert names == ["step-000001"]
    assert make_trainer(*settings, resume=True).run()["step"] == 3


def test_a_resumed_run_may_go_on_for_longer(make_trainer: MakeTrainer) -> None:
    long = make_trainer("optimization.steps=4", "run.eval_every=2", "run.eval_limit=3", name="l")
    long.run()
    make_trainer("optimization.steps=2").run()
    more = ("optimization.steps=4", "run.eval_every=2", "run.eval_limit=3", "run.threads=1")
    longer = make_trainer(*more, resume=True)
    assert longer.step == 2
    longer.run()
    assert equal(weights(long), weights(longer))
    assert [row["step"] for row in rows(longer) if "eval" in row] == [4]
    assert make_trainer(*more, resume=True).step == 4  # its settings are the new ones now


def test_a_dead_retriever_is_refused_at_the_start(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("trainers.setup.BM25Retriever.build", lambda documents: Down())
    with pytest.raises(ValueError, match=r"retriever does not answer a search .*server is down"):
        make_trainer()
    assert list(tmp_path.iterdir()) == []


def test_a_retriever_that_dies_ends_the_run_with_a_checkpoint(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = ("optimization.steps=3", "run.checkpoint_every=100", "run.failed_tries=2")
    trainer = make_trainer(*settings)
    learned: list[Weights] = []

    def lose(row: dict[str, Any]) -> None:
        learned.append(weights(trainer))
        trainer.engine.retriever = Down()
        always_search(trainer, monkeypatch)

    with pytest.raises(
        RetrieverLostError, match=r"100% of the searches of step 2 failed .* 2 tries"
    ):
        trainer.run(lose)
    assert caplog.text.count("nothing is learned from it") == 2
    assert equal(weights(trainer), learned[0])
    assert len(learned) == len(rows(trainer)) == 1
    resumed = make_trainer(*settings, resume=True)
    assert resumed.step == 1
    assert resumed.run()["step"] == 3


def test_a_retriever_that_recovers_leaves_no_trace(
    make_trainer: MakeTrainer, caplog: pytest.LogCaptureFixture
) -> None:
    """The step is played again from where its generators stood."""
    whole = make_trainer("optimization.steps=2", name="whole")
    whole.run()
    trainer = make_trainer("optimization.steps=2")
    real = trainer.engine.retriever

    class Recovers:
        calls = 0

        def search(self, queries: Sequence[str], k: int) -> list[list[Any]]:
            self.calls += 1
            if self.calls in (2, 3):
                raise RetrievalError("busy")
            return real.search(queries, k)

    trainer.engine.retriever = Recovers()
    trainer.run()
    assert "it is tried again" in caplog.text
    assert all(row["failed_searches"] == 0 for row in rows(trainer))
    assert equal(weights(trainer), weights(whole))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"name": 1}'])
def test_a_damaged_grammar_is_named(make_trainer: MakeTrainer, content: str) -> None:
    trainer = make_trainer("optimization.steps=2")
    run_until(trainer, 1)
    (trainer.out / "protocol.json").write_text(content)
    with pytest.raises(ValueError, match=r"protocol\.json is damaged .*or remove it"):
        make_trainer("optimization.steps=2", resume=True)
    (trainer.out / "protocol.json").unlink()
    assert make_trainer("optimization.steps=2", resume=True).run()["step"] == 2


def test_a_few_failures_are_left_out_and_the_rest_teaches(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer("run.max_failed_searches=0.5")
    real = trainer.engine.retriever

    class Flaky:
        calls = 0

        def search(self, queries: Sequence[str], k: int) -> list[list[Any]]:
            self.calls += 1
            if self.calls == 1 and len(queries) > 1:
                raise RetrievalError("busy", [None, *real.search(queries[1:], k)])
            return real.search(queries, k)

    trainer.engine.retriever = Flaky()
    before = weights(trainer)
    row = trainer.train_step()
    assert 0 < row["failed_searches"] < 0.5
    assert not equal(before, weights(trainer))


def test_a_step_says_how_far_it_has_come(make_trainer: MakeTrainer) -> None:
    told: list[tuple[str, int, int]] = []
    trainer = make_trainer(
        "optimization.steps=1", "optimization.epochs=2", "run.eval_every=1", "run.eval_limit=5"
    )
    trainer.run(watch=lambda *one: told.append(one))
    o = trainer.config.optimization
    rollouts = o.questions_per_step * o.group_size
    parts = list(dict.fromkeys(part for part, _, _ in told))
    assert parts == ["rollouts", "gains", "update", "evaluation"]
    for part, total in (("rollouts", rollouts), ("update", 2 * rollouts), ("evaluation", 5)):
        counts = [done for one, done, whole in told if one == part and whole == total]
        assert counts == sorted(counts)
        assert (counts[0], counts[-1]) == (0, total)
    assert trainer.run()["seconds"]["evaluation"] > 0


def test_a_metric_of_ones_own_is_in_the_log(make_trainer: MakeTrainer) -> None:
    register_metric(Metric("turns", "turns", lambda episode: [float(len(episode.steps))]))
    try:
        trainer = make_trainer("run.eval_every=1", "optimization.steps=1")
        last = trainer.run()
    finally:
        del METRICS["turns"]
    (row,) = read_log(trainer.out / "metrics.jsonl")
    assert row["turns"] == last["turns"] >= 1.0
    assert row["eval"]["turns"] >= 1.0
