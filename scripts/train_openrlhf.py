"""Train a search policy with information gain on a cluster, with OpenRLHF.

Every flag of OpenRLHF's train_ppo_ray is taken, and --ig.NAME for this project's settings:

python -m scripts.train_openrlhf --out runs/3b --config trainers/configs/openrlhf_3b.toml
python -m scripts.train_openrlhf --out runs/3b --config ... --ig.credit ig_search --ig.alpha 0.3
python -m scripts.train_openrlhf --out runs/3b --config ... --resume

It wants an environment of its own (requirements/openrlhf-gpu.txt); see docs/guides/cluster.md.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from igsearch_env.cli.program import run, say
from trainers.openrlhf.flags import read_flags
from trainers.openrlhf.seams import check_versions


def main(argv: Sequence[str] | None = None) -> None:
    """Read the flags, check versions and settings, and train.

    Args:
        argv: Command line arguments; None for those of the process.
    """
    flags = read_flags(sys.argv[1:] if argv is None else argv, __doc__)
    check_versions()
    from trainers.openrlhf.launch import Checked, launch  # loads OpenRLHF, which takes a while

    try:
        launch(flags)
    except Checked:
        say("everything fits; nothing was started")
        return
    say(f"policy: {flags.out / 'policy'}   log: {flags.out / 'tensorboard'}")


if __name__ == "__main__":
    run(main)
