"""Hard retrieval benchmarks with judged documents, written as folders in BEIR's layout.

BRIGHT has questions whose gold documents share few words with them; BrowseComp-Plus has questions
for agents that browse, over a fixed corpus. A folder of each holds ``corpus.jsonl``,
``queries.jsonl`` and ``qrels/SPLIT.tsv``, which :func:`igsearch_env.load_questions` and
:func:`igsearch_env.load_corpus` read.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from igsearch_env.data.rows import SUFFIXES, HubName, Row, read_rows
from igsearch_env.files import names_file

BRIGHT_DOMAINS = (
    *("biology", "earth_science", "economics", "psychology", "robotics", "stackoverflow"),
    *("sustainable_living", "leetcode", "pony", "aops", "theoremqa_questions"),
    "theoremqa_theorems",
)
"""The domains of BRIGHT, each with a corpus of its own."""

Written = dict[str, tuple[int, int]]
"""Number of questions and of documents of each folder."""


def write_bright(source: str, out: Path, domains: Sequence[str] = BRIGHT_DOMAINS) -> Written:
    """Write BRIGHT (arXiv 2407.12883): a folder for each domain, its gold documents as judged.

    Where there are long documents, ``DOMAIN_long`` has them with their own judgements. The
    questions have no short answers, so they measure retrieval, and no episodes can be played.

    Args:
        source: ``hf:REPO``, or a folder with the files of that data set: ``examples/``,
            ``documents/`` and ``long_documents/`` with ``DOMAIN-*.parquet``, or ``DOMAIN.jsonl``.
        out: Folder of the folders.
        domains: Which ones.

    Raises:
        ValueError: If a file is missing or cannot be read, or a folder is there already.
    """
    written = {}
    for domain in domains:
        examples = list(_bright_rows(source, "examples", domain))
        for name, part, gold in (
            (domain, "documents", "gold_ids"),
            (f"{domain}_long", "long_documents", "gold_ids_long"),
        ):
            if part == "long_documents" and not _has_long(source, domain):
                continue
            queries = [
                {"_id": _id(row), "text": row.columns["query"], "excluded_ids": _excluded(row)}
                for row in examples
            ]
            judged = {_id(row): row.columns.get(gold) or [] for row in examples}
            documents = (
                {"_id": row.columns["id"], "title": "", "text": row.columns["content"]}
                for row in _bright_rows(source, part, domain)
            )
            written[name] = _write(out / name, queries, documents, {"test": judged})
    return written


def write_browsecomp_plus(source: str, out: Path, corpus: str | None = None) -> Written:
    """Write BrowseComp-Plus (arXiv 2508.06600), whose judgements are of two kinds.

    ``qrels/test.tsv`` holds the evidence, all documents that the answer rests on, and
    ``qrels/gold.tsv`` those that hold the answer itself.

    Args:
        source: The decrypted rows (JSONL): ``query_id``, ``query``, ``answer``, and
            ``evidence_docs``, ``gold_docs`` and ``negative_docs`` with ``docid``, ``text`` and
            ``url``. The published rows are encrypted; their authors have a script that opens them.
        out: The folder.
        corpus: Corpus of ``docid`` and ``text``; None for the documents that the rows hold.

    Raises:
        ValueError: If a row cannot be read, or the folder is there already.
    """
    queries, evidence, gold = [], {}, {}
    held: dict[str, str] = {}
    for row in read_rows(source, "question set", ()):
        name, kinds = _id(row), ("evidence_docs", "gold_docs", "negative_docs")
        found = {kind: list(_documents(row, kind)) for kind in kinds}
        for documents in found.values():
            held.update(documents)
        answer = row.columns.get("answer")
        queries.append({"_id": name, "text": row.columns["query"], "golden_answers": [answer]})
        evidence[name] = [docid for docid, _ in found["evidence_docs"]]
        gold[name] = [docid for docid, _ in found["gold_docs"]]
    pages: Iterable[dict[str, Any]] = (
        {"_id": docid, "title": "", "text": text} for docid, text in held.items()
    )
    if corpus is not None:
        pages = (
            {"_id": row.columns["docid"], "title": "", "text": row.columns["text"]}
            for row in read_rows(corpus, "corpus", ())
        )
    return {out.name: _write(out, queries, pages, {"test": evidence, "gold": gold})}


def _bright_rows(source: str, part: str, domain: str) -> Iterator[Row]:
    wanted = ("id", "query") if part == "examples" else ("id", "content")
    for row in read_rows(_bright_file(source, part, domain), "data set", ()):
        if missing := [name for name in wanted if row.columns.get(name) is None]:
            raise row.error(f"no {missing[0]!r}, which BRIGHT's {part} have")
        yield row


def _bright_file(source: str, part: str, domain: str) -> str:
    if source.startswith("hf:"):
        return f"hf:{HubName.parse(source).repo}:{part}:{domain}"
    folder = Path(source) / part
    found = [file for file in sorted(folder.glob(f"{domain}[-.]*")) if file.name.endswith(SUFFIXES)]
    if len(found) != 1:
        raise ValueError(
            f"expected one file {domain}-*.parquet or {domain}.jsonl in {folder}, found "
            f"{', '.join(file.name for file in found) or 'none'}; the layout is that of "
            "hf:xlangai/BRIGHT"
        )
    return str(found[0])


def _has_long(source: str, domain: str) -> bool:
    """Whether there are long documents: not of puzzles and theorems, whose pages are short."""
    if source.startswith("hf:"):
        return domain not in ("leetcode", "aops", "theoremqa_questions", "theoremqa_theorems")
    return any((Path(source) / "long_documents").glob(f"{domain}[-.]*"))


def _id(row: Row) -> str:
    found = row.columns.get("query_id", row.columns.get("id"))
    if found is None:
        raise row.error("no 'query_id' nor 'id'")
    if row.columns.get("query") is None:
        raise row.error("no 'query'")
    return str(found)


def _excluded(row: Row) -> list[str]:
    return [name for name in row.columns.get("excluded_ids") or [] if name != "N/A"]


def _documents(row: Row, kind: str) -> Iterator[tuple[str, str]]:
    listed = row.columns.get(kind) or []
    if not isinstance(listed, list) or not all(
        isinstance(one, dict) and "docid" in one and isinstance(one.get("text"), str)
        for one in listed
    ):
        raise row.error(f"{kind!r} must be a list of objects with 'docid' and 'text'")
    if kind == "evidence_docs" and not listed:
        raise row.error("no 'evidence_docs'; give the decrypted rows of BrowseComp-Plus")
    yield from ((str(one["docid"]), one["text"]) for one in listed)


def _write(
    out: Path,
    queries: Sequence[dict[str, Any]],
    documents: Iterable[dict[str, Any]],
    qrels: dict[str, dict[str, list[str]]],
) -> tuple[int, int]:
    with _whole(out) as folder:
        count = 0
        with (folder / "corpus.jsonl").open("w", encoding="utf-8", newline="\n") as file:
            for document in documents:
                file.write(json.dumps(document, ensure_ascii=False) + "\n")
                count += 1
        with (folder / "queries.jsonl").open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(json.dumps(query, ensure_ascii=False) + "\n" for query in queries)
        (folder / "qrels").mkdir()
        for split, judged in qrels.items():
            place = folder / "qrels" / f"{split}.tsv"
            with place.open("w", encoding="utf-8", newline="\n") as file:
                file.write("query-id\tcorpus-id\tscore\n")
                for query, names in judged.items():
                    for name in names:
                        if "\t" in name or "\n" in name:
                            raise ValueError(f"a document's id has a tab or a line end: {name!r}")
                        file.write(f"{query}\t{name}\t1\n")
    return len(queries), count


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """A folder that appears when all of it is written, or not at all."""
    out = out.resolve()
    if out.exists():
        raise ValueError(f"{out} is there already; give another folder, or delete it first")
    unfinished = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was killed
    unfinished.mkdir(parents=True)
    try:
        with names_file(out):
            yield unfinished
        unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
