//! What the kit is made of: small checkpoints, each for one thing that engines get wrong.

/// A checkpoint and the tokens that it is given.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// The name of its folder.
    pub name: &'static str,
    /// What it is for.
    pub feature: &'static str,
    /// How many tokens: no more than the window, where the window is not what the case is for.
    pub tokens: usize,
    /// The vocabulary's size.
    pub(super) vocab_size: u32,
    /// The picture among the tokens, where there is one.
    pub(super) picture: Option<Shown>,
    /// The checkpoint's files.
    pub(super) files: &'static [(&'static str, &'static [u8])],
}

/// A picture that stands behind the first token of a case.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shown {
    pub(super) png: &'static [u8],
    /// The tokens before, of and behind it, and how many are of it.
    before: u32,
    image: u32,
    behind: u32,
    count: usize,
}

impl Shown {
    fn ids(self) -> impl Iterator<Item = u32> {
        let of_it = std::iter::repeat_n(self.image, self.count);
        let before = std::iter::once(self.before);
        before.chain(of_it).chain([self.behind])
    }
}

impl Case {
    /// The token ids: the one that begins a sequence, those of a picture, then all over the vocabulary.
    pub fn ids(&self) -> Vec<u32> {
        let of_picture: Vec<_> = self.picture.iter().flat_map(|shown| shown.ids()).collect();
        let rest = (1..).map(|i| (i * i * 7 + 3) % self.vocab_size);
        let rest = rest.filter(|id| !of_picture.contains(id));
        let ids = std::iter::once(2).chain(of_picture.iter().copied());
        ids.chain(rest).take(self.tokens).collect()
    }
}

macro_rules! files {
    ($folder:literal: $($name:literal),*) => {
        &[$(($name, include_bytes!(concat!("../../reference/", $folder, "/", $name)))),*]
    };
}

