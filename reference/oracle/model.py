"""The forward pass, written once: embedding, blocks of attention A, inner function f and outer function g, head.

Every block is T(C, x) = r + g(f(z)). In sequence r = v = A(C, x), residual included, and z comes of v; in parallel
r = x + A(C, x), without the residual, and z comes of x.
"""

import dataclasses
import math
from pathlib import Path

import numpy as np

from .config import Config
from .files import read_checkpoint


class Model:
    def __init__(self, directory):
        self.config = Config(Path(directory) / "config.json")
        self.family = self.config.family
        self.tensors = read_checkpoint(Path(directory))
        # `model.`, `language_model.model.`, `transformer.`, nothing, ...: whatever comes before the
        # embedding's name comes before the name of every other text tensor.
        suffix = self.family.embedding + ".weight"
        (embedding,) = (name for name in self.tensors if name.endswith(suffix))
        self.prefix = embedding.removesuffix(suffix)
        self.embedding = self.tensors[embedding]
        heads = [name for name in self.tensors if name.endswith("lm_head.weight")]
        if not heads and not self.config.tied_head:
            raise SystemExit("tie_word_embeddings is false and there is no lm_head.weight")
        self.head = self.tensors[heads[0]] if heads else self.embedding
        biases = [tensor for name, tensor in self.tensors.items() if name.endswith("lm_head.bias")]
        self.head_bias = biases[0].f64() if biases else 0.0
        self.image_rows, self.blocks = {}, np.empty(0)

    def look(self, ids, features):
        """Has the image tokens of `ids` be `features` [image tokens, hidden], and those that lie side by side see each
        other. Only positions count from now on: what is run must be tokens of `ids` at their places."""
        images = np.asarray(ids) == self.config.image_token
        begins = images & ~np.concatenate([[False], images[:-1]])
        self.blocks = np.where(images, np.cumsum(begins), 0)
        self.image_rows = dict(zip(np.nonzero(images)[0], features, strict=True))

    def weights(self, prefix):
        """{name after the prefix: float64 array}, for instance "mlp.gate_proj.weight" in a layer."""
        prefix = self.prefix + prefix
        return {
            name.removeprefix(prefix): tensor.f64()
            for name, tensor in self.tensors.items()
            if name.startswith(prefix)
        }

    def layer(self, i, changes=None):
        return Layer(self, i, self.weights(f"{self.family.layers}.{i}."), changes or {})

    def embed(self, ids, positions, record=None):
        """[tokens, hidden]; `record` receives what the embeddings give."""
        vocabulary = self.embedding.shape[0]
        outside = [token for token in ids if not 0 <= token < vocabulary]
        if outside or not len(ids):
            raise SystemExit(f"no ids, or ids outside a vocabulary of {vocabulary}: {outside}")
        family, record = self.family, {} if record is None else record
        x = np.concatenate([self.embedding.rows(token, token + 1) for token in ids])
        if family.embedding_scaled:
            x = x * np.sqrt(np.float64(self.config.hidden_size))
        record[f"{family.base}.{family.embedding}"] = x
        if self.image_rows:  # unscaled
            x = np.stack([self.image_rows.get(position, row) for position, row in zip(positions, x)])
        if family.position_embedding:
            places = self.weights(family.position_embedding + ".")["weight"][positions]
            record[f"{family.base}.{family.position_embedding}"] = places
            x = x + places
            record[f"{family.base}.drop"] = x  # the dropout, which does nothing here, is the module that gives the sum
        return x

    def norm(self, x):
        weights = self.weights(self.family.final_norm + ".")
        return norm(self, x, weights["weight"], weights.get("bias"))

    def lm_head(self, x):
        """[tokens, vocab], from the normed states, before any soft-cap. The head is widened a piece at a time."""
        step = 1 << 14
        logits = np.empty((len(x), self.head.shape[0]))
        for start in range(0, self.head.shape[0], step):
            logits[:, start : start + step] = x @ self.head.rows(start, start + step).T
        return logits + self.head_bias

    def logits(self, x):
        return softcap(self.lm_head(self.norm(x)), self.config.logit_softcap)


