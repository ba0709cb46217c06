"""How a saved policy writes: the file ``igsearch.json`` beside its weights."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from igsearch_env.protocol.names import protocol_from_record, protocol_record
from igsearch_env.protocol.tags import PROTOCOLS, TagProtocol
from igsearch_env.settings import EnvironmentSettings
from igsearch_env.text import read_json

FILE = "igsearch.json"
RULES = EnvironmentSettings().rules


@dataclass(frozen=True)
class CheckpointSettings:
    """What a policy was trained to write, and where. A checkpoint from elsewhere gets the defaults.

    Args:
        protocol: Its tag grammar.
        max_new_tokens: Its longest turn, in tokens.
        trained_in: The rules of its environment.
    """

    protocol: TagProtocol = PROTOCOLS["refine"]
    max_new_tokens: int = 64
    trained_in: EnvironmentSettings = RULES

    def __post_init__(self) -> None:
        _check_count("max_new_tokens", self.max_new_tokens)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the settings of a checkpoint; what its file does not say has its default.

        Raises:
            ValueError: If there is a file that is not as :meth:`save` writes it.
        """
        file = folder / FILE
        if not file.is_file():
            return cls()
        try:
            data = {**read_json(file.read_text(encoding="utf-8"))}
        except (ValueError, TypeError) as error:
            raise ValueError(
                f'expected {file} to be like {{"protocol": "refine", "max_new_tokens": 64}} '
                f"({error}); correct it or remove it"
            ) from error
        try:
            protocol = protocol_from_record(data.get("protocol", cls.protocol))
            rules = {k: v for k, v in data.get("trained_in", {}).items() if k != "protocol"}
            trained_in = replace(RULES, **rules)
            return cls(**{**data, "protocol": protocol, "trained_in": trained_in})
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(
                f"cannot use the settings of the checkpoint in {file}: {error}; import the file "
                "that registers what they name (--import FILE), or correct them"
            ) from error

    def save(self, folder: Path) -> None:
        """Write the settings into a checkpoint."""
        data = {**asdict(self), "protocol": protocol_record(self.protocol)}
        (folder / FILE).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def _check_count(name: str, value: Any) -> None:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
