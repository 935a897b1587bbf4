"""Algorithm 1: the patch of one token, layer by layer, by Theorem 1 where there is a post-norm and by Theorem 5 elsewhere."""

import dataclasses

import numpy as np

from .model import before_inner, forward, inner, n, outer


@dataclasses.dataclass
class Patch:
    """One layer's changes by module name, those of f and those of g: see Layer."""

    inner: dict
    outer: dict

    def changes(self):
        return self.inner | self.outer

    def without_inner(self):
        return dataclasses.replace(self, inner={})

    def without_outer(self):
        return dataclasses.replace(self, outer={})


def nonzero(value, what):
    if np.any(value == 0.0):
        raise ArithmeticError(f"no patch: {what} is zero")
    return value


def solve_inner(layer, contextual, z, z_ctx):
    """Lemmas 6 and 7: every first linear map that the contextual pass ran gains W (z_C - z) z^T / |z|^2.

    A router is one, so the same experts run. In parallel (Lemma 12) z_C = z, and nothing is to be done.
    """
    f = layer.family
    if f.parallel:
        return {}
    maps = {f.gate, f.up} - {None}
    if f.router:
        maps = {f.router} | {
            part.down.removesuffix(f.down) + name for part in contextual if len(z_ctx) - 1 in part.rows for name in maps
        }
    z, z_ctx = z[-1], z_ctx[-1]
    delta_z = (z_ctx - z) / nonzero(z @ z, "z")
    return {name: (layer.matrix(name) @ delta_z, z) for name in sorted(maps)}


def theorem_1(layer, contextual, r, r_ctx):
    """delta m = (r_C - r) / n(d_C), element by element: Theorem 1 with v for r, and Lemma 10."""
    d_ctx = contextual.record[layer.family.down][-1]
    divisor = nonzero(n(d_ctx, layer.config.norm_eps), "a coordinate of n(d_C)")
    return {layer.family.outer_norm: (r_ctx[-1] - r[-1]) / divisor}


def lemma_9(layer, hidden, r, target):
    """delta W = delta y h^T / |h|^2 with delta y = T(C, x) - r - g(h); of experts (Lemma 11) each that runs takes delta y
    / S, S the sum of their gates."""
    last = len(r) - 1
    delta_y = target - r[-1] - outer(layer, hidden, len(r))[-1]
    running = [(part, row) for part in hidden for row in np.nonzero(part.rows == last)[0]]
    share = delta_y / sum(part.gates[row] for part, row in running)
    changes = {}
    for part, row in running:
        h = part.h[row]
        changes[part.down] = (share / nonzero(h @ h, "h"), h)
    return changes


def solve_layer(model, i, x_ctx, everything, x, kept):
    """The patch of one layer, and both passes' states after it."""
    contextual = model.layer(i)
    r_ctx, z_ctx = before_inner(contextual, x_ctx, everything)
    hidden_ctx = inner(contextual, z_ctx)
    after_ctx = r_ctx + outer(contextual, hidden_ctx, len(x_ctx))

    layer = model.layer(i)
    r, z = before_inner(layer, x, kept)
    patch = Patch(solve_inner(layer, hidden_ctx, z, z_ctx), {})
    layer.changes = patch.changes()
    hidden = inner(layer, z)
    if layer.family.outer_norm:
        patch.outer = theorem_1(layer, contextual, r, r_ctx)
    else:
        patch.outer = lemma_9(layer, hidden, r, after_ctx[-1])
    layer.changes = patch.changes()
    return patch, after_ctx, r + outer(layer, hidden, len(x))


def algorithm_1(model, ids, absorbed):
    """Algorithm 1 (Theorem 2): one Patch per layer, for the last token of `ids`.

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

    x_ctx = model.embed(ids, everything)
    x = x_ctx[kept]
    patches = []
    for i in range(model.config.num_hidden_layers):
        patch, x_ctx, x = solve_layer(model, i, x_ctx, everything, x, kept)
        patches.append(patch)
    return patches, x_ctx[-1:], kept


@dataclasses.dataclass
class Outcome:
    """A solved patch, what it says, and what is said when it or a part of it is missing."""

    patches: list
    logits: np.ndarray  # [vocab], last token, patched reduced pass
    logits_ctx: np.ndarray  # [vocab], last token, contextual pass
    linf: float
    linf_no_patch: float
    linf_without_outer: float
    linf_without_inner: float


def outcome(model, ids, absorbed):
    """Solve for `absorbed`, then run the three negative controls.

    A control drops a part of the solved patch at every layer; the rest is not solved again.
    """
    patches, x_ctx, kept = algorithm_1(model, ids, absorbed)
    logits_ctx = model.logits(x_ctx)[0]

    def reduced(patches):
        """The reduced pass on its own: kept tokens, patched weights, no contextual pass in sight."""
        changes = [patch.changes() for patch in patches] if patches else None
        return model.logits(forward(model, [ids[j] for j in kept], kept, changes)[-1:])[0]

    def distance(patches):
        return linf(reduced(patches), logits_ctx)

    logits = reduced(patches)
    return Outcome(
        patches, logits, logits_ctx, linf(logits, logits_ctx),
        linf_no_patch=distance(None),
        linf_without_outer=distance([patch.without_outer() for patch in patches]),
        linf_without_inner=distance([patch.without_inner() for patch in patches]),
    )


def linf(a, b):
    return np.max(np.abs(a - b))
