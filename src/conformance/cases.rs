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
    /// The checkpoint's files.
    pub(super) files: &'static [(&'static str, &'static [u8])],
}

impl Case {
    /// The token ids: the one that begins a sequence, then all over the vocabulary.
    pub fn ids(&self) -> Vec<u32> {
        let rest = (1..self.tokens as u32).map(|i| (i * i * 7 + 3) % self.vocab_size);
        std::iter::once(2).chain(rest).collect()
    }
}

macro_rules! files {
    ($folder:literal: $($name:literal),*) => {
        &[$(($name, include_bytes!(concat!("../../reference/", $folder, "/", $name)))),*]
    };
}

/// All cases.
pub const CASES: [Case; 9] = [
    Case {
        name: "all-global",
        feature: "norms, RoPE in halves, GeLU, residuals; two shards",
        tokens: 40,
        vocab_size: 101,
        files: files!("checkpoints/all-global": "config.json", "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors", "model.safetensors.index.json"),
    },
    Case {
        name: "window-3",
        feature: "a window of 3, full layers at odd places",
        tokens: 40,
        vocab_size: 101,
        files: files!("checkpoints/window-3": "config.json", "model.safetensors"),
    },
    Case {
        name: "window-1",
        feature: "a window of 1: a token sees itself",
        tokens: 40,
        vocab_size: 101,
        files: files!("checkpoints/window-1": "config.json", "model.safetensors"),
    },
    Case {
        name: "tiny",
        feature: "a trained model, a window of 8, grouped queries",
        tokens: 100,
        vocab_size: 765,
        files: files!("tiny": "config.json", "model.safetensors"),
    },
    Case {
        name: "rope-factor-8",
        feature: "linear RoPE scaling on full layers alone",
        tokens: 8,
        vocab_size: 101,
        files: files!("checkpoints/rope-factor-8": "config.json", "model.safetensors"),
    },
    Case {
        name: "grouped-queries",
        feature: "three queries a key; query_pre_attn_scalar is not head_dim; F16",
        tokens: 6,
        vocab_size: 101,
        files: files!("checkpoints/grouped-queries": "config.json", "model.safetensors"),
    },
    Case {
        name: "untied-head",
        feature: "lm_head.weight of its own; default RoPE bases; BF16",
        tokens: 5,
        vocab_size: 101,
        files: files!("checkpoints/untied-head": "config.json", "model.safetensors"),
    },
    Case {
        name: "odd-sizes",
        feature: "sizes that are no multiples of anything; an ε of its own; F64",
        tokens: 5,
        vocab_size: 103,
        files: files!("checkpoints/odd-sizes": "config.json", "model.safetensors"),
    },
    Case {
        name: "multimodal",
        feature: "text_config nested, other tensors beside; RoPE scaling, new spelling",
        tokens: 7,
        vocab_size: 101,
        files: files!("checkpoints/multimodal": "config.json", "model.safetensors"),
    },
];