/// All cases.
pub const CASES: [Case; 27] = [
    Case {
        name: "all-global",
        feature: "norms, RoPE in halves, GeLU, residuals; two shards",
        tokens: 40,
        vocab_size: 101,
        picture: None,
        files: files!("checkpoints/all-global": "config.json", "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors", "model.safetensors.index.json"),
    },
    Case {
        name: "window-3",
        feature: "a window of 3, full layers at odd places",
        tokens: 40,
        vocab_size: 101,
        picture: None,
        files: files!("checkpoints/window-3": "config.json", "model.safetensors"),
    },
    Case {
        name: "window-1",
        feature: "a window of 1: a token sees itself",
        tokens: 40,
        vocab_size: 101,
        picture: None,
        files: files!("checkpoints/window-1": "config.json", "model.safetensors"),
    },
    Case {
        name: "tiny",
        feature: "a trained model, a window of 8, grouped queries",
        tokens: 100,
        vocab_size: 765,
        picture: None,
        files: files!("tiny": "config.json", "model.safetensors"),
    },
    Case {
        name: "rope-factor-8",
        feature: "linear RoPE scaling on full layers alone",
        tokens: 8,
        vocab_size: 101,
        picture: None,
        files: files!("checkpoints/rope-factor-8": "config.json", "model.safetensors"),
    },
    Case {
        name: "grouped-queries",
        feature: "three queries a key; query_pre_attn_scalar is not head_dim; F16",
        tokens: 6,
        vocab_size: 101,
        picture: None,
        files: files!("checkpoints/grouped-queries": "config.json", "model.safetensors"),
    },
    Case {
        name: "untied-head",
        feature: "lm_head.weight of its own; default RoPE bases; BF16",
        tokens: 5,
        vocab_size: 101,
        picture: None,
        files: files!("checkpoints/untied-head": "config.json", "model.safetensors"),
    },
    Case {
        name: "odd-sizes",
        feature: "sizes that are no multiples of anything; an ε of its own; F64",
        tokens: 5,
        vocab_size: 103,
        picture: None,
        files: files!("checkpoints/odd-sizes": "config.json", "model.safetensors"),
    },
    Case {
        name: "multimodal",
        feature: "text_config nested, other tensors beside; RoPE scaling, new spelling",
        tokens: 7,
        vocab_size: 101,
        picture: None,
        files: files!("checkpoints/multimodal": "config.json", "model.safetensors"),
    },
    Case {
        name: "llama-2",
        feature: "Llama: SiLU, norms that round before they scale, a head of its own; F16, two shards",
        tokens: 40,
        vocab_size: 101,
        picture: None,
        files: files!("checkpoints/llama-2": "config.json", "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors", "model.safetensors.index.json"),
    },
    Case {
        name: "llama-3",
        feature: "llama3 RoPE scaling, a head of the embedding",
        tokens: 40,
        vocab_size: 101,
        picture: None,
        files: files!("checkpoints/llama-3": "config.json", "model.safetensors"),
    },
    Case {
        name: "llama-biases",
        feature: "biases of every map; linear RoPE scaling; head_dim is not hidden_size / heads; F64",
        tokens: 40,
        vocab_size: 53,
        picture: None,
        files: files!("checkpoints/llama-biases": "config.json", "model.safetensors"),
    },
    Case {
        name: "mistral",
        feature: "a window in every layer; head_dim is not hidden_size / heads",
        tokens: 24,
        vocab_size: 101,
        picture: None,
        files: files!("checkpoints/mistral": "config.json", "model.safetensors"),
    },
    Case {
        name: "mixtral",
        feature: "experts: two of four, their gates divided by their sum",
        tokens: 24,
        vocab_size: 101,
        picture: None,
        files: files!("checkpoints/mixtral": "config.json", "model.safetensors"),
    },
    Case {
        name: "qwen2",
        feature: "biases of q, k and v; a window in the upper layers",
        tokens: 24,
        vocab_size: 101,
        picture: None,
        files: files!("checkpoints/qwen2": "config.json", "model.safetensors"),
    },
    Case {
        name: "qwen3",
        feature: "norms of q and k by head; yarn RoPE scaling",
        tokens: 24,
        vocab_size: 101,
        picture: None,
        files: files!("checkpoints/qwen3": "config.json", "model.safetensors"),
    },
    Case {
        name: "olmo2",
        feature: "norms behind the parts and none before; norms of q and k over all heads",
        tokens: 24,
        vocab_size: 101,
        picture: None,
        files: files!("checkpoints/olmo2": "config.json", "model.safetensors"),
    },
    Case {
        name: "gemma",
        feature: "Gemma 1: one key head, no norms behind the parts",
        tokens: 24,
        vocab_size: 101,
        picture: None,
        files: files!("checkpoints/gemma": "config.json", "model.safetensors"),
    },
    Case {
        name: "gemma2",
        feature: "Gemma 2: scores and logits are soft-capped, every other layer slides",
        tokens: 24,
        vocab_size: 101,
        picture: None,
        files: files!("checkpoints/gemma2": "config.json", "model.safetensors"),
    },
    Case {
        name: "gemma3-bias",
        feature: "Gemma 3 with attention_bias",
        tokens: 24,
        vocab_size: 101,
        picture: None,
        files: files!("checkpoints/gemma3-bias": "config.json", "model.safetensors"),
    },
    Case {
        name: "falcon-7b",
        feature: "parallel branches with one norm; fused q, k and v with one key head",
        tokens: 24,
        vocab_size: 101,
        picture: None,
        files: files!("checkpoints/falcon-7b": "config.json", "model.safetensors"),
    },
    Case {
        name: "falcon-40b",
        feature: "parallel branches with a norm each; fused q, k and v by group",
        tokens: 24,
        vocab_size: 101,
        picture: None,
        files: files!("checkpoints/falcon-40b": "config.json", "model.safetensors"),
    },
    Case {
        name: "falcon-rw",
        feature: "Falcon with biases, one branch after the other",
        tokens: 24,
        vocab_size: 101,
        picture: None,
        files: files!("checkpoints/falcon-rw": "config.json", "model.safetensors"),
    },
    Case {
        name: "gpt2",
        feature: "learned positions, LayerNorm, weights stored [in, out]",
        tokens: 24,
        vocab_size: 101,
        picture: None,
        files: files!("checkpoints/gpt2": "config.json", "model.safetensors"),
    },
    Case {
        name: "gptj",
        feature: "RoPE in neighbours, on a part of each head; a head with a bias",
        tokens: 24,
        vocab_size: 101,
        picture: None,
        files: files!("checkpoints/gptj": "config.json", "model.safetensors"),
    },
    Case {
        name: "phi",
        feature: "RoPE in halves, on a part of each head; parallel branches with one norm",
        tokens: 24,
        vocab_size: 101,
        picture: None,
        files: files!("checkpoints/phi": "config.json", "model.safetensors"),
    },
    Case {
        name: "tiny-vision",
        feature: "a picture: SigLIP, pooling, image tokens that see each other, more than a window; trained",
        tokens: 40,
        vocab_size: 502,
        picture: Some(Shown {
            png: include_bytes!("../../reference/tiny-vision/examples/00.png"),
            before: 6,
            image: 8,
            behind: 7,
            count: 16,
        }),
        files: files!("tiny-vision": "config.json", "model.safetensors", "preprocessor_config.json"),
    },
];
