"""Stands in for TransferQueue, whose storage needs Ray: the calls that verl makes, in a dictionary.

Rows come back joined as the real queue joins them: tensors of several lengths are nested.
"""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from tensordict.tensorclass import NonTensorData
from transfer_queue import KVBatchMeta
from verl.utils.tensordict_utils import list_of_dict_to_tensordict


class QueueInProcess:
    """Keeps fields and tags by partition and key."""

    def __init__(self) -> None:
        self.fields: dict[str, dict[str, dict[str, Any]]] = {}
        self.tags: dict[str, dict[str, dict[str, Any]]] = {}

    def init(self, config: Any = None) -> None:
        pass

    def kv_batch_put(
        self,
        keys: list[str],
        partition_id: str,
        fields: TensorDict | None = None,
        tags: list[dict[str, Any]] | None = None,
    ) -> KVBatchMeta:
        for row, key in enumerate(keys):
            known = self.fields.setdefault(partition_id, {}).setdefault(key, {})
            tag = self.tags.setdefault(partition_id, {}).setdefault(key, {})
            if fields is not None:
                known.update({name: _row(values, row) for name, values in fields.items()})
            if tags is not None:
                tag.update(tags[row])
        found = [self.tags[partition_id][key] for key in keys]
        return KVBatchMeta(keys=list(keys), tags=found, partition_id=partition_id)

    async def async_kv_batch_put(self, **given: Any) -> KVBatchMeta:
        return self.kv_batch_put(**given)

    async def async_kv_put(self, key: str, partition_id: str, tag: dict[str, Any]) -> None:
        self.kv_batch_put([key], partition_id, tags=[tag])

    def kv_batch_get(
        self, keys: list[str], partition_id: str, select_fields: list[str] | None = None
    ) -> TensorDict:
        rows = [self.fields[partition_id][key] for key in keys]
        names = [name for name in select_fields or rows[0] if name in rows[0]]
        return list_of_dict_to_tensordict([{name: row[name] for name in names} for row in rows])

    def kv_list(self, partition_id: str | None = None) -> dict[str, dict[str, Any]]:
        return {name: dict(tags) for name, tags in self.tags.items()}

    def kv_clear(self, keys: list[str], partition_id: str) -> None:
        for key in keys:
            self.tags[partition_id].pop(key, None)
            self.fields[partition_id].pop(key, None)


def _row(values: Any, row: int) -> Any:
    if isinstance(values, torch.Tensor):
        return values[row]
    value = values if isinstance(values, NonTensorData) else values[row]
    return value.data if isinstance(value, NonTensorData) else value
