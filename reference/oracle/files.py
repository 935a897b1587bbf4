"""Files: safetensors is an 8-byte little-endian length, a JSON header, then the raw tensors."""

import json
from pathlib import Path

import numpy as np

STORED = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2",
    "I64": "<i8", "I32": "<i4", "U32": "<u4", "I16": "<i2", "U16": "<u2", "I8": "i1", "U8": "u1",
    "BOOL": "?",
}


class Tensor:
    """A tensor in a mapped file, widened when asked for."""

    def __init__(self, raw, dtype):
        self.raw, self.dtype, self.shape = raw, dtype, raw.shape

    def rows(self, start, stop):
        """Rows start..stop, widened to float64; exact for every stored float."""
        part = self.raw[start:stop]
        if self.dtype == "BF16":  # the upper half of a float32
            part = (part.astype(np.uint32) << 16).view(np.float32)
        return part.astype(np.float64, copy=False)

    def f64(self):
        if not self.shape:
            return np.float64(self.raw)
        return self.rows(0, self.shape[0])


def read_safetensors(path):
    """{name: Tensor} of one file."""
    data = np.asarray(np.memmap(path, mode="r", dtype=np.uint8))
    header_end = 8 + int.from_bytes(data[:8].tobytes(), "little")
    tensors = {}
    for name, entry in json.loads(data[8:header_end].tobytes()).items():
        if name != "__metadata__":
            start, end = (header_end + offset for offset in entry["data_offsets"])
            raw = data[start:end].view(STORED[entry["dtype"]]).reshape(entry["shape"])
            tensors[name] = Tensor(raw, entry["dtype"])
    return tensors


def write_safetensors(path, arrays):
    """Write float64 and int64 arrays, in the order of their names."""
    header, chunks, end = {}, [], 0
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        array = array.astype("<i8" if array.dtype.kind in "iu" else "<f8")
        start, end = end, end + array.nbytes
        dtype = "I64" if array.dtype.kind == "i" else "F64"
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [start, end]}
        chunks.append(array.tobytes())
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text + b"".join(chunks))


def read_checkpoint(directory):
    """{name: Tensor} of a model directory, in one file or in shards."""
    index = directory / "model.safetensors.index.json"
    if not index.exists():
        return read_safetensors(directory / "model.safetensors")
    tensors = {}
    for shard in sorted(set(json.loads(index.read_text())["weight_map"].values())):
        tensors.update(read_safetensors(directory / shard))
    return tensors


def read_prompts(path):
    """{name: token ids} of a file; what has no name is called 0, 1, 2, ..."""
    if str(path).endswith(".safetensors"):
        return {"0": read_safetensors(path)["ids"].raw.reshape(-1).tolist()}
    value = json.loads(Path(path).read_text())
    if isinstance(value, dict):
        value = value["ids"] if "ids" in value else value["prompts"]
    if all(isinstance(item, int) for item in value):
        value = [value]
    prompts = {}
    for number, item in enumerate(value):
        if isinstance(item, dict):
            prompts[item.get("name", str(number))] = item["ids"]
        else:
            prompts[str(number)] = item
    return prompts


def read_ids(path, prompt):
    """The token ids of the prompt of that name, of the first one without a name."""
    prompts = read_prompts(path)
    return prompts[prompt] if prompt else next(iter(prompts.values()))
