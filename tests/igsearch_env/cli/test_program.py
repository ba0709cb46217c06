"""What programs print: nothing of it commands the terminal."""

from __future__ import annotations

import pytest

from igsearch_env.cli.program import run, say

STRANGE = "http://ann:secret@host/x \x1b]0;title\x07\x1b[2K\rdone\x9b31m\u2028"
SHOWN = "http://host/x  ]0;title  [2K done 31m\n"


def test_lines_have_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    say(STRANGE)
    assert capsys.readouterr().out == SHOWN + "\n"


def test_errors_have_none_either(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise ValueError(STRANGE)

    with pytest.raises(SystemExit, match="2"):
        run(main)
    assert capsys.readouterr().err == f"error: {SHOWN}\n"
