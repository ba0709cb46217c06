"""A group that passes tensors through a TCP store, in place of vLLM's own."""

from __future__ import annotations

import torch.distributed as dist


class StatelessProcessGroup:
    def __init__(self, store: dist.TCPStore, rank: int, world_size: int) -> None:
        self.store, self.rank, self.world_size = store, rank, world_size

    @classmethod
    def create(cls, host: str, port: int, rank: int, world_size: int) -> StatelessProcessGroup:
        store = dist.TCPStore(host, port, world_size, is_master=rank == 0)
        return cls(store, rank, world_size)
