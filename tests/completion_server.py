"""An OpenAI-compatible server of one checkpoint, for tests: python tests/completion_server.py.

It answers ``/v1/models``, ``/v1/completions`` and ``/v1/chat/completions``, one request at a time;
what it answers depends on the request alone. Prompts may be token ids, and ``return_token_ids``
adds those of the turn, as with vLLM. Every answered request is a line of the log.

``prompt_logprobs`` of ``/v1/completions`` are as vLLM gives them, for any number of prompts.

A chat request for JSON is one for a verdict (:mod:`igsearch_env.endpoint.judge`): the answer is
right if it equals an accepted one, letter by letter. That stands in for a model that can judge.
"""

from __future__ import annotations

import argparse
import json
import threading
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI

from agents.transformers_policy import TransformersPolicy
from igsearch_env.episode import Episode, Question, Segment


def make_app(path: str, log: Path) -> FastAPI:
    app = FastAPI()
    loaded = TransformersPolicy.from_pretrained(path)
    lock = threading.Lock()

    def answer(prompt: str | list[int], body: dict[str, Any]) -> dict[str, Any]:
        """Text and reason of its end, as OpenAI has it: the stop string is cut off."""
        policy = TransformersPolicy(
            loaded.model,
            loaded.tokenizer,
            loaded.protocol,
            greedy=body["temperature"] == 0,
            temperature=body["temperature"] or 1.0,
            seed=body["seed"],
            max_new_tokens=body["max_tokens"],
        )
        read = (
            Segment(prompt, "system")
            if isinstance(prompt, str)
            else Segment("", "system", (*prompt,))
        )
        asked = Episode(Question("q", "?", ("a",)), read)
        with lock:
            turn = policy.act([asked])[0]
            with log.open("a") as file:
                file.write(json.dumps({"prompt": prompt, "seed": body["seed"]}) + "\n")
        ends = [turn.index(stop) for stop in body["stop"] if stop in turn]
        text, reason = (turn[: min(ends)], "stop") if ends else (str(turn), "length")
        given = {"token_ids": turn.token_ids} if body.get("return_token_ids") else {}
        return {"index": 0, "text": text, "finish_reason": reason, **given}

    def scored(index: int, ids: list[int]) -> dict[str, Any]:
        """The log-probs of a prompt's tokens, a table by token id for each but the first."""
        with lock, torch.no_grad():
            table = loaded.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        rows = [{str(t): {"logprob": float(table[at, t])}} for at, t in enumerate(ids[1:])]
        return {"index": index, "text": "", "prompt_logprobs": [None, *rows]}

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": path, "object": "model"}]}

    @app.post("/v1/completions")
    def completions(body: dict[str, Any]) -> dict[str, Any]:
        if "prompt_logprobs" in body:
            return {"choices": [scored(i, ids) for i, ids in enumerate(body["prompt"])]}
        return {"choices": [answer(body["prompt"], body)]}

    @app.post("/v1/chat/completions")
    def chat(body: dict[str, Any]) -> dict[str, Any]:
        if "response_format" in body:
            data = json.loads(body["messages"][1]["content"].split("\n", 1)[0])
            right = data["submitted_answer"].strip() in data["accepted_answers"]
            verdict = json.dumps({"reason": "letter by letter", "correct": right})
            return {"choices": [{"message": {"role": "assistant", "content": verdict}}]}
        choice = answer("".join(message["content"] for message in body["messages"]), body)
        return {
            "choices": [{**choice, "message": {"role": "assistant", "content": choice["text"]}}]
        }

    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policy", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--log", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    app = make_app(arguments.policy, arguments.log)
    uvicorn.run(app, host="127.0.0.1", port=arguments.port, log_level="warning")


if __name__ == "__main__":
    main()