class Layer:
    """One layer's weights, the changes that a patch makes to them, and a record of what its modules give.

    `changes` has, by module name, (u, v) for a linear map whose matrix gains u v^T, and for a norm what its scale gains.
    """

    def __init__(self, model, i, weights, changes):
        self.model, self.config, self.family = model, model.config, model.family
        self.window, self.rope = model.config.windows[i], model.config.ropes[i]
        self.weights, self.changes, self.record = weights, changes, {}

    def matrix(self, name):
        """[out, in]."""
        stored = self.weights[name + ".weight"]
        return stored.T if self.family.transposed else stored

    def linear(self, x, name):
        y = x @ self.matrix(name).T
        if name + ".bias" in self.weights:
            y = y + self.weights[name + ".bias"]
        if name in self.changes:
            u, v = self.changes[name]
            y = y + np.outer(x @ v, u)  # (u v^T) x = u (v . x), for every token
        self.record[name] = y
        return y

    def norm(self, x, name):
        """The norm of that name over as many coordinates as it has; x itself where there is no such norm."""
        if name is None:
            return x
        weight = self.weights[name + ".weight"]
        parts = x.reshape(len(x), -1, weight.size)  # one, or one a head
        y = norm(self.model, parts, weight, self.weights.get(name + ".bias"), self.changes.get(name, 0.0))
        self.record[name] = y.reshape(x.shape)
        return self.record[name]


def n(u, eps):
    """RMSNorm without its scale: n(u) = u / sqrt(mean(u^2) + eps)."""
    return u / np.sqrt(np.mean(u * u, axis=-1, keepdims=True) + eps)


def norm(model, u, weight, bias=None, change=0.0):
    """The family's norm over the last axis. LayerNorm is RMSNorm of what deviates from the mean, plus a bias."""
    kind, eps = model.family.norm, model.config.norm_eps
    if kind == "layer":
        return n(u - np.mean(u, axis=-1, keepdims=True), eps) * (weight + change) + bias
    m = 1.0 + weight if kind == "rms_1_plus_w" else weight
    return n(u, eps) * (m + change)


def gelu_tanh(x):
    return 0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3)))


def gelu_erf(x):
    return 0.5 * x * (1.0 + np.vectorize(math.erf, otypes=[np.float64])(x / np.sqrt(2.0)))


def silu(x):
    return x / (1.0 + np.exp(-x))


ACTIVATIONS = {"gelu": gelu_erf, "gelu_new": gelu_tanh, "gelu_pytorch_tanh": gelu_tanh, "silu": silu}


