#!/usr/bin/env python3
"""Gemma 3 and the theorem-1 patch in NumPy float64: an oracle that shares no code with the crate.

    python reference/numpy_reference.py all             make every golden file that can be made here
    python reference/numpy_reference.py all --check     make them again and compare with the committed ones
    python reference/numpy_reference.py all --only tiny
    python reference/numpy_reference.py golden    --model DIR --ids FILE --output FILE.safetensors
    python reference/numpy_reference.py forward   --model DIR --ids FILE --output FILE.safetensors
    python reference/numpy_reference.py check     --model DIR --ids FILE --trace FILE.safetensors
    python reference/numpy_reference.py theorem-1 --model DIR --ids FILE [--absorb 1:9]

It needs NumPy and nothing else. FILE holds token ids: JSON (`[2, 818]`, `{"ids": [...]}`, or a list or
`"prompts"` of such, of which `--prompt NAME` chooses one), or a .safetensors file with a tensor `ids`.

`check` is for the output of

    context-patch trace --model DIR --ids FILE --dtype f64 --output TRACE.safetensors

It prints L-infinity for every tensor whose name is known here, and exits with 1 when one is above
1e-9 (`--tolerance`). `forward` writes the same tensors, as computed here.

Everything is float64: weights are widened exactly, and eps, the embedding scale, the RoPE
frequencies, their sines and cosines and every sum are float64. That is deliberately not what
Hugging Face computes in float64 mode (its RMSNorm and its RoPE pass through float32). Against the same
file run in 80-bit arithmetic, logits and intermediates of the small models are within 1e-13
and their delta m, which divides by whatever n(d_C) is, within 1e-10.

Notation. The paper is Goldwaser, Munn, Gonzalvo, Dherin, "Equivalence of Context and Parameter
Updates in Modern Transformer Blocks", arXiv 2511.17864. `_ctx` is its subscript C (the contextual
pass, all tokens); no suffix is the reduced pass (the tokens Y are gone, the others keep their
absolute positions). Sections below: 1 files, 2 configuration, 3 the model, 4 the patch, 5 golden
data, 6 commands.

What a golden file for a small model (`golden/NAME.f64.safetensors`) holds, T tokens, V vocabulary
entries, H hidden, F ffn, all F64 unless said otherwise:

    ids                      I64 [T]
    logits_f64               [T, V]     the contextual pass
    and, for P = `patch` (only the last token is left) and P = `keep_first` (the first and the last):
    P.LAYER.z                [H]        z of the last token in the patched reduced pass
    P.LAYER.gate_u           [F]        delta W_gate = gate_u z^T  (1 / |z|^2 is inside gate_u)
    P.LAYER.up_u             [F]        delta W_up   = up_u z^T
    P.LAYER.dm               [H]        what the scale 1 + w of post_feedforward_layernorm gains
    P.logits                 [V]        last token, patched reduced pass
    P.linf                   []         max |P.logits - logits_f64[T - 1]|
    P.linf_no_patch          []         the same for a reduced pass with the checkpoint's weights,
    P.linf_without_dm        []         with the patch above less every dm,
    P.linf_without_gate_up   []         and less every delta W

`golden/gemma-3-270m.f64.safetensors` holds, for each PROMPT of gemma-3-270m.json, the contextual
logits of its last position, and how far from them the reduced ones are (all over the whole vocabulary):

    PROMPT.ids               I64 [T]
    PROMPT.logits_f64        [V / 64]   vocabulary entries 0, 64, 128, ...
    PROMPT.top_ids           I64 [32]   the largest logits, largest first
    PROMPT.top_logits        [32]
    PROMPT.log_sum_exp       []
    PROMPT.linf, PROMPT.linf_no_patch, PROMPT.linf_without_dm, PROMPT.linf_without_gate_up
"""

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
GOLDEN = HERE / "golden"
MODELS = HERE.parent / "models"


# ----------------------------------------------------------------------------------------------
# 1. Files: safetensors is an 8-byte little-endian length, a JSON header, then the raw tensors.

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


