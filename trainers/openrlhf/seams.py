"""Every place of OpenRLHF 0.11.2 that this project depends on, and how.

A line below names a file of the package, a line of it and what stands there. A test compares them,
so that a new version of OpenRLHF cannot move one of them unnoticed.

The program is run as it is, with three names replaced and two calls wrapped:

    openrlhf/cli/train_ppo_ray.py:14    from openrlhf.trainer.ray.ppo_actor import PolicyModelActor
    openrlhf/cli/train_ppo_ray.py:148   from openrlhf.trainer.ppo_trainer import PPOTrainer
    openrlhf/trainer/ppo_trainer_async.py:314   self.trainer_actor = TrainingActor.remote(
    openrlhf/cli/train_ppo_ray.py:630   args = hierarchize(args)
    openrlhf/cli/train_ppo_ray.py:24    ray.init(

The first three get subclasses (:func:`original_class` finds what to derive from). ``hierarchize``
is wrapped to add ``args.ig``, the settings of this project, which the strategy then carries to all
processes. ``ray.init`` comes after every check of the flags and before anything is started: there
the questions, the model's tokenizer and the retriever are checked and the prompt data is written.

The agent function, one for each vLLM engine, plays episodes; the finished one travels as the label:

    openrlhf/trainer/ray/vllm_engine.py:27   assert hasattr(agent_module, "AgentExecutor")
    openrlhf/utils/agent.py:15   async def execute(self, prompt, label, sampling_params, max_length
    openrlhf/trainer/ppo_utils/samples_generator.py:301   labels=[response["label"]],
    openrlhf/trainer/ppo_utils/samples_generator.py:263   action_mask = action_mask[1:

The experience maker takes the episodes back and writes the advantages:

    openrlhf/trainer/ppo_trainer.py:178   self.experience_maker = RemoteExperienceMaker(
    openrlhf/trainer/ppo_utils/experience_maker.py:46   sample.index = [i]
    openrlhf/trainer/ppo_utils/experience_maker.py:95   self.compute_advantages_and_returns(
    openrlhf/trainer/ppo_utils/experience_maker.py:108   def _flatten_results(self, refs

It asks the policy's processes to score through the method that runs any other by its name:

    openrlhf/trainer/ray/launcher.py:319   def async_run_method_batch(self, method_name, **kwargs)
    openrlhf/trainer/ray/launcher.py:89    func = getattr(self, method_name)
    openrlhf/trainer/ray/ppo_actor.py:564  self.actor, self.actor_optim, self.actor_s
    deepspeed/runtime/zero/stage3.py:93    def unwrap_model_for_generation(model):

Metrics join OpenRLHF's on their way to its loggers, and the step says how far training has come:

    openrlhf/trainer/ppo_trainer.py:213   def train_step(self, rollout_samples, global_step: int)
    openrlhf/trainer/ppo_trainer.py:384   def save_logs_and_checkpoints(self, global_step
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

VERSIONS = {
    "openrlhf": "0.11.2",
    "ray": "2.55.0",
    "deepspeed": "0.19.6",
    "transformers": "5.15.0",
}
"""The versions that the seams were read in; ``requirements/openrlhf-*.txt`` pin them."""

GPU_VERSIONS = {"torch": "2.13.0", "vllm": "0.29.0", "flash-attn": "2.8.3"}
"""Those that fit together on GPUs, of which only torch is there on a CPU."""


def check_versions() -> None:
    """Check that what is installed is what this was written for.

    Raises:
        ImportError: If a package has another version, or is missing and needed on a CPU, too.
    """
    for name, wanted in {**VERSIONS, **GPU_VERSIONS}.items():
        try:
            found = version(name)
        except PackageNotFoundError:
            if name in GPU_VERSIONS:
                continue  # OpenRLHF says so itself where it needs it
            found = "none"
        if found.partition("+")[0] != wanted:
            raise ImportError(
                f"expected {name} {wanted}, found {found}; install requirements/openrlhf-gpu.txt "
                "(or -cpu.txt) into an environment of its own, as docs/guides/cluster.md says"
            )


def original_class(remote: Any) -> Any:
    """The class that ``ray.remote`` was put on: a remote one cannot be derived from."""
    return remote.__ray_metadata__.modified_class.__ray_actor_class__
