"""Other people's algorithms on the environment, each read from top to bottom."""

from __future__ import annotations

from igsearch_env.cli.program import Parser


def example_parser(description: str | None, **more: float) -> Parser:
    """The options of an example; ``more`` are options of its own, with their defaults."""
    parser = Parser(None, description)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=80, help="episodes per step")
    for name, default in more.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--information-gain-weight", type=float, default=0.3)
    parser.add_argument("--eval-questions", type=int, default=600)
    parser.add_argument("--people", type=int, default=320, help="size of the world")
    parser.add_argument("--seed", type=int, default=0)
    return parser
