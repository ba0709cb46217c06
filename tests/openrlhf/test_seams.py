"""What this project takes for granted about OpenRLHF, against what is installed."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import openrlhf
import pytest
from openrlhf.trainer import ppo_trainer, ppo_trainer_async
from openrlhf.trainer.ppo_utils.experience import Experience
from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker
from openrlhf.trainer.ray import ppo_actor
from openrlhf.trainer.ray.launcher import BaseModelActor, RayActorGroup
from openrlhf.utils.agent import AgentExecutorBase

from trainers.openrlhf import seams
from trainers.openrlhf.seams import GPU_VERSIONS, VERSIONS, check_versions, original_class

PACKAGES = Path(openrlhf.__file__).parents[1]
ROOT = Path(__file__).parents[2]
SEAMS = re.findall(r"^    (\S+\.py):(\d+) +(\S.*)$", seams.__doc__ or "", flags=re.MULTILINE)

LEFT_OUT = {
    "bitsandbytes",
    "flash-attn",
    "isort",
    "loralib",
    "optimum",
    "pynvml",
    "transformers-stream-generator",
    "wandb",
}
"""What OpenRLHF asks for and a run on a CPU never imports."""


def test_the_pins_lack_only_what_is_for_gpus_or_unused() -> None:
    check = subprocess.run(
        [sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False
    )
    missing = set(re.findall(r"requires (\S+), which is not installed", check.stdout))
    assert missing == LEFT_OUT, check.stdout
    assert len(check.stdout.splitlines()) == check.stdout.count("is not installed")


def test_seams_are_listed() -> None:
    assert len(SEAMS) == 19


@pytest.mark.parametrize(("file", "line", "text"), SEAMS)
def test_the_line_still_stands_there(file: str, line: str, text: str) -> None:
    lines = (PACKAGES / file).read_text(encoding="utf-8").splitlines()
    assert text in lines[int(line) - 1]


def test_the_remote_classes_still_give_up_their_originals() -> None:
    base = ppo_trainer.BasePPOTrainer
    assert issubclass(original_class(ppo_trainer.PPOTrainer), base)
    assert issubclass(original_class(ppo_trainer_async.TrainingActor), base)
    assert issubclass(original_class(ppo_actor.PolicyModelActor), BaseModelActor)


def test_the_experience_maker_is_built_of_the_same_parts() -> None:
    names = list(inspect.signature(RemoteExperienceMaker.__init__).parameters)
    assert names[1:-1] == [
        "actor_model_group",
        "critic_model_group",
        "reward_model_group",
        "initial_model_group",
        "kl_controller",
        "strategy",
        "tokenizer",
    ]


def test_an_experience_still_carries_labels_index_and_masks() -> None:
    names = set(Experience.__dataclass_fields__)
    assert {"labels", "index", "action_mask", "advantages", "sequences"} <= names


def test_the_agent_function_is_called_with_the_same_arguments() -> None:
    from trainers.openrlhf.agent_function import AgentExecutor

    theirs = inspect.signature(AgentExecutorBase.execute).parameters
    assert list(inspect.signature(AgentExecutor.execute).parameters) == list(theirs)


def test_an_actor_group_still_knows_its_actors_and_their_copies() -> None:
    source = inspect.getsource(RayActorGroup)
    assert "self._actor_handlers = [" in source
    assert "self.duplicate_actors = duplicate_actors" in source


def test_a_wrong_version_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    check_versions()
    monkeypatch.setitem(seams.VERSIONS, "ray", "2.54.0")
    with pytest.raises(ImportError, match=r"expected ray 2\.54\.0, found 2\.55\.0"):
        check_versions()
    monkeypatch.setitem(seams.VERSIONS, "no-such-package", "1.0")
    monkeypatch.setitem(seams.VERSIONS, "ray", "2.55.0")
    with pytest.raises(ImportError, match=r"no-such-package 1\.0, found none"):
        check_versions()
    monkeypatch.delitem(seams.VERSIONS, "no-such-package")
    assert "vllm" in seams.GPU_VERSIONS  # which is not installed here
    monkeypatch.setitem(seams.GPU_VERSIONS, "torch", "2.15.0")
    with pytest.raises(ImportError, match=r"expected torch 2\.15\.0, found 2\.13\.0"):
        check_versions()


def test_versions_are_checked_before_anything_heavy_is_loaded() -> None:
    program = (
        "import sys\n"
        "from trainers.openrlhf import seams\n"
        "seams.VERSIONS['ray'] = '0'\n"
        "from scripts.train_openrlhf import main\n"
        "words = '--out unused --ig.questions world-train --ig.retriever world'\n"
        "try: main(words.split())\n"
        "except ImportError as error: print(error, {'torch', 'transformers'} & set(sys.modules))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert re.match(r"expected ray 0, found 2\.55\.0; .* set\(\)$", ran.stdout), ran.stdout


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_the_requirements_pin_the_versions_that_are_checked(kind: str) -> None:
    text = (ROOT / "requirements" / f"openrlhf-{kind}.txt").read_text(encoding="utf-8")
    pins = dict(re.findall(r"^([\w-]+)(?:\[\w+\])?==(\S+)", text, flags=re.MULTILINE))
    assert VERSIONS.items() <= pins.items()
    if kind == "gpu":
        assert GPU_VERSIONS.items() <= pins.items()


def test_the_pins_are_what_openrlhf_asks_for() -> None:
    wanted = metadata.requires("openrlhf") or []
    for name in ("ray", "deepspeed", "transformers"):
        (pin,) = [w for w in wanted if re.match(rf"{name}(\[\w+\])?==", w)]
        assert pin.endswith(f"=={VERSIONS[name]}")
    assert f"flash-attn=={GPU_VERSIONS['flash-attn']}" in wanted
    assert f'vllm=={GPU_VERSIONS["vllm"]}; extra == "vllm"' in wanted
