#!/usr/bin/env python3
"""Record what Hugging Face transformers computes at every point that `context-patch trace` names.

    pip install -r reference/requirements.txt
    python3 reference/hf_trace.py models/gemma-3-270m --prompt "The old clock" --output hf.safetensors
    python3 reference/hf_trace.py reference/tiny-vision --image FILE --prompt "<start_of_image>What colour is the circle?
    A:" --output hf.safetensors

Eager attention, on the CPU, all tokens in one pass. The tensors have the names and shapes of `context-patch trace`,
[tokens, width], in F32 (exact for bf16 too); `--last N` keeps the rows of the last N tokens. The metadata has `model`,
`dtype`, `engine` and `ids`, a JSON list of all tokens that were run.

Pictures are read and preprocessed with Pillow; `--ids` has their image tokens already. What the vision part makes of
them is [patches, width] or [image tokens, width], one picture after another, and `pixel_values` [pictures * 3 * height,
width]; `--last` leaves them whole.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoConfig, AutoImageProcessor, AutoModelForCausalLM, AutoProcessor, AutoTokenizer
from transformers.image_utils import load_image

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
ATTENTIONS = ("self_attn", "attn", "self_attention")
OUTPUT_MAPS = ("o_proj", "dense", "c_proj", "out_proj")
LAST_MAPS = ("down_proj", "c_proj", "fc_out", "fc2", "dense_4h_to_h")
FINAL_NORMS = ("norm", "ln_f", "final_layernorm")
# Modules whose point has another name.
RENAMED = {"mlp.act": "mlp.act_fn", "mlp.activation_fn": "mlp.act_fn"}
MIXTRAL = {"mlp.gate": "block_sparse_moe.gate", "mlp": "block_sparse_moe"}
SIGLIP = {}


class Recorder:
    """Rows of the last tokens by name, all of them where `last` is None; an object that hooks hand their tensors to."""

    def __init__(self, last):
        self.last, self.tensors = last, {}

    def record(self, name, tensor):
        """A tensor [1, tokens, width], or without the batch's axis."""
        if name in self.tensors:
            raise SystemExit(f"hf_trace.py: {name} was computed twice")
        tensor = tensor.reshape(-1, tensor.shape[-1])
        first = max(len(tensor) - self.last, 0) if self.last else 0
        # A copy: Falcon adds to its MLP's output in place.
        self.tensors[name] = tensor[first:].detach().float().clone().contiguous()

    def record_heads(self, name, tensor):
        """A tensor [1, heads, tokens, head_dim]."""
        self.record(name, tensor.transpose(1, 2).flatten(2))

    def record_image(self, name, tensor):
        """A tensor [pictures, width, height of the picture, width of the picture]."""
        self.record(name, tensor.flatten(2).transpose(1, 2))

    def output(self, module, name, record=None):
        """Records what a module gives, the first where it gives several."""
        record = record or self.record
        module.register_forward_hook(lambda _, __, out: record(name, out[0] if isinstance(out, tuple) else out))

    def input(self, module, name):
        """Records what a module is given."""

        def given(_, positional, named):
            self.record(name, positional[0] if positional else named["hidden_states"])

        module.register_forward_pre_hook(given, with_kwargs=True)


def part(module, names):
    """The first of `names` that a module has, and what it is there."""
    return next((name, getattr(module, name)) for name in names if hasattr(module, name))


def hook(model, recorder):
    """Sets the hooks on a model of transformers."""
    text = model.get_decoder()
    gpt = hasattr(text, "h")
    base, layers = ("transformer", text.h) if gpt else ("model", text.layers)
    path = f"{base}.h" if gpt else f"{base}.layers"
    embedding, embed = part(text, ("embed_tokens", "wte", "word_embeddings"))
    recorder.output(embed, f"{base}.{embedding}")
    if hasattr(text, "wpe"):
        recorder.output(text.wpe, f"{base}.wpe")
        recorder.output(text.drop, f"{base}.drop")
    for index, layer in enumerate(layers):
        hook_layer(model, layer, f"{path}.{index}", recorder)
    name, norm = part(text, FINAL_NORMS)
    recorder.output(norm, f"{base}.{name}")


