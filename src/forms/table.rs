//! The block forms of the families that the paper names (its Table 1 and the text around it).

use crate::kernels::activation::Activation;

/// Which sum the block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residual {
    /// T = v + g(f(v)), v = x + A(C, x).
    Sequential,
    /// T = x + A(C, x) + g(f(x)).
    Parallel,
}

/// Which norm stands in front of attention and inner function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// None.
    None,
    /// RMSNorm with a scale.
    Rms,
    /// LayerNorm with scale and bias.
    Layer,
}

/// How the outer function is controlled, which also says what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// By its bias (Lemma 8).
    Bias,
    /// By its weight (Lemma 9).
    Weight,
    /// By the scale of its post-norm (Lemma 10); the attention has a post-norm too.
    Scale,
    /// It is a sum of experts, controlled by the active ones' weights (Lemma 11).
    Experts {
        /// How many there are.
        count: usize,
        /// How many fire.
        active: usize,
    },
}

/// The sizes of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Length of x, v and T.
    pub hidden: usize,
    /// Length of h.
    pub intermediate: usize,
    /// Tokens of C.
    pub context: usize,
    /// Tokens of C∖Y, the first of C.
    pub kept: usize,
}

/// What a block is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BlockForm {
    /// The family, and where it has more than one way, which.
    pub name: &'static str,
    /// In sequence or in parallel.
    pub residual: Residual,
    /// The norms in front. A parallel block has one for both branches.
    pub norm: NormKind,
    /// Whether the inner function has a gate.
    pub gated: bool,
    /// The activation.
    pub activation: Activation,
    /// Whether q, k and v have biases.
    pub qkv_bias: bool,
    /// Whether the attention's last map has one.
    pub o_bias: bool,
    /// Whether the maps of f and g have biases.
    pub mlp_bias: bool,
    /// Whether weights are stored `[in, out]`.
    pub transposed: bool,
    /// The outer function.
    pub control: Control,
    /// Small sizes, in about the family's proportions.
    pub sizes: Sizes,
}

const fn sizes(intermediate: usize) -> Sizes {
    Sizes {
        hidden: 24,
        intermediate,
        context: 6,
        kept: 1,
    }
}

const LLAMA: BlockForm = BlockForm {
    name: "Llama",
    residual: Residual::Sequential,
    norm: NormKind::Rms,
    gated: true,
    activation: Activation::Silu,
    qkv_bias: false,
    o_bias: false,
    mlp_bias: false,
    transposed: false,
    control: Control::Weight,
    sizes: sizes(64),
};

const GPT_2: BlockForm = BlockForm {
    name: "GPT-2, by bias",
    norm: NormKind::Layer,
    gated: false,
    activation: Activation::GeluTanh,
    qkv_bias: true,
    o_bias: true,
    mlp_bias: true,
    transposed: true,
    control: Control::Bias,
    sizes: sizes(96),
    ..LLAMA
};

const GPT_J: BlockForm = BlockForm {
    name: "GPT-J, by bias",
    residual: Residual::Parallel,
    qkv_bias: false,
    o_bias: false,
    transposed: false,
    ..GPT_2
};

/// The block forms, one or two of each family.
pub const FORMS: [BlockForm; 10] = [
    BlockForm {
        name: "Gemma",
        activation: Activation::GeluTanh,
        control: Control::Scale,
        sizes: sizes(72),
        ..LLAMA
    },
    LLAMA,
    BlockForm {
        name: "Mistral",
        sizes: sizes(84),
        ..LLAMA
    },
    BlockForm {
        name: "Qwen",
        qkv_bias: true,
        ..LLAMA
    },
    BlockForm {
        name: "Mixtral",
        control: Control::Experts {
            count: 4,
            active: 2,
        },
        sizes: sizes(84),
        ..LLAMA
    },
    BlockForm {
        name: "Falcon",
        activation: Activation::Gelu,
        mlp_bias: false,
        control: Control::Weight,
        ..GPT_J
    },
    GPT_J,
    BlockForm {
        name: "GPT-J, by weight",
        control: Control::Weight,
        ..GPT_J
    },
    GPT_2,
    BlockForm {
        name: "GPT-2, by weight",
        control: Control::Weight,
        ..GPT_2
    },
];