# ----------------------------------------------------------------------------------------------
# 2. Configuration: config.json in its old and its new spelling, with Hugging Face's defaults.

DEFAULTS = {  # Gemma3TextConfig
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "rms_norm_eps": 1e-6,
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
}


@dataclasses.dataclass
class Rope:
    theta: float
    factor: float  # 1 unless rope_type is "linear"


class Config:
    def __init__(self, path):
        top = json.loads(Path(path).read_text())
        given = top.get("text_config", top)  # Gemma3ForConditionalGeneration nests the text model
        for field, default in DEFAULTS.items():
            setattr(self, field, given.get(field, default))

        # layer_types spelled out, or every sliding_window_pattern-th layer global.
        pattern = given.get("sliding_window_pattern", 6)
        self.layer_types = given.get("layer_types") or [
            "sliding_attention" if (i + 1) % pattern else "full_attention"
            for i in range(self.num_hidden_layers)
        ]

        # New: rope_parameters per layer type. Old: rope_theta and rope_scaling for the global
        # layers, rope_local_base_freq for the local ones, which old configs never scale.
        parameters = given.get("rope_parameters") or {}
        full = dict(parameters.get("full_attention") or {})
        full.update(given.get("rope_scaling") or {})
        full.setdefault("rope_theta", given.get("rope_theta", 1_000_000.0))
        sliding = dict(parameters.get("sliding_attention") or {})
        sliding.setdefault("rope_theta", given.get("rope_local_base_freq", 10_000.0))
        self.rope = {"full_attention": rope(full), "sliding_attention": rope(sliding)}

        # What this file does not compute, it refuses.
        if len(self.layer_types) != self.num_hidden_layers:
            raise SystemExit("layer_types does not have num_hidden_layers entries")
        if self.hidden_activation != "gelu_pytorch_tanh":
            raise SystemExit(f"hidden_activation {self.hidden_activation}")
        for field in ("attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention"):
            if given.get(field):
                raise SystemExit(f"{field} is not part of Gemma 3's text model")


def rope(parameters):
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind not in ("default", "linear"):
        raise SystemExit(f"rope_type {kind}")
    factor = parameters["factor"] if kind == "linear" else 1.0
    return Rope(float(parameters["rope_theta"]), float(factor))


# ----------------------------------------------------------------------------------------------
# 3. The model: embedding, blocks of attention A, inner function f and outer function g, head.


class Model:
    def __init__(self, directory):
        self.config = Config(Path(directory) / "config.json")
        self.tensors = read_checkpoint(Path(directory))
        # `model.`, `language_model.model.`, `model.language_model.`, ...: whatever comes before
        # the embedding's name comes before the name of every other text tensor.
        (embedding,) = (name for name in self.tensors if name.endswith("embed_tokens.weight"))
        self.prefix = embedding.removesuffix("embed_tokens.weight")
        self.embedding = self.tensors[embedding]
        heads = [name for name in self.tensors if name.endswith("lm_head.weight")]
        if not heads and not self.config.tie_word_embeddings:
            raise SystemExit("tie_word_embeddings is false and there is no lm_head.weight")
        self.head = self.tensors[heads[0]] if heads else self.embedding  # tied
        self.final_norm = self.tensors[self.prefix + "norm.weight"].f64()

    def layer(self, i):
        """{name within the layer: float64 array}, for instance "mlp.gate_proj.weight"."""
        prefix = f"{self.prefix}layers.{i}."
        return {
            name.removeprefix(prefix): tensor.f64()
            for name, tensor in self.tensors.items()
            if name.startswith(prefix)
        }

    def embed(self, ids):
        """[tokens, hidden]. The scale is sqrt(hidden) in float64."""
        vocabulary = self.embedding.shape[0]
        outside = [token for token in ids if not 0 <= token < vocabulary]
        if outside or not len(ids):
            raise SystemExit(f"no ids, or ids outside a vocabulary of {vocabulary}: {outside}")
        rows = [self.embedding.rows(token, token + 1) for token in ids]
        return np.concatenate(rows) * np.sqrt(np.float64(self.config.hidden_size))

    def norm(self, x):
        return rms_norm(x, self.final_norm, self.config.rms_norm_eps)

    def lm_head(self, x):
        """[tokens, vocab], from the normed states. The head is widened a piece at a time."""
        step = 1 << 14
        logits = np.empty((len(x), self.head.shape[0]))
        for start in range(0, self.head.shape[0], step):
            logits[:, start : start + step] = x @ self.head.rows(start, start + step).T
        return logits

    def logits(self, x):
        return self.lm_head(self.norm(x))


