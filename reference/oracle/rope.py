"""Rotary position embeddings and their scalings: default, linear, llama3, yarn and dynamic."""

import numpy as np


class Rope:
    """Turns the first `dims` coordinates of every head, paired in "halves" or with their "neighbours"."""

    def __init__(self, dims, pairing, parameters, max_position_embeddings):
        self.dims, self.pairing, self.parameters = dims, pairing, parameters
        self.max_position_embeddings = max_position_embeddings
        self.theta = float(parameters["rope_theta"])
        self.kind = parameters.get("rope_type", parameters.get("type", "default"))
        if self.kind not in SCALINGS:
            raise SystemExit(f"rope_type {self.kind} is none of {', '.join(SCALINGS)}")
        # Where RoPE was trained to; only scaled kinds say.
        self.original = parameters.get("original_max_position_embeddings", max_position_embeddings)

    def base_frequencies(self, theta):
        """One a pair: theta^(-2c / dims)."""
        half = self.dims // 2
        return theta ** (-np.arange(half, dtype=np.float64) / half)

    def __call__(self, x, positions):
        """x [tokens, heads, head_dim], turned by the tokens' positions."""
        frequencies, magnitude = SCALINGS[self.kind](self, max(positions) + 1)
        angle = np.outer(positions, frequencies)[:, None, :]
        cos, sin = np.cos(angle) * magnitude, np.sin(angle) * magnitude
        turned, passed = x[..., : self.dims], x[..., self.dims :]
        if self.pairing == "halves":
            first, second = np.split(turned, 2, axis=-1)
        else:
            first, second = turned[..., 0::2], turned[..., 1::2]
        pairs = first * cos - second * sin, second * cos + first * sin
        if self.pairing == "halves":
            turned = np.concatenate(pairs, axis=-1)
        else:
            turned = np.stack(pairs, axis=-1).reshape(turned.shape)
        return np.concatenate([turned, passed], axis=-1)


# Each returns the frequencies and the magnitude of sines and cosines, for a sequence of `length` positions.


def default(rope, length):
    return rope.base_frequencies(rope.theta), 1.0


def linear(rope, length):
    return rope.base_frequencies(rope.theta) / float(rope.parameters["factor"]), 1.0


def llama3(rope, length):
    """A frequency that turns at least `high` times within the original length is kept, one that turns less than `low`
    times is divided, and between them they blend."""
    p = rope.parameters
    low, high = p["low_freq_factor"], p["high_freq_factor"]
    frequencies = rope.base_frequencies(rope.theta)
    turns = rope.original * frequencies / (2 * np.pi)
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return (1 - kept) * frequencies / p["factor"] + kept * frequencies, 1.0


def yarn(rope, length):
    """arXiv 2309.00071: pairs up to the one that turns beta_fast times within the original length are kept, those from
    beta_slow times on are divided, and between them they blend, pair by pair."""
    p = rope.parameters
    factor = p.get("factor") or rope.max_position_embeddings / rope.original

    def pair_of(turns):
        return rope.dims * np.log(rope.original / (turns * 2 * np.pi)) / (2 * np.log(rope.theta))

    first, last = pair_of(p.get("beta_fast") or 32), pair_of(p.get("beta_slow") or 1)
    if p.get("truncate", True):
        first, last = np.floor(first), np.ceil(last)
    first, last = max(first, 0), min(last, rope.dims - 1)
    divided = np.clip((np.arange(rope.dims // 2) - first) / (last - first or 0.001), 0, 1)
    frequencies = rope.base_frequencies(rope.theta)

    def magnitude(weight):
        return 1.0 if factor <= 1 else 0.1 * weight * np.log(factor) + 1.0

    scale = p.get("attention_factor")
    if scale is None:
        both = p.get("mscale") and p.get("mscale_all_dim")
        scale = magnitude(p["mscale"]) / magnitude(p["mscale_all_dim"]) if both else magnitude(1)
    return divided * frequencies / factor + (1 - divided) * frequencies, scale


def dynamic(rope, length):
    """The base grows with the sequence once it is longer than max_position_embeddings."""
    factor = rope.parameters["factor"]
    stretch = factor * max(length / rope.max_position_embeddings, 1) - (factor - 1)
    return rope.base_frequencies(rope.theta * stretch ** (rope.dims / (rope.dims - 2))), 1.0


SCALINGS = {"default": default, "linear": linear, "llama3": llama3, "yarn": yarn, "dynamic": dynamic}