def activation(config, x):
    if config.activation not in ACTIVATIONS:
        raise SystemExit(f"activation {config.activation} is none of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[config.activation](x)


def softmax(scores):
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def softcap(x, cap):
    return x if cap is None else cap * np.tanh(x / cap)


def visible(positions, window, blocks):
    """[query, key]: key j is seen by query i when j <= i or both are of one block of image tokens and, with a window,
    i - window < j. `blocks` numbers them by position, 0 for text; it may end before the positions do."""
    i, j = np.asarray(positions)[:, None], np.asarray(positions)[None, :]
    block = np.array([blocks[position] if position < len(blocks) else 0 for position in positions])
    seen = (j <= i) | (block[:, None] == block) & (block > 0)
    return seen if window is None else seen & (j > i - window)


def project(layer, a):
    """q, k and v, each [tokens, its heads * head_dim]."""
    c, f = layer.config, layer.family
    if f.fused is None:
        return [layer.linear(a, name) for name in f.qkv]
    fused = layer.linear(a, *f.qkv)
    if f.fused == "concatenated":
        return np.split(fused, 3, axis=-1)
    group = c.num_attention_heads // c.num_key_value_heads
    parts = fused.reshape(len(a), c.num_key_value_heads, group + 2, c.head_dim)
    return [part.reshape(len(a), -1) for part in (parts[:, :, :-2], parts[:, :, -2], parts[:, :, -1])]


def attention(layer, a, positions):
    """[tokens, hidden], no residual. The tokens of a, at their absolute positions, see each other and nothing else."""
    c, f = layer.config, layer.family
    q, k, v = project(layer, a)
    q, k = layer.norm(q, f.q_norm), layer.norm(k, f.k_norm)
    q, k, v = (x.reshape(len(a), -1, c.head_dim) for x in (q, k, v))
    if layer.rope:
        q, k = layer.rope(q, positions), layer.rope(k, positions)
        layer.record[f.attention + ".q_rope"] = q.reshape(len(a), -1)
        layer.record[f.attention + ".k_rope"] = k.reshape(len(a), -1)

    mask = np.where(visible(positions, layer.window, layer.model.blocks), 0.0, -np.inf)
    group = c.num_attention_heads // c.num_key_value_heads  # query heads per key/value head
    heads = []
    for head in range(c.num_attention_heads):
        scores = q[:, head] @ k[:, head // group].T * c.attention_scale
        heads.append(softmax(softcap(scores, c.attention_softcap) + mask) @ v[:, head // group])
    mixed = np.concatenate(heads, axis=-1)
    layer.record[f.attention + ".mixed"] = mixed
    return layer.norm(layer.linear(mixed, f.attention_output), f.post_attention_norm)


def before_inner(layer, x, positions):
    """r, which the branch is added to, and z, which f sees."""
    f = layer.family
    a = layer.norm(x, f.attention_norm)
    r = x + attention(layer, a, positions)
    if f.parallel:
        z = layer.norm(x, f.inner_norm) if f.inner_norm else a
    else:
        layer.record["residual_mid"] = r
        z = layer.norm(r, f.inner_norm)
    return r, z


@dataclasses.dataclass
class Hidden:
    """What f gives to one last linear map: h [rows, ffn] of the tokens `rows`, each with its gate.

    Without experts there is one of these, of all tokens, and all gates are 1.
    """

    down: str
    rows: np.ndarray
    gates: np.ndarray
    h: np.ndarray


def mlp_inner(layer, z, within=""):
    """act(W_gate z) * (W_up z), or act(W_up z) where there is no gate."""
    f = layer.family
    up = layer.linear(z, within + f.up)
    act = activation(layer.config, layer.linear(z, within + f.gate) if f.gate else up)
    layer.record[within + f.act] = act
    if not f.gate:
        return act
    product = (within or "mlp.") + "product"
    layer.record[product] = act * up
    return layer.record[product]


def route(layer, z):
    """The experts of every token, likeliest first, and their gates: softmax over all experts, then the top k, then
    divided by their sum."""
    p = softmax(layer.linear(z, layer.family.router))
    chosen = np.argsort(-p, axis=-1, kind="stable")[:, : layer.config.num_experts_per_tok]
    gates = np.take_along_axis(p, chosen, axis=-1)
    gates = gates / gates.sum(axis=-1, keepdims=True)
    layer.record[layer.family.router.removesuffix("gate") + "top_k_weights"] = gates
    return chosen, gates


def inner(layer, z):
    """f: a list of Hidden."""
    f = layer.family
    if not f.router:
        return [Hidden(f.down, np.arange(len(z)), np.ones(len(z)), mlp_inner(layer, z))]
    chosen, gates = route(layer, z)
    hidden = []
    for expert in range(layer.matrix(f.router).shape[0]):
        rows, slots = np.nonzero(chosen == expert)
        if len(rows):
            within = f"{f.expert}.{expert}."
            h = mlp_inner(layer, z[rows], within)
            hidden.append(Hidden(within + f.down, rows, gates[rows, slots], h))
    return hidden


def outer(layer, hidden, tokens):
    """g: the last linear map, or the gated sum of the active experts', then the norm where there is one."""
    f = layer.family
    d = np.zeros((tokens, layer.config.hidden_size))
    for part in hidden:
        d[part.rows] += part.gates[:, None] * layer.linear(part.h, part.down)
    if f.router:
        layer.record[f.router.removesuffix(".gate")] = d
    return layer.norm(d, f.outer_norm)


def block(layer, x, positions):
    """T(C, x)."""
    r, z = before_inner(layer, x, positions)
    layer.record["output"] = r + outer(layer, inner(layer, z), len(x))
    return layer.record["output"]


def forward(model, ids, positions=None, patches=None, record=None):
    """The states after the last layer, [tokens, hidden].

    Positions are absolute and default to 0, 1, 2, ...; `patches` has the changes of every layer; `record`, where given,
    receives every intermediate under its Hugging Face module path.
    """
    positions = np.arange(len(ids)) if positions is None else np.asarray(positions)
    x = model.embed(ids, positions, record)
    for i in range(model.config.num_hidden_layers):
        layer = model.layer(i, patches[i] if patches else None)
        x = block(layer, x, positions)
        if record is not None:
            path = f"{model.family.base}.{model.family.layers}.{i}"
            record[path] = layer.record.pop("output")
            record.update({f"{path}.{name}": array for name, array in layer.record.items()})
    return x


def trace(model, ids):
    """Every named intermediate of a forward pass, the last norm and the head included."""
    record = {}
    x = model.norm(forward(model, ids, record=record))
    record[f"{model.family.base}.{model.family.final_norm}"] = x
    record["lm_head"] = model.lm_head(x)
    if model.config.logit_softcap is not None:
        record["logits"] = softcap(record["lm_head"], model.config.logit_softcap)
    return record
