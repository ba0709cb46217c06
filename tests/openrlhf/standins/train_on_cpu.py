"""``scripts.train_openrlhf`` on a machine without GPUs; the workers get the stand-ins' shim."""

from __future__ import annotations

import os
from typing import Any

import cpu_for_cuda
import ray

cpu_for_cuda.install()
start = ray.init


def init_on_cpu(**options: Any) -> Any:
    options["runtime_env"]["worker_process_setup_hook"] = "cpu_for_cuda.install"
    if "RAY_ADDRESS" not in os.environ:  # else a job, which joins the cluster that runs it
        options |= {"num_cpus": 8, "num_gpus": 8}  # there are no GPUs: it is a number to Ray
        options |= {"object_store_memory": 200 << 20, "include_dashboard": False}
    return start(**options)


ray.init = init_on_cpu

if __name__ == "__main__":
    from igsearch_env.cli.program import run
    from scripts.train_openrlhf import main

    run(main)
