"""What all programs share, with nothing to install: arguments, one-line errors, lines of text."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import io
import re
import signal
import sys
import threading
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NoReturn

from igsearch_env.files import check_writable
from igsearch_env.plugins import import_plugin
from igsearch_env.text import clean_text, without_logins


class Parser(argparse.ArgumentParser):
    """A parser whose help is the program's docstring, and whose errors are one line.

    Args:
        prog: The command, such as ``igsearch view``; None for ``python -m`` and the module's name.
        description: The docstring of its module.
        **options: Those of :class:`argparse.ArgumentParser`.
    """

    def __init__(self, prog: str | None, description: str | None, **options: Any) -> None:
        super().__init__(
            prog or _module_command(),
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **options,
        )

    def error(self, message: str) -> NoReturn:
        """End with one line that says what is wrong and where the options are listed."""
        if found := re.match(r"unrecognized arguments: (\S+)", message):
            message += did_you_mean(found[1].partition("=")[0], self._option_string_actions)
        message = without_logins(message)
        self.exit(2, f"error: {message} ({self.prog} --help lists the options)\n")


def _module_command() -> str | None:
    """``python -m NAME`` of the program that runs; None if it was started in another way."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {spec.name}" if spec else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of an error message: the known word that is most like a mistyped one, if any is."""
    bare = {name.lstrip("-"): name for name in known}  # dashes make any two options look alike
    close = difflib.get_close_matches(word.lstrip("-"), list(bare), 1, cutoff=0.7)
    return f"; did you mean {bare[close[0]]}?" if close else ""


def add_settings(parser: argparse._ActionsContainer, settings: type, *names: str) -> None:
    """Give a parser an option for each field of a dataclass, described by the class's docstring.

    A field is optional, and what is not given is absent from the result, so that a program can
    tell what was given. Bools become flags, tuples take several words, a ``Literal`` has choices.

    Args:
        parser: The parser, or a group of one.
        settings: A dataclass with an ``Args:`` section.
        *names: Some of its fields; all if there are none.
    """
    types_ = typing.get_type_hints(settings)
    help_of = argument_docs(settings)
    for field in dataclasses.fields(settings):
        if names and field.name not in names:
            continue
        kind: Any = types_[field.name]
        if typing.get_origin(kind) in (types.UnionType, typing.Union):  # X | None, float | Literal
            parts = [part for part in typing.get_args(kind) if part is not types.NoneType]
            tables = any(typing.get_origin(part) is dict for part in parts)
            several = _word_or_table if tables else _number_or_word
            kind = parts[0] if len(parts) == 1 else several
        options: dict[str, Any] = {"type": kind}
        if kind is bool:
            options = {"action": "store_true"}
        elif typing.get_origin(kind) is Literal:
            options = {"choices": typing.get_args(kind)}
        elif typing.get_origin(kind) is tuple:
            part = typing.get_args(kind)[0]
            words = typing.get_origin(part) is Literal
            options = {"choices": typing.get_args(part)} if words else {"type": part}
            options["nargs"] = "+"
        help_text = help_of[field.name]
        if not any(field.default is none for none in (None, "", (), False, dataclasses.MISSING)):
            help_text += f" (default: {field.default})"
        parser.add_argument(
            "--" + field.name.replace("_", "-"),
            default=argparse.SUPPRESS,
            help=help_text.replace("%", "%%"),
            **options,
        )


def _number_or_word(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _word_or_table(text: str) -> str | dict[str, float]:
    """A word, or numbers by name: ``em=1,searches=-0.05``."""
    if "=" not in text:
        return text
    pairs = (pair.partition("=") for pair in text.split(","))
    return {name.strip(): float(number) for name, _, number in pairs}


def argument_docs(settings: type) -> dict[str, str]:
    """The descriptions in the ``Args:`` sections of a class and its bases, in plain text, by name.

    >>> class Some:
    ...     '''A class.
    ...
    ...     Args:
    ...         one: The first,
    ...             in ``two`` lines.
    ...     '''
    >>> argument_docs(Some)
    {'one': 'the first, in two lines'}
    """
    found = {}
    for base in reversed(settings.__mro__):
        section = re.search(r"\n +Args:\n(.*?)(?:\n\s*\n|\Z)", base.__doc__ or "", re.DOTALL)
        text = section[1] if section else ""
        entries = re.findall(r"^ {8}(\w+): (.*?)(?=^ {8}\w|\Z)", text, re.DOTALL | re.MULTILINE)
        for name, words in entries:
            plain = re.sub(r":\w+:`~?([^`]*)`", r"\1", " ".join(words.split())).replace("``", "")
            first = plain[:1].lower() if plain[1:2].islower() else plain[:1]
            found[name] = first + plain[1:].removesuffix(".")
    return found


def add_import(parser: argparse.ArgumentParser) -> None:
    """Give a parser ``--import``; each file or module is imported while arguments are read."""
    parser.add_argument(
        "--import",
        type=_import,
        action="append",
        default=argparse.SUPPRESS,
        metavar="FILE",
        help="first run a Python file (or import a module) that registers an agent, a retriever, "
        "a question set or the like; may be repeated",
    )


def _import(name: str) -> str:
    try:
        import_plugin(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return name


def positive(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    value = int(text)
    if value < 1:
        raise ValueError(f"expected at least 1, got {value}")
    return value


def folder(text: str) -> Path:
    """The path of a folder, for argparse, which need not exist.

    An address is refused, and so is a path of which a part is there and is no folder.
    """
    if "://" in text:
        raise argparse.ArgumentTypeError(f"expected a folder, got the address {text}")
    path = Path(text)
    try:
        parts = [part for part in (path, *path.parents) if part.exists() and not part.is_dir()]
    except OSError as error:  # such as a name that is too long, or a folder that may not be read
        raise argparse.ArgumentTypeError(
            f"expected a folder, got {text}: {error.strerror}; give another path"
        ) from error
    if parts:
        raise argparse.ArgumentTypeError(
            f"expected a folder, got {text}: {parts[0]} is not a folder; give another path"
        )
    return path


def output_folder(text: str) -> Path:
    """A :func:`folder` that may be written to: told before a long run, and not at its end."""
    path = folder(text)
    try:
        check_writable(path)
    except OSError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return path


def run_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser of what every program that trains takes: --out, --resume and --set."""
    parser = Parser(None, description)
    parser.add_argument("--out", type=output_folder, required=True, help="folder of the results")
    parser.add_argument("--resume", action="store_true", help="go on with what is in the folder")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="change one setting; may be repeated",
    )
    return parser


