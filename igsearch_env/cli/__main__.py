"""The ``igsearch`` command: each of its subcommands is a module of this package."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from importlib.metadata import version

from igsearch_env.cli.program import did_you_mean, run

COMMANDS = {
    "evaluate": "evaluate an agent on question sets: EM, F1, searches and more, with intervals",
    "compare": "compare two evaluations of the same questions",
    "judge": "judge answers with a language model, and compare it with EM and with labels",
    "view": "make a page that shows each search of an evaluation or a training run",
    "data": "write the questions and a corpus of HotpotQA, 2WikiMultihopQA, MuSiQue or your file",
    "index": "build a search index of a corpus",
    "serve": "serve a retriever over HTTP",
    "check": "say which dialects a retrieval server speaks, and what is wrong with it",
    "recall": "compare retrievers by the gold documents that they find",
}
"""Name and purpose of each subcommand."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run a subcommand; only its own module is imported.

    Args:
        argv: Command line arguments; None for those of the process.
    """
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    run(partial(_command, name, rest))


def _command(name: str, arguments: Sequence[str]) -> None:
    if name in ("-h", "--help"):
        print("usage: igsearch COMMAND ...\n\nSearch agents: environments, indexes, evaluation.\n")
        for command, purpose in COMMANDS.items():
            print(f"  {command:10}{purpose}")
        print("\nigsearch COMMAND --help lists the options of a command.")
    elif name == "--version":
        print(version("igsearch-env"))
    elif name not in COMMANDS:
        raise ValueError(
            f"igsearch has no command {name!r}{did_you_mean(name, COMMANDS)} "
            f"(there are {', '.join(COMMANDS)})"
        )
    else:
        import_module(f"igsearch_env.cli.{name}").main(arguments)


if __name__ == "__main__":
    main()