def n(u, eps):
    """RMSNorm without its scale: n(u) = u / sqrt(mean(u^2) + eps)."""
    return u / np.sqrt(np.mean(u * u, axis=-1, keepdims=True) + eps)


def rms_norm(u, weight, eps):
    """Gemma's RMSNorm: the checkpoint stores w, the scale is 1 + w."""
    return n(u, eps) * (1.0 + weight)


def linear(x, weights, name):
    y = x @ weights[name + ".weight"].T
    return y + weights[name + ".bias"] if name + ".bias" in weights else y


def gelu_tanh(x):
    return 0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3)))


def softmax(scores):
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def rotate(x, positions, parameters):
    """RoPE on [tokens, heads, head_dim]: coordinate c is paired with coordinate c + head_dim / 2."""
    half = x.shape[-1] // 2
    inv_freq = parameters.theta ** (-np.arange(half, dtype=np.float64) / half) / parameters.factor
    angle = np.outer(positions, inv_freq)[:, None, :]
    first, second = x[..., :half], x[..., half:]
    return np.concatenate(
        [first * np.cos(angle) - second * np.sin(angle), second * np.cos(angle) + first * np.sin(angle)],
        axis=-1,
    )


def visible(positions, window):
    """[query, key]: key j is seen by query i when j <= i and, with a window, i - window < j."""
    i, j = np.asarray(positions)[:, None], np.asarray(positions)[None, :]
    return (j <= i) if window is None else (j <= i) & (j > i - window)


