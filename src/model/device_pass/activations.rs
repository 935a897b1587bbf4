//! How much memory the activations of a pass take on a device.

use crate::cuda::scores_bytes;
use crate::model::inner::Maps;
use crate::model::session::BATCH_LOGIT_ROWS;
use crate::model::{Block, Model};
use crate::tensor::Element;

/// Arrays that are in use at once at most; each has 256 bytes at least.
const ARRAYS: usize = 64;

impl Model {
    /// The most bytes that activations take on a device while `tokens` go through the layers together, the last of which sees
    /// `keys`, under no patch and unrecorded. The weights and the [cache](Self::cache_bytes) are beside them, and memory that is
    /// kept to be used again, 512 MiB at most.
    pub fn activation_bytes<E: Element>(&self, tokens: usize, keys: usize) -> usize {
        let of_block = |block: &Block| {
            let heads = block.attention.form.heads;
            let attention = attention_bytes::<E>(block) * tokens;
            let attention = attention + scores_bytes::<E>(heads, tokens, keys);
            attention.max(inner_and_outer_bytes::<E>(block) * tokens)
        };
        let blocks = self.layers().iter().map(of_block).max();
        let head = self.decoder().head.weight();
        let logits = 2 * (head.cols() + head.rows()) * size_of::<E>();
        let most = blocks
            .unwrap_or_default()
            .max(logits * tokens.min(BATCH_LOGIT_ROWS));
        most + most / 8 + ARRAYS * 256
    }
}

/// Bytes of one token while attention is computed: residuals, norms and branches; q, k and v as their maps, their norms and the
/// rotation give them; cos and sin for two kinds of layers.
fn attention_bytes<E: Element>(block: &Block) -> usize {
    let form = &block.attention.form;
    let qkv = (form.heads + 2 * form.kv_heads) * form.head_dim;
    let rounded = 6 * hidden(block) + 3 * qkv;
    rounded * size_of::<E>() + 2 * form.head_dim * size_of::<E::Acc>()
}

/// Bytes of one token while the rest is: residuals, norms and branches, and what each chosen expert says; gate, up and activation of
/// one expert, and the product of each.
fn inner_and_outer_bytes<E: Element>(block: &Block) -> usize {
    let maps = block.inner.first_maps();
    let width = maps.iter().map(|map| map.weight.rows()).max();
    let chosen = match &block.inner.maps {
        Maps::Experts(experts) => experts.top_k,
        _ => 1,
    };
    let rounded = (5 + chosen) * hidden(block) + (3 + chosen) * width.unwrap_or_default();
    rounded * size_of::<E>()
}

fn hidden(block: &Block) -> usize {
    block.attention.out.weight.rows()
}
