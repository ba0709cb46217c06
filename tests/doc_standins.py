"""Where the blocks of README and docs run, and stand-ins for what tests cannot have.

- **The Hugging Face hub**: a local cache in its layout, used offline. Under the names of the models
  that the pages use lie small ones: the shipped policy for Qwen2.5-3B, with a chat template that
  knows tools for its instruct model, and MiniLM for E5.
- **The benchmarks**: a folder with one question of the embedded world for each.
- **vLLM**: a program ``vllm`` that starts the small server of that API which other tests use.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from igsearch_env import World
from igsearch_env.data.benchmarks import BENCHMARKS, FOLDER_VARIABLE
from tests.doc_pages import ROOT

POLICY = ROOT / "agents" / "world-tiny"
CHAT_TEMPLATE = """\
{% if tools %}<|im_start|>system
{{ tools | tojson }}<|im_end|>
{% endif %}{% for m in messages %}<|im_start|>{{ 'user' if m.role == 'tool' else m.role }}
{% if m.role == 'tool' %}<tool_response>
{{ m.content }}
</tool_response>{% else %}{{ m.content }}{% endif %}{% for call in m.tool_calls or [] %}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
VLLM = """\
#!/bin/sh
# vllm serve FOLDER --port PORT
exec "{python}" "{server}" --policy "$2" --port "$4" --log "$PWD/vllm.jsonl"
"""


def make_folder(work: Path) -> Path:
    """Lay out what a reader has: a small corpus, question sets, and the checkout.

    Args:
        work: The folder that the blocks of a page run in; it must not be there yet.
    """
    (work / "data").mkdir(parents=True)
    for name in ("agents", "trainers"):
        (work / name).symlink_to(ROOT / name)
    world = World.generate(1, people=40)
    _write(
        work / "data" / "wiki.jsonl",
        [{"id": d.id, "title": d.title, "text": d.text} for d in world.documents],
    )
    rows = _rows(world)
    for name, some in (("train", rows[:12]), ("dev", rows[-12:]), ("mine", rows[-4:])):
        _write(work / "data" / f"{name}.jsonl", some)
    for name in ("hotpotqa", "musique"):
        _write(work / "data" / f"{name}.jsonl", rows[:12])
    return work


def make_standins(folder: Path, encoder: str) -> Path:
    """Lay out the stand-ins, which all pages share.

    Args:
        folder: Where.
        encoder: Folder of a small sentence encoder.
    """
    rows = _rows(World.generate(1, people=40))
    for row, (name, benchmark) in zip(rows, BENCHMARKS.items(), strict=False):
        _write(folder / "benchmarks" / name / f"{benchmark.split}.jsonl", [row])
    _lay_out_hub(folder / "hub", encoder)
    (folder / "bin").mkdir()
    server = ROOT / "tests" / "completion_server.py"
    vllm = folder / "bin" / "vllm"
    vllm.write_text(VLLM.format(python=sys.executable, server=server), encoding="utf-8")
    vllm.chmod(0o755)
    return folder


def environment(standins: Path, work: Path | None = None) -> dict[str, str]:
    """The variables under which the blocks find the checkout and the stand-ins."""
    path = (standins / "bin", Path(sys.executable).parent, os.environ["PATH"])
    return os.environ | {
        "PATH": os.pathsep.join(map(str, path)),
        "PYTHONPATH": os.pathsep.join(map(str, filter(None, (ROOT, work)))),
        "HF_HOME": str(standins / "hf"),
        "HF_HUB_CACHE": str(standins / "hub"),
        "HF_HUB_OFFLINE": "1",
        FOLDER_VARIABLE: str(standins / "benchmarks"),
        "OMP_NUM_THREADS": "1",
    }


def _rows(world: World) -> list[dict[str, Any]]:
    """The questions of a world as rows of a file."""
    return [
        {"id": q.id, "question": q.text, "golden_answers": q.golden_answers}
        | {"gold_ids": q.gold_ids}
        for q in (*world.train_questions, *world.test_questions)
    ]


def _write(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _lay_out_hub(hub: Path, encoder: str) -> None:
    """A cache as the hub's client writes it, with one revision of each model."""
    for name, source in (
        ("intfloat/e5-base-v2", encoder),
        ("Qwen/Qwen2.5-3B", POLICY),
        ("Qwen/Qwen2.5-3B-Instruct", POLICY),
    ):
        model = hub / f"models--{name.replace('/', '--')}"
        revision = "0" * 40
        # A model of the hub says nothing of this project's settings.
        ignored = shutil.ignore_patterns("igsearch.json", "__pycache__")
        snapshot = Path(shutil.copytree(source, model / "snapshots" / revision, ignore=ignored))
        (model / "refs").mkdir()
        (model / "refs" / "main").write_text(revision, encoding="utf-8")
        if name.endswith("Instruct"):
            (snapshot / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
