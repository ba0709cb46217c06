"""A run made by hand in which markup stands wherever text can."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from igsearch_env.completion import Completion
from igsearch_env.episode import Document, Episode, Evidence, Question, Segment, Step
from igsearch_env.viewer.saved_rollouts import rollouts_file, save_rollouts

HOSTILE = '</script><script>window.hacked = 1</script><img src=x onerror="window.hacked = 1">&lt;'


def write_hostile_run(folder: Path) -> Path:
    """A run of one group of two, made by hand, in which markup stands wherever text can.

    Its policy writes bytes: a token is one of them, its advantage its place in the turn, halved,
    less one.
    """
    turn = "🙂 é <search> Lima 🙂 </search>"
    completion = Completion.from_tokens(list(turn.encode()), None, decode_bytes)
    span = (turn.index(" Lima"), turn.index("</search>"))
    inside = completion.tokens_within(*span)
    size = len(completion.token_ids or ())
    hostile = Document("d1", HOSTILE, f"{HOSTILE} It is in Peru. {HOSTILE}", 1.5)
    search = Step(
        action="search",
        turn=Segment(turn, "policy", completion.token_ids),
        observation=Segment(f"\n<documents>{HOSTILE}</documents>\n", "document"),
        policy_tokens=slice(0, size),
        query_tokens=inside,
        search_step=0,
        query=f"Lima {HOSTILE}",
        query_span=span,
        documents=(hostile, replace(hostile, id="d2", title="", score=None)),
        counterfactuals=(Evidence((hostile,), Segment(HOSTILE, "policy"), "q2", HOSTILE),),
        information_gain=0.123456789012345,
        log_prob=-1.0,
        baseline_log_probs=(-1.123456789012345,),
    )
    invalid = replace(
        search,
        action="invalid",
        turn=Segment(HOSTILE, "policy", ()),
        observation=Segment(HOSTILE, "system"),
        policy_tokens=slice(size, size),
        query_span=None,
        documents=(),
        counterfactuals=(),
        information_gain=None,
        reflection=Segment(HOSTILE, "system"),
    )
    question = Question(
        "q1", f"Where is Lima? {HOSTILE}", ("Peru", HOSTILE), f"nq {HOSTILE}", 2, ("d1",)
    )
    prompt = Segment(HOSTILE, "system")
    episode = Episode(
        question, prompt, (search, invalid), "0-0-q1", outcome=0.0, answer=HOSTILE, em=0.0, f1=0.0
    )
    advantages = np.arange(size) / 2 - 1
    other = replace(episode, steps=(), answer=None, em=1.0, truncated=True)
    save_rollouts(
        rollouts_file(folder, 1), [episode, other], [advantages, np.zeros(0)], decode_bytes
    )
    rows = [
        {"step": 1, "em": 0.5, "loss": float("nan"), HOSTILE: 1},
        {"step": 2, "em": 1.0, HOSTILE: 2},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.json").write_text(json.dumps({"run": {"note": HOSTILE}}))
    return folder


def decode_bytes(token_ids: list[int]) -> str:
    return bytes(token_ids).decode("utf-8", errors="replace")
