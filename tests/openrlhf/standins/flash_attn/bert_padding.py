def _without_gpu(*args: object, **options: object) -> None:
    raise NotImplementedError("flash-attn needs a GPU; run without --ds.packing_samples")


index_first_axis = pad_input = rearrange = unpad_input = _without_gpu
