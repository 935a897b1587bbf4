"""What the blocks of each family are made of, and what its modules are called."""

import dataclasses
from dataclasses import replace


@dataclasses.dataclass(frozen=True)
class Family:
    """Names are Hugging Face's module names; None where a family has no such module. The defaults are Llama's."""

    # Around the layers: `base` comes before the name of every module but lm_head.
    base: str = "model"
    embedding: str = "embed_tokens"
    position_embedding: str = None
    embedding_scaled: bool = False  # by sqrt(hidden_size)
    layers: str = "layers"
    final_norm: str = "norm"

    # Norms: "rms" scales by w, "rms_1_plus_w" by 1 + w, "layer" is LayerNorm.
    norm: str = "rms"
    norm_eps: float = 1e-6
    attention_norm: str = "input_layernorm"
    post_attention_norm: str = None
    inner_norm: str = "post_attention_layernorm"
    outer_norm: str = None

    # Attention. `qkv` is three maps, or one whose rows are "concatenated" (all q, all k, all v) or "grouped" (for each
    # key head its queries, its key, its value).
    attention: str = "self_attn"
    qkv: tuple = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    fused: str = None
    q_norm: str = None
    k_norm: str = None
    attention_output: str = "self_attn.o_proj"
    windows: str = None  # which layers slide, where layer_types does not say: "all", "alternate", "pattern", "last"

    # RoPE pairs coordinate c with c + dims / 2 ("halves") or with its neighbour ("neighbours").
    rope: str = "halves"
    rope_theta: float = 10_000.0
    local_rope: bool = False  # sliding layers have a base of their own

    # The MLP. With a router, `gate`, `up` and `down` are within `expert`.0, `expert`.1, ...
    gate: str = "mlp.gate_proj"
    up: str = "mlp.up_proj"
    act: str = "mlp.act_fn"
    down: str = "mlp.down_proj"
    router: str = None
    expert: str = None
    activation: str = "silu"

    parallel: bool = False  # attention and MLP both see the layer's input
    transposed: bool = False  # matrices are stored [in, out]
    tied_head: bool = False
    defaults: dict = dataclasses.field(default_factory=dict)


# What several families have beside Llama.
QK_NORMS = {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}
NORMS_BEHIND = {
    "post_attention_norm": "post_attention_layernorm",
    "outer_norm": "post_feedforward_layernorm",
}
LAYER_NORM = {"norm": "layer", "norm_eps": 1e-5}
PARALLEL_WITH_ONE_NORM = {"parallel": True, "inner_norm": None}
GPT_NAMES = {"base": "transformer", "layers": "h", "final_norm": "ln_f", "act": "mlp.act"}

LLAMA = Family()
MISTRAL = replace(LLAMA, windows="all", defaults={"sliding_window": 4096})
QWEN2 = replace(LLAMA, windows="last", defaults={"max_window_layers": 28, "sliding_window": 4096})
QWEN3 = replace(QWEN2, **QK_NORMS)
MIXTRAL = replace(
    LLAMA,
    norm_eps=1e-5,
    windows="all",
    rope_theta=1_000_000.0,
    gate="w1",
    up="w3",
    act="act_fn",
    down="w2",
    router="block_sparse_moe.gate",
    expert="block_sparse_moe.experts",
    defaults={"num_experts_per_tok": 2},
)
OLMO2 = replace(
    LLAMA,
    **NORMS_BEHIND,
    **QK_NORMS,
    norm_eps=1e-5,
    attention_norm=None,
    inner_norm=None,
)

GEMMA = replace(
    LLAMA, embedding_scaled=True, norm="rms_1_plus_w", activation="gelu_pytorch_tanh", tied_head=True
)
GEMMA2 = replace(
    GEMMA,
    **NORMS_BEHIND,
    inner_norm="pre_feedforward_layernorm",
    windows="alternate",
    defaults={
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
)
GEMMA3 = replace(
    GEMMA2,
    **QK_NORMS,
    windows="pattern",
    rope_theta=1_000_000.0,
    local_rope=True,
    defaults={  # published multimodal checkpoints leave most of these out
        "hidden_size": 2304,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
    },
)

GPT2 = Family(
    **GPT_NAMES,
    **LAYER_NORM,
    embedding="wte",
    position_embedding="wpe",
    attention_norm="ln_1",
    inner_norm="ln_2",
    attention="attn",
    qkv=("attn.c_attn",),
    fused="concatenated",
    attention_output="attn.c_proj",
    rope=None,
    gate=None,
    up="mlp.c_fc",
    down="mlp.c_proj",
    activation="gelu_new",
    transposed=True,
    tied_head=True,
)
GPTJ = replace(
    GPT2,
    **PARALLEL_WITH_ONE_NORM,
    position_embedding=None,
    qkv=("attn.q_proj", "attn.k_proj", "attn.v_proj"),
    fused=None,
    attention_output="attn.out_proj",
    rope="neighbours",
    up="mlp.fc_in",
    down="mlp.fc_out",
    transposed=False,
    tied_head=False,
    defaults={"rotary_dim": 64},
)
PHI = replace(
    LLAMA,
    **LAYER_NORM,
    **PARALLEL_WITH_ONE_NORM,
    final_norm="final_layernorm",
    attention_output="self_attn.dense",
    gate=None,
    up="mlp.fc1",
    act="mlp.activation_fn",
    down="mlp.fc2",
    activation="gelu_new",
    defaults={"partial_rotary_factor": 0.5},
)

FALCON = Family(  # the 7B
    **GPT_NAMES,
    **LAYER_NORM,
    **PARALLEL_WITH_ONE_NORM,
    embedding="word_embeddings",
    attention="self_attention",
    qkv=("self_attention.query_key_value",),
    fused="grouped",
    attention_output="self_attention.dense",
    gate=None,
    up="mlp.dense_h_to_4h",
    down="mlp.dense_4h_to_h",
    activation="gelu",
    tied_head=True,
)


def falcon(given):
    """One model_type, three arrangements: the 7B's, the 40B's, and in sequence."""
    if given.get("new_decoder_architecture"):
        if (given.get("num_ln_in_parallel_attn") or 2) == 2:
            return replace(FALCON, attention_norm="ln_attn", inner_norm="ln_mlp")
        return FALCON
    # No num_kv_heads here: one key head, or one a query.
    heads = 1 if given.get("multi_query", True) else given["num_attention_heads"]
    family = replace(FALCON, defaults={"num_key_value_heads": heads})
    if given.get("parallel_attn", True):
        return family
    return replace(family, inner_norm="post_attention_layernorm", parallel=False)


FAMILIES = {
    "falcon": FALCON,
    "gemma": GEMMA,
    "gemma2": GEMMA2,
    "gemma3": GEMMA3,
    "gemma3_text": GEMMA3,
    "gpt2": GPT2,
    "gptj": GPTJ,
    "llama": LLAMA,
    "mistral": MISTRAL,
    "mixtral": MIXTRAL,
    "olmo2": OLMO2,
    "phi": PHI,
    "qwen2": QWEN2,
    "qwen3": QWEN3,
}


def family_of(given):
    model_type = given.get("model_type")
    if model_type not in FAMILIES:
        raise SystemExit(f"model_type {model_type} is none of {', '.join(FAMILIES)}")
    return falcon(given) if model_type == "falcon" else FAMILIES[model_type]