def attention(model, i, weights, x, positions, record):
    """v = A(C, x) = x + post_attention_layernorm(attention(input_layernorm(x))).

    The tokens of x, at their absolute positions, see each other and nothing else.
    """
    c = model.config
    kind = c.layer_types[i]
    window = c.sliding_window if kind == "sliding_attention" else None

    def norm(u, name):
        return rms_norm(u, weights[name + ".weight"], c.rms_norm_eps)

    def project(a, name, heads):
        return linear(a, weights, f"self_attn.{name}").reshape(len(positions), heads, c.head_dim)

    a = norm(x, "input_layernorm")
    q = project(a, "q_proj", c.num_attention_heads)
    k = project(a, "k_proj", c.num_key_value_heads)
    v = project(a, "v_proj", c.num_key_value_heads)
    q_normed, k_normed = norm(q, "self_attn.q_norm"), norm(k, "self_attn.k_norm")
    q_rotated = rotate(q_normed, positions, c.rope[kind])
    k_rotated = rotate(k_normed, positions, c.rope[kind])

    scale = np.float64(c.query_pre_attn_scalar) ** -0.5
    mask = np.where(visible(positions, window), 0.0, -np.inf)
    group = c.num_attention_heads // c.num_key_value_heads  # query heads per key/value head
    heads = []
    for head in range(c.num_attention_heads):
        keys, values = k_rotated[:, head // group], v[:, head // group]
        heads.append(softmax(q_rotated[:, head] @ keys.T * scale + mask) @ values)
    mixed = np.concatenate(heads, axis=-1)
    o = linear(mixed, weights, "self_attn.o_proj")
    o_normed = norm(o, "post_attention_layernorm")

    flat = (len(positions), -1)
    record["input_layernorm"] = a
    record["self_attn.q_proj"], record["self_attn.q_norm"] = q.reshape(flat), q_normed.reshape(flat)
    record["self_attn.k_proj"], record["self_attn.k_norm"] = k.reshape(flat), k_normed.reshape(flat)
    record["self_attn.v_proj"] = v.reshape(flat)
    record["self_attn.q_rope"], record["self_attn.k_rope"] = q_rotated.reshape(flat), k_rotated.reshape(flat)
    record["self_attn.mixed"] = mixed
    record["self_attn.o_proj"] = o
    record["post_attention_layernorm"] = o_normed
    record["residual_mid"] = x + o_normed
    return record["residual_mid"]


def inner_norm(model, weights, v, record):
    """z = pre_feedforward_layernorm(v)."""
    z = rms_norm(v, weights["pre_feedforward_layernorm.weight"], model.config.rms_norm_eps)
    record["pre_feedforward_layernorm"] = z
    return z


def inner(weights, z, patch, record):
    """f: h = gelu_tanh(W_gate z) * (W_up z), with both matrices patched where there is a patch."""
    gate = linear(z, weights, "mlp.gate_proj")
    up = linear(z, weights, "mlp.up_proj")
    if patch is not None:
        along = z @ patch.z  # (u z_patch^T) z = u (z_patch . z), for every token
        gate = gate + np.outer(along, patch.gate_u)
        up = up + np.outer(along, patch.up_u)
    act = gelu_tanh(gate)
    record["mlp.gate_proj"], record["mlp.up_proj"], record["mlp.act_fn"] = gate, up, act
    record["mlp.product"] = act * up
    return record["mlp.product"]


def outer(model, weights, v, h, patch, record):
    """T = v + g(h), g = m * n(d), d = W_down h, m = 1 + w, with m patched where there is a patch."""
    d = linear(h, weights, "mlp.down_proj")
    m = 1.0 + weights["post_feedforward_layernorm.weight"]
    if patch is not None:
        m = m + patch.dm
    g = m * n(d, model.config.rms_norm_eps)
    record["mlp.down_proj"], record["post_feedforward_layernorm"] = d, g
    record["output"] = v + g
    return record["output"]


def block(model, i, weights, x, positions, patch=None):
    """One layer; all its intermediates, by name. `residual_mid` is v, `pre_feedforward_layernorm`
    z, `mlp.product` h, `mlp.down_proj` d, `output` T(C, x)."""
    record = {}
    v = attention(model, i, weights, x, positions, record)
    z = inner_norm(model, weights, v, record)
    h = inner(weights, z, patch, record)
    outer(model, weights, v, h, patch, record)
    return record


def forward(model, ids, positions=None, patches=None, record=None):
    """The states after the last layer, [tokens, hidden].

    Positions are absolute and default to 0, 1, 2, ...; `patches` has one Patch per layer; `record`,
    where given, receives every intermediate under its Hugging Face module path.
    """
    positions = np.arange(len(ids)) if positions is None else np.asarray(positions)
    x = model.embed(ids)
    if record is not None:
        record["model.embed_tokens"] = x
    for i in range(model.config.num_hidden_layers):
        layer = block(model, i, model.layer(i), x, positions, patches[i] if patches else None)
        x = layer["output"]
        if record is not None:
            record[f"model.layers.{i}"] = layer.pop("output")
            record.update({f"model.layers.{i}.{name}": array for name, array in layer.items()})
    return x


def trace(model, ids):
    """Every named intermediate of a forward pass, `model.norm` and `lm_head` included."""
    record = {}
    x = forward(model, ids, record=record)
    record["model.norm"] = model.norm(x)
    record["lm_head"] = model.lm_head(record["model.norm"])
    return record


# ----------------------------------------------------------------------------------------------
# 4. The patch.


@dataclasses.dataclass
class Patch:
    """One layer's theorem-1 patch: delta W = u z^T for two matrices, and delta m."""

    z: np.ndarray
    gate_u: np.ndarray
    up_u: np.ndarray
    dm: np.ndarray

    def without_dm(self):
        return dataclasses.replace(self, dm=np.zeros_like(self.dm))

    def without_gate_up(self):
        return dataclasses.replace(
            self, gate_u=np.zeros_like(self.gate_u), up_u=np.zeros_like(self.up_u)
        )


def theorem_1(w_gate, w_up, z, z_ctx, v, v_ctx, d_ctx, eps):
    """Theorem 1, one Gemma block and one token:

        delta W_gate = W_gate (z_C - z) z^T / |z|^2
        delta W_up   = W_up   (z_C - z) z^T / |z|^2
        delta m      = (v_C - v) / n(d_C)              element by element
    """
    norm_squared = z @ z
    if norm_squared == 0.0:
        raise ArithmeticError("theorem 1 needs z != 0")
    divisor = n(d_ctx, eps)
    if np.any(divisor == 0.0):
        raise ArithmeticError("theorem 1 needs every coordinate of n(d_C) != 0")
    delta_z = (z_ctx - z) / norm_squared
    return Patch(z, w_gate @ delta_z, w_up @ delta_z, (v_ctx - v) / divisor)


def algorithm_1(model, ids, absorbed):
    """Algorithm 1 (theorem 2): one Patch per layer, for the last token of `ids`.

    `absorbed` are the positions of Y. The tokens kept beside the last one run through the same
    patched weights. Layer by layer: the reduced pass takes the output of the already patched layer
    before, the target is always the contextual T_i(C, x).

    Returns the patches, the contextual state of the last token after the last layer, and the kept
    positions.
    """
    everything = np.arange(len(ids))
    kept = np.setdiff1d(everything, absorbed)
    if len(kept) == 0 or kept[-1] != everything[-1]:
        raise SystemExit("the last token has the patch, so it cannot be absorbed")

    x_ctx = model.embed(ids)
    x = x_ctx[kept]
    patches = []
    for i in range(model.config.num_hidden_layers):
        weights = model.layer(i)
        contextual = block(model, i, weights, x_ctx, everything)
        v_ctx = contextual["residual_mid"][-1]
        z_ctx = contextual["pre_feedforward_layernorm"][-1]
        d_ctx = contextual["mlp.down_proj"][-1]

        reduced = {}
        v = attention(model, i, weights, x, kept, reduced)
        z = inner_norm(model, weights, v, reduced)
        patch = theorem_1(
            weights["mlp.gate_proj.weight"], weights["mlp.up_proj.weight"],
            z[-1], z_ctx, v[-1], v_ctx, d_ctx, model.config.rms_norm_eps,
        )
        patches.append(patch)

        h = inner(weights, z, patch, reduced)
        x = outer(model, weights, v, h, patch, reduced)
        x_ctx = contextual["output"]
    return patches, x_ctx[-1:], kept


@dataclasses.dataclass
class Outcome:
    """A solved patch, what it says, and what is said when it or a part of it is missing."""

    patches: list
    logits: np.ndarray  # [vocab], last token, patched reduced pass
    logits_ctx: np.ndarray  # [vocab], last token, contextual pass
    linf: float
    linf_no_patch: float
    linf_without_dm: float
    linf_without_gate_up: float


def outcome(model, ids, absorbed):
    """Solve for `absorbed`, then run the three negative controls.

    A control drops a part of the solved patch at every layer; the rest is not solved again.
    """
    patches, x_ctx, kept = algorithm_1(model, ids, absorbed)
    logits_ctx = model.logits(x_ctx)[0]

    def reduced(patches):
        """The reduced pass on its own: kept tokens, patched weights, no contextual pass in sight."""
        return model.logits(forward(model, [ids[j] for j in kept], kept, patches)[-1:])[0]

    def distance(patches):
        return linf(reduced(patches), logits_ctx)

    logits = reduced(patches)
    return Outcome(
        patches, logits, logits_ctx, linf(logits, logits_ctx),
        linf_no_patch=distance(None),
        linf_without_dm=distance([patch.without_dm() for patch in patches]),
        linf_without_gate_up=distance([patch.without_gate_up() for patch in patches]),
    )


def linf(a, b):
    return np.max(np.abs(a - b))


# ----------------------------------------------------------------------------------------------
# 5. Golden data.

LARGE_VOCABULARY = 10_000
CONTROLS = ("linf", "linf_no_patch", "linf_without_dm", "linf_without_gate_up")


def golden_small(model, ids):
    """See the top of this file. For models whose logits are few."""
    tensors = {"ids": np.array(ids), "logits_f64": model.logits(forward(model, ids))}
    cases = {"patch": np.arange(len(ids) - 1), "keep_first": np.arange(1, len(ids) - 1)}
    for case, absorbed in cases.items():
        solved = outcome(model, ids, absorbed)
        for i, patch in enumerate(solved.patches):
            for field in ("z", "gate_u", "up_u", "dm"):
                tensors[f"{case}.{i}.{field}"] = getattr(patch, field)
        tensors[f"{case}.logits"] = solved.logits
        for control in CONTROLS:
            tensors[f"{case}.{control}"] = getattr(solved, control)
        report(f"  {case}", solved)
    return tensors


def golden_large(model, prompts):
    """See the top of this file. For a real vocabulary: the last position of several prompts."""
    tensors = {}
    for name, ids in prompts.items():
        started = time.monotonic()
        solved = outcome(model, ids, np.arange(len(ids) - 1))
        logits = solved.logits_ctx
        top = np.argsort(-logits, kind="stable")[:32]
        tensors[f"{name}.ids"] = np.array(ids)
        tensors[f"{name}.logits_f64"] = logits[::64]
        tensors[f"{name}.top_ids"] = top
        tensors[f"{name}.top_logits"] = logits[top]
        tensors[f"{name}.log_sum_exp"] = logits.max() + np.log(np.sum(np.exp(logits - logits.max())))
        for control in CONTROLS:
            tensors[f"{name}.{control}"] = getattr(solved, control)
        report(f"  {name}, {len(ids)} tokens, {time.monotonic() - started:.1f} s", solved)
    return tensors


def report(title, solved):
    print(
        f"{title}: theorem 1 {solved.linf:.2g}, no patch {solved.linf_no_patch:.3g},"
        f" without dm {solved.linf_without_dm:.3g}, without gate and up {solved.linf_without_gate_up:.3g};"
        f" largest |dm| {max(np.abs(patch.dm).max() for patch in solved.patches):.3g}",
        flush=True,
    )


def golden_sources():
    """(name, model directory, ids file) of every golden file that can be made here."""
    small = sorted((HERE / "checkpoints").glob("*/")) + [HERE / "tiny"]
    for directory in small:
        ids = [GOLDEN / (directory.name + suffix) for suffix in (".safetensors", ".json")]
        ids = [path for path in ids if path.exists()]
        if (directory / "config.json").exists() and ids:
            yield directory.name, directory, ids[0]
        else:
            print(f"{directory.name}: no checkpoint, or no golden/{directory.name}.safetensors with ids")
    directory, ids = MODELS / "gemma-3-270m", GOLDEN / "gemma-3-270m.json"
    if (directory / "config.json").exists() and ids.exists():
        yield directory.name, directory, ids
    else:
        print(f"{directory.name}: not here, or no {ids.name}")


def make_golden(directory, ids):
    model, prompts = Model(directory), read_prompts(ids)
    if model.head.shape[0] > LARGE_VOCABULARY:
        return golden_large(model, prompts)
    return golden_small(model, next(iter(prompts.values())))


def compare_with_hugging_face(name, tensors):
    """Hugging Face's logits, where golden/NAME.safetensors has them: about 1e-5 off in float32."""
    path = GOLDEN / f"{name}.safetensors"
    for key, tensor in read_safetensors(path).items() if path.exists() else ():
        head, middle, _ = key.rpartition("logits_")
        if middle and head + "logits_f64" in tensors:
            distance = linf(tensor.f64(), tensors[head + "logits_f64"])
            print(f"  Hugging Face, {key}: L-infinity {distance:.2g}")


# ----------------------------------------------------------------------------------------------
# 6. Commands.


def compare(ours, theirs, tolerance):
    """Print L-infinity by name; true when nothing is above the tolerance."""
    good = compared = 0
    print(f"{'L-infinity':>12} {'largest |x|':>12}  name")
    for name, tensor in theirs.items():
        if name not in ours:
            print(f"{'-':>12} {'-':>12}  {name}: not a name of this reference")
            continue
        reference = np.asarray(ours[name], dtype=np.float64)
        if np.prod(tensor.shape) != reference.size:
            print(f"{'shape':>12} {'-':>12}  {name}: {list(tensor.shape)}, here {list(reference.shape)}")
            compared += 1
            continue
        distance = linf(tensor.f64().reshape(reference.shape), reference)
        within = distance <= tolerance  # false for NaN
        print(f"{distance:12.3g} {np.abs(reference).max():12.6g}  {name}{'' if within else '   <-- ABOVE'}")
        compared += 1
        good += within
    missing = [name for name in ours if name not in theirs]
    if missing:
        print(f"not in the file: {len(missing)} of {len(ours)} names, such as {', '.join(missing[:4])}")
    print(f"{good} of {compared} tensors within {tolerance:g}")
    return compared > 0 and good == compared


def command_all(arguments):
    good = True
    for name, directory, ids in golden_sources():
        if arguments.only not in (None, name):
            continue
        print(f"{name}: {directory.relative_to(HERE.parent)}")
        tensors = make_golden(directory, ids)
        compare_with_hugging_face(name, tensors)
        path = GOLDEN / f"{name}.f64.safetensors"
        if arguments.check:
            good &= compare_golden(tensors, read_safetensors(path), arguments.tolerance)
        else:
            write_safetensors(path, tensors)
            print(f"  wrote {path.relative_to(HERE.parent)}, {path.stat().st_size} bytes")
    return good


def compare_golden(ours, theirs, tolerance):
    """Relative to the largest entry where that is above one: dm reaches 1e7."""
    worst, where = 0.0, "nothing"
    for name in sorted(ours.keys() | theirs.keys()):
        if name not in ours or name not in theirs or theirs[name].shape != np.shape(ours[name]):
            print(f"  {name}: missing or of another shape")
            return False
        distance = linf(theirs[name].f64(), ours[name]) / max(1.0, np.abs(ours[name]).max())
        if not distance <= worst:
            worst, where = distance, name
    print(f"  worst difference from the committed file {worst:.2g} at {where}")
    return bool(worst <= tolerance)


def command_golden(arguments):
    write_safetensors(arguments.output, make_golden(arguments.model, arguments.ids))
    return True


def command_forward(arguments):
    record = trace(Model(arguments.model), read_ids(arguments.ids, arguments.prompt))
    write_safetensors(arguments.output, record)
    return True


def command_check(arguments):
    ours = trace(Model(arguments.model), read_ids(arguments.ids, arguments.prompt))
    return compare(ours, read_safetensors(arguments.trace), arguments.tolerance)


def command_theorem_1(arguments):
    ids = read_ids(arguments.ids, arguments.prompt)
    start, stop = (int(end) for end in (arguments.absorb or f"0:{len(ids) - 1}").split(":"))
    solved = outcome(Model(arguments.model), ids, np.arange(start, stop))
    report(f"{len(ids)} tokens, {start}:{stop} absorbed", solved)
    print("top-1", "equal" if solved.logits.argmax() == solved.logits_ctx.argmax() else "DIFFERS")
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name, run, *options):
        sub = commands.add_parser(name)
        sub.set_defaults(run=run)
        for option in options:
            sub.add_argument(option, required=True, type=Path)
        return sub

    sub = command("all", command_all)
    sub.add_argument("--check", action="store_true", help="compare with the committed files, write nothing")
    sub.add_argument("--tolerance", type=float, default=1e-9)
    sub.add_argument("--only", metavar="NAME", help="one of them, such as tiny or window-3")
    command("golden", command_golden, "--model", "--ids", "--output")
    for sub in (
        command("forward", command_forward, "--model", "--ids", "--output"),
        command("check", command_check, "--model", "--ids", "--trace"),
        command("theorem-1", command_theorem_1, "--model", "--ids"),
    ):
        sub.add_argument("--prompt", help="which prompt of the ids file, the first one if absent")
    commands.choices["check"].add_argument("--tolerance", type=float, default=1e-9)
    sub.add_argument("--absorb", help="positions START:STOP, all but the last token if absent")

    arguments = parser.parse_args()
    return 0 if arguments.run(arguments) else 1


if __name__ == "__main__":
    sys.exit(main())