def hook_vision(model, recorder):
    """Sets the hooks on the vision tower and the projector."""
    tower, projector = model.vision_tower, model.multi_modal_projector
    path = "model.vision_tower.embeddings"
    recorder.output(tower.embeddings.patch_embedding, f"{path}.patch_embedding", recorder.record_image)
    recorder.output(tower.embeddings.position_embedding, f"{path}.position_embedding")
    recorder.output(tower.embeddings, path)
    for index, layer in enumerate(tower.encoder.layers):
        hook_layer(tower, layer, f"model.vision_tower.encoder.layers.{index}", recorder)
    recorder.output(tower.post_layernorm, "model.vision_tower.post_layernorm")
    path = "model.multi_modal_projector"
    recorder.output(projector.avg_pool, f"{path}.avg_pool", recorder.record_image)
    recorder.output(projector.mm_soft_emb_norm, f"{path}.mm_soft_emb_norm")
    recorder.output(projector, path)


def hook_layer(model, layer, path, recorder):
    """Sets the hooks on a layer, called `path`."""
    kind = model.config.model_type
    renamed = {"mixtral": MIXTRAL, "siglip_vision_model": SIGLIP}.get(kind, RENAMED)
    name, attention = part(layer, ATTENTIONS)
    # Before the modules inside, whose hooks run first anyway.
    recorder.output(layer, path)
    for module_name, module in layer.named_modules():
        leaf = not any(True for _ in module.children())
        plain = isinstance(module, torch.nn.Dropout) or "rotary" in module_name or "experts" in module_name
        if module_name not in renamed and (not leaf or plain):
            continue
        heads_first = kind.startswith("gemma3") and module_name.endswith(("q_norm", "k_norm"))
        record = recorder.record_heads if heads_first else recorder.record
        recorder.output(module, f"{path}.{renamed.get(module_name, module_name)}", flat(record, heads_first))
    recorder.input(part(attention, OUTPUT_MAPS)[1], f"{path}.{name}.mixed")
    if any(hasattr(layer.mlp, gate) for gate in ("gate_proj", "gate_up_proj")):
        recorder.input(part(layer.mlp, LAST_MAPS)[1], f"{path}.mlp.product")
    middle = after_attention(layer)
    if middle is not None:
        recorder.input(middle, f"{path}.residual_mid")
    hook_rope(attention, f"{path}.{name}", recorder)


def flat(record, heads_first):
    """`record` for a tensor whose heads may have an axis of their own, behind the tokens'."""
    return record if heads_first else lambda name, x: record(name, x.flatten(2) if x.dim() == 4 else x)


def after_attention(layer):
    """The module that is given the sum of x and attention; none in a parallel block."""
    if hasattr(layer, "pre_feedforward_layernorm"):
        return layer.pre_feedforward_layernorm
    if hasattr(layer, "post_feedforward_layernorm"):  # OLMo 2 has no norm in front of the MLP.
        return layer.mlp
    return next((getattr(layer, name) for name in ("post_attention_layernorm", "ln_2", "layer_norm2") if hasattr(layer, name)), None)


