"""What Gemma 3 makes of a picture: SigLIP's tower, average pooling, a norm and a projection to the width of the text."""

import json
from pathlib import Path

import numpy as np

from .files import read_checkpoint
from .model import ACTIVATIONS, n, softmax

BASE = "model."
DEFAULTS = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "num_channels": 3, "image_size": 224,
    "patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6,
}


class Vision:
    """The vision part of a checkpoint, its weights in float64, and a record of what its modules gave."""

    def __init__(self, directory):
        top = json.loads((Path(directory) / "config.json").read_text())
        self.config = DEFAULTS | top["vision_config"]
        self.tokens_per_side = int(top.get("mm_tokens_per_image", 256) ** 0.5)
        self.record = {}
        self.weights = {}
        for name, tensor in read_checkpoint(Path(directory)).items():
            for part in ("vision_tower.", "multi_modal_projector."):
                before, found, after = name.partition(part)
                if found and before in ("", "model."):
                    self.weights[part + after.removeprefix("vision_model.")] = tensor.f64()

    def keep(self, name, y):
        """y [images, tokens, width], which is recorded as [images * tokens, width]."""
        self.record[BASE + name] = y.reshape(-1, y.shape[-1])
        return y

    def linear(self, x, name):
        return self.keep(name, x @ self.weights[name + ".weight"].T + self.weights[name + ".bias"])

    def layer_norm(self, x, name):
        scaled = n(x - x.mean(axis=-1, keepdims=True), self.config["layer_norm_eps"]) * self.weights[name + ".weight"]
        return self.keep(name, scaled + self.weights[name + ".bias"])

    def embeddings(self, pixels):
        """[images, patches, hidden] of [images, channels, height, width]. What is left of a whole patch is not seen."""
        name = "vision_tower.embeddings"
        side = self.config["patch_size"]
        across = self.config["image_size"] // side
        images, channels = pixels.shape[:2]
        whole = pixels[:, :, : across * side, : across * side]
        patches = whole.reshape(images, channels, across, side, across, side).transpose(0, 2, 4, 1, 3, 5)
        patches = patches.reshape(images, across * across, -1)
        kernels = self.weights[name + ".patch_embedding.weight"]
        x = patches @ kernels.reshape(len(kernels), -1).T + self.weights[name + ".patch_embedding.bias"]
        self.keep(name + ".patch_embedding", x)
        places = self.keep(name + ".position_embedding", self.weights[name + ".position_embedding.weight"])
        return self.keep(name, x + places)

    def attention(self, x, name):
        """Every patch sees every patch of its image."""
        q, k, v = (self.linear(x, f"{name}.{which}_proj") for which in "qkv")
        heads = self.config["num_attention_heads"]
        q, k, v = (np.stack(np.split(y, heads, axis=-1), axis=1) for y in (q, k, v))
        scores = q @ k.swapaxes(-1, -2) * q.shape[-1] ** -0.5
        mixed = np.concatenate(list(np.moveaxis(softmax(scores) @ v, 1, 0)), axis=-1)
        self.keep(name + ".mixed", mixed)
        return self.linear(mixed, name + ".out_proj")

    def block(self, x, name):
        x = x + self.attention(self.layer_norm(x, name + ".layer_norm1"), name + ".self_attn")
        self.keep(name + ".residual_mid", x)
        h = self.linear(self.layer_norm(x, name + ".layer_norm2"), name + ".mlp.fc1")
        h = self.keep(name + ".mlp.activation_fn", ACTIVATIONS[self.config["hidden_act"]](h))
        return self.keep(name, x + self.linear(h, name + ".mlp.fc2"))

    def tower(self, pixels):
        """[images, patches, hidden], `last_hidden_state`."""
        self.record["pixel_values"] = pixels.reshape(-1, pixels.shape[-1])
        x = self.embeddings(pixels)
        for i in range(self.config["num_hidden_layers"]):
            x = self.block(x, f"vision_tower.encoder.layers.{i}")
        return self.layer_norm(x, "vision_tower.post_layernorm")

    def project(self, x):
        """[images, tokens, hidden of the text], what replaces the embeddings of an image's tokens.

        Average pooling over squares; rows and columns of patches that fill no square are not seen.
        """
        name = "multi_modal_projector"
        images, patches, width = x.shape
        across, kept = int(patches**0.5), self.tokens_per_side
        side = across // kept
        squares = x.reshape(images, across, across, width)[:, : kept * side, : kept * side]
        pooled = squares.reshape(images, kept, side, kept, side, width).mean(axis=(2, 4))
        pooled = self.keep(name + ".avg_pool", pooled.reshape(images, kept * kept, width))
        scale = 1.0 + self.weights[name + ".mm_soft_emb_norm.weight"]
        normed = self.keep(name + ".mm_soft_emb_norm", n(pooled, self.config["layer_norm_eps"]) * scale)
        return self.keep(name, normed @ self.weights[name + ".mm_input_projection_weight"])
