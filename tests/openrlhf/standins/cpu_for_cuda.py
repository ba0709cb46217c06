"""Lets OpenRLHF run without a GPU: its calls of torch.cuda do nothing, its device is cpu."""

from __future__ import annotations

import os
from typing import Any


class _Device(str):
    """The device "cpu", which OpenRLHF also writes into "cuda:N", where it must be a number."""

    def __format__(self, spec: str) -> str:
        return "0"


def install() -> None:
    os.environ["DS_ACCELERATOR"] = "cpu"
    import torch
    from torch.distributed import device_mesh

    for name in ("set_device", "synchronize", "empty_cache", "current_stream"):
        # One function each: torch.compile keeps a table by function, and refuses duplicates.
        setattr(torch.cuda, name, lambda *args, **options: None)
    torch.cuda.current_device = lambda: _Device("cpu")
    gather = torch.distributed.all_gather_into_tensor

    def gather_and_wait(*args: Any, **options: Any) -> Any:
        # DeepSpeed starts many and waits for the last, which is enough on a CUDA stream. Over gloo
        # the others may come later, and overwrite the weights that were loaded in the meantime.
        work = gather(*args, **options)
        if work is not None:
            work.wait()
        return work

    torch.distributed.all_gather_into_tensor = gather_and_wait
    make = device_mesh.init_device_mesh
    device_mesh.init_device_mesh = lambda device, *args, **options: make("cpu", *args, **options)
    torch.set_num_threads(1)