def say(line: str) -> None:
    """Print a line at once: it may hold text of strangers, and stdout may be a pipe.

    The logins of addresses are left out, and what would move the cursor or colour a terminal.
    """
    print(_shown(line), flush=True)


def _shown(text: str) -> str:
    return clean_text(without_logins(text)).replace("\r", " ")


@contextmanager
def on_interrupt(advice: str) -> Iterator[None]:
    """Let a Ctrl-C say how to go on, and SIGTERM act like one.

    SIGTERM is what a cluster sends before it kills.
    """
    handles = threading.current_thread() is threading.main_thread()  # signals arrive nowhere else
    before = signal.signal(signal.SIGTERM, signal.default_int_handler) if handles else None
    try:
        yield
    except KeyboardInterrupt as stop:
        stop.add_note(advice)
        raise
    finally:
        if handles:
            signal.signal(signal.SIGTERM, before)


def parse_early(parser: Callable[[], argparse.ArgumentParser]) -> None:
    """Answer ``--help`` and mistyped options at once.

    Programs of the checkout call it above their slow imports, which then need be neither waited for
    nor installed.

    Args:
        parser: Makes the program's parser.
    """
    _print_in_any_encoding()
    parser().parse_args()


def _print_in_any_encoding() -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # ASCII or cp1252: a "?" must not end a long run


def quiet_transformers() -> None:
    """Turn off the bars that transformers shows over each loading of weights, if it is loaded."""
    if sys.modules.get("transformers"):
        sys.modules["transformers"].logging.disable_progress_bar()


def run(main: Callable[[], None]) -> NoReturn:
    """Run a program; what its user can mend ends it with one line on stderr and status 2."""
    _print_in_any_encoding()
    quiet_transformers()
    try:
        main()
        sys.stdout.flush()
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {_shown(str(error))}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stop:
        print("; ".join(("interrupted", *getattr(stop, "__notes__", ()))), file=sys.stderr)
        sys.exit(130)
    sys.exit(0)