def hook_rope(attention, path, recorder):
    """Records q and k as attention gets them, [1, heads, tokens, head_dim] each."""

    def record(q, k):
        # Falcon repeats the key heads before it rotates them.
        keys = getattr(attention, "num_kv_heads", k.shape[1])
        recorder.record_heads(f"{path}.q_rope", q)
        recorder.record_heads(f"{path}.k_rope", k[:, :: k.shape[1] // keys])

    code = sys.modules[type(attention).__module__]
    if hasattr(attention, "_attn"):  # GPT-J
        attend = attention._attn

        def recorded(query, key, *rest, **named):
            record(query, key)
            return attend(query, key, *rest, **named)

        attention._attn = recorded
    elif not hasattr(code, "apply_rotary_pos_emb"):
        return
    elif hasattr(code, "eager_attention_forward"):
        on_call(code, "eager_attention_forward", attention, lambda _, q, k, *__: record(q, k))
    else:  # Falcon attends in its own forward pass.
        on_result(code, "apply_rotary_pos_emb", attention, record)


def on_call(code, function, attention, record):
    """Has `record` see what `function` of a module's code is given for `attention`, its first argument."""
    wrapped = getattr(code, function)

    def recorded(module, *rest, **named):
        if module is attention:
            record(module, *rest)
        return wrapped(module, *rest, **named)

    setattr(code, function, recorded)


def on_result(code, function, attention, record):
    """Has `record` see what `function` gives while `attention` runs."""
    wrapped, running = getattr(code, function), []
    attention.register_forward_pre_hook(lambda *_: running.append(True))
    attention.register_forward_hook(lambda *_: running.clear())

    def recorded(*rest, **named):
        result = wrapped(*rest, **named)
        if running:
            record(*result)
        return result

    setattr(code, function, recorded)


def read_inputs(arguments):
    """What the model is given: ids, those of a text with <bos> before it, and where there are pictures their pixels and
    which tokens stand for them."""
    folder, pictures = arguments.model, [load_image(str(path)) for path in arguments.image]
    if arguments.ids:
        given = {"input_ids": torch.tensor([json.loads(arguments.ids.read_text())])}
        if pictures:
            processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
            given["pixel_values"] = processor(pictures, return_tensors="pt").pixel_values
            image_token = AutoConfig.from_pretrained(folder).image_token_id
            given["token_type_ids"] = (given["input_ids"] == image_token).long()
        return given
    if not pictures:
        return {"input_ids": AutoTokenizer.from_pretrained(folder)(arguments.prompt, return_tensors="pt").input_ids}
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    given = processor(images=[pictures], text=arguments.prompt, return_tensors="pt")
    return {name: given[name] for name in ("input_ids", "pixel_values", "token_type_ids")}


def main():
    parser = argparse.ArgumentParser(description="Record the intermediates of Hugging Face transformers.")
    parser.add_argument("model", type=Path, help="Hugging Face folder")
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--prompt", help="text to run")
    given.add_argument("--ids", type=Path, help="file with a JSON list of token ids to run")
    parser.add_argument("--image", type=Path, action="append", default=[], help="picture in the prompt; repeatable")
    parser.add_argument("--dtype", choices=DTYPES, default="f32")
    parser.add_argument("--last", type=int, help="keep the rows of the last N tokens only")
    parser.add_argument("--output", type=Path, required=True, help="safetensors file to write")
    arguments = parser.parse_args()
    if arguments.last is not None and arguments.last < 1:
        parser.error("--last must be at least 1")
    given = read_inputs(arguments)
    plainly = {"attn_implementation": "eager", "experts_implementation": "eager"}
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=DTYPES[arguments.dtype], **plainly).eval()
    recorder, seen = Recorder(arguments.last), Recorder(None)
    hook(model, recorder)
    if arguments.image:
        hook_vision(model.model, seen)
        recorder.input(model.get_decoder().layers[0], "inputs_embeds")
        seen.record("pixel_values", given["pixel_values"])
    with torch.no_grad():
        logits = model(**given, use_cache=False).logits
    # After their soft-cap, where they have one.
    recorder.record("lm_head", logits)
    metadata = {
        "model": str(arguments.model),
        "dtype": arguments.dtype,
        "engine": f"transformers {transformers.__version__}, torch {torch.__version__}",
        "ids": json.dumps(given["input_ids"][0].tolist()),
    }
    save_file(recorder.tensors | seen.tensors, arguments.output, metadata)


if __name__ == "__main__":
    main()
