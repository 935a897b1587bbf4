"""config.json in its old and its new spellings, with Hugging Face's defaults."""

import json
from pathlib import Path

from .families import family_of
from .rope import Rope

SPELLINGS = {
    "hidden_size": ("hidden_size", "n_embd"),
    "num_hidden_layers": ("num_hidden_layers", "n_layer"),
    "num_attention_heads": ("num_attention_heads", "n_head"),
    "num_key_value_heads": ("num_key_value_heads", "num_kv_heads"),
    "norm_eps": ("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps"),
    # Gemma's hidden_act is an older field, which hidden_activation overrules.
    "activation": ("hidden_activation", "hidden_act", "activation_function", "activation"),
    "max_position_embeddings": ("max_position_embeddings", "n_positions"),
}
REFUSED = ("alibi", "use_bidirectional_attention", "qk_layernorm", "scale_attn_by_inverse_layer_idx")


class Config:
    def __init__(self, path):
        top = json.loads(Path(path).read_text())
        given = top.get("text_config", top)  # Gemma3ForConditionalGeneration nests the text model
        given = {"model_type": top.get("model_type")} | given
        self.family = family = family_of(given)
        self.refuse(given)

        def value(field, default=None):
            """The family's default is for a field that is absent; one that is null has none, or `default`."""
            said = [given[name] for name in SPELLINGS.get(field, (field,)) if name in given]
            if not said:
                return family.defaults.get(field, default)
            return next((value for value in said if value is not None), default)

        self.hidden_size = value("hidden_size")
        self.num_hidden_layers = value("num_hidden_layers")
        self.num_attention_heads = value("num_attention_heads")
        self.num_key_value_heads = value("num_key_value_heads", self.num_attention_heads)
        self.head_dim = value("head_dim", self.hidden_size // self.num_attention_heads)
        self.attention_scale = float(value("query_pre_attn_scalar", self.head_dim)) ** -0.5
        self.attention_softcap = value("attn_logit_softcapping")
        self.logit_softcap = value("final_logit_softcapping")
        self.norm_eps = value("norm_eps", family.norm_eps)
        self.tied_head = value("tie_word_embeddings", family.tied_head)
        self.num_experts_per_tok = value("num_experts_per_tok")
        self.image_token = top.get("image_token_index", 262_144)  # where there are pictures
        self.activation = value("activation", family.activation)
        if given["model_type"] == "gemma" and self.activation == "gelu":
            self.activation = "gelu_pytorch_tanh"  # what the first configurations of Gemma meant

        sliding = self.sliding_layers(value)
        self.windows = [value("sliding_window") if slides else None for slides in sliding]
        self.ropes = [self.rope(given, value, slides) for slides in sliding]

    @staticmethod
    def refuse(given):
        """What is not computed here."""
        for field in REFUSED:
            if given.get(field):
                raise SystemExit(f"{field} is not computed here")
        if not given.get("scale_attn_weights", True):
            raise SystemExit("scale_attn_weights = false is not computed here")
        if given["model_type"].startswith("gemma3") and given.get("attn_logit_softcapping"):
            raise SystemExit("attn_logit_softcapping: transformers reads it for Gemma 3 and applies it nowhere")

    def sliding_layers(self, value):
        """For every layer, whether it slides."""
        layers = range(self.num_hidden_layers)
        if value("layer_types"):
            if len(value("layer_types")) != len(layers):
                raise SystemExit("layer_types does not have num_hidden_layers entries")
            return [kind == "sliding_attention" for kind in value("layer_types")]
        match self.family.windows:
            case "all":
                return [True for _ in layers]
            case "alternate":
                return [i % 2 == 0 for i in layers]
            case "pattern":  # every sliding_window_pattern-th layer is global
                return [(i + 1) % value("sliding_window_pattern") != 0 for i in layers]
            case "last":
                return [bool(value("use_sliding_window")) and i >= value("max_window_layers") for i in layers]
            case None:
                return [False for _ in layers]

    def rope(self, given, value, slides):
        """New: rope_parameters, one set or one a layer type. Old: rope_theta and rope_scaling; where sliding layers have
        a base of their own, it is rope_local_base_freq, and they are never scaled."""
        family = self.family
        if family.rope is None:
            return None
        parameters = given.get("rope_parameters") or {}
        if not parameters.keys().isdisjoint(("full_attention", "sliding_attention")):
            parameters = parameters.get("sliding_attention" if slides else "full_attention")
        parameters = dict(parameters or {})
        if slides and family.local_rope:
            parameters.setdefault("rope_theta", value("rope_local_base_freq", 10_000.0))
        else:
            parameters.update(given.get("rope_scaling") or {})
            parameters.setdefault("rope_theta", value("rope_theta", family.rope_theta))
        share = parameters.get("partial_rotary_factor", value("partial_rotary_factor", 1.0))
        dims = value("rotary_dim", int(self.head_dim * share))
        return Rope(dims, family.rope, parameters, value("max_position_embeddings"))
