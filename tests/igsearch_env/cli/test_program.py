"""What programs print, of which nothing commands the terminal, and what they take as a folder."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import pytest

from igsearch_env.cli.program import folder, output_folder, run, say

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


def test_a_folder_may_have_to_be_made_but_nothing_else_is_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    assert folder(str(tmp_path / "new" / "one")) == tmp_path / "new" / "one"
    for path in (tmp_path / "file", tmp_path / "file" / "new" / "one"):
        with pytest.raises(argparse.ArgumentTypeError, match=r"got .*: \S+/file is not a folder"):
            folder(str(path))
    with pytest.raises(argparse.ArgumentTypeError, match="/dev/null: /dev/null is not a folder"):
        folder("/dev/null")
    with pytest.raises(argparse.ArgumentTypeError, match="a: File name too long; give another"):
        folder(str(tmp_path / ("a" * 300)))
    with pytest.raises(argparse.ArgumentTypeError, match="the address http://host"):
        folder("http://host")


def test_a_folder_of_results_that_may_not_be_written_to_is_refused_before_the_work() -> None:
    with tempfile.TemporaryDirectory() as made:  # pytest's own folders are closed to other users
        os.chmod(made, 0o555)
        mine = os.geteuid()
        if mine == 0:  # root may write everywhere
            os.seteuid(65534)
        try:
            for path in (made, f"{made}/new/one"):
                with pytest.raises(argparse.ArgumentTypeError, match=f"{path}: no .* in {made};"):
                    output_folder(path)
                assert folder(path) == Path(path)  # one that is only read
        finally:
            os.seteuid(mine)
        os.chmod(made, 0o755)
        assert output_folder(f"{made}/new") == Path(made, "new")
        Path(made, "link").symlink_to(Path(made, "nowhere"))
        for path in (f"{made}/link", f"{made}/link/new"):
            with pytest.raises(argparse.ArgumentTypeError, match=f"{path}: the link {made}/link "):
                output_folder(path)
