//! Tensor names: many spellings in files, one in this crate.

/// The one name of a tensor.
#[derive(Debug, PartialEq)]
pub(super) enum Canonical {
    /// Of the text model, as its `…ForCausalLM` spells it.
    Text(String),
    /// Of the vision part, as transformers 5 calls its modules.
    Vision(String),
}

/// The one name of the tensor that a file calls `name`. Names of no known form stay as they are.
///
/// | in files | here |
/// |---|---|
/// | `model.layers.0.…`, `lm_head.weight` | the same |
/// | `language_model.model.layers.0.…` | `model.layers.0.…` |
/// | `model.language_model.layers.0.…` | `model.layers.0.…` |
/// | `language_model.lm_head.weight` | `lm_head.weight` |
/// | `layers.0.…`, `embed_tokens.weight`, `norm.weight` | with `model.` before them |
/// | `h.0.…`, `wte.weight`, `wpe.weight`, `ln_f.weight` | with `transformer.` before them |
/// | `vision_tower.vision_model.…`, `vision_tower.…`, `vision_model.…`, also after `model.` | `model.vision_tower.…` |
/// | `multi_modal_projector.…`, also after `model.` | `model.multi_modal_projector.…` |
pub(super) fn canonical(name: &str) -> Canonical {
    let mut rest = name;
    while let Some(inner) = ["model.", "language_model."]
        .iter()
        .find_map(|prefix| rest.strip_prefix(prefix))
    {
        rest = inner;
    }
    let begins = |parts: &[&str]| parts.iter().any(|part| rest.starts_with(part));
    if begins(&["vision_tower.", "vision_model."]) {
        let mut module = rest;
        for prefix in ["vision_tower.", "vision_model."] {
            module = module.strip_prefix(prefix).unwrap_or(module);
        }
        Canonical::Vision(format!("model.vision_tower.{module}"))
    } else if begins(&["multi_modal_projector."]) {
        Canonical::Vision(format!("model.{rest}"))
    } else if begins(&["lm_head."]) {
        Canonical::Text(rest.into())
    } else if begins(&["layers.", "embed_tokens.", "norm.", "final_layernorm."]) {
        Canonical::Text(format!("model.{rest}"))
    } else if begins(&["h.", "wte.", "wpe.", "ln_f.", "word_embeddings."]) {
        Canonical::Text(format!("transformer.{rest}"))
    } else {
        Canonical::Text(name.into())
    }
}

#[cfg(test)]
mod tests {
    use super::{Canonical, canonical};

    #[test]
    fn every_spelling_has_one_canonical_name() {
        for (file, here) in [
            (
                "model.layers.3.mlp.up_proj.weight",
                "model.layers.3.mlp.up_proj.weight",
            ),
            (
                "language_model.model.layers.3.mlp.up_proj.weight",
                "model.layers.3.mlp.up_proj.weight",
            ),
            (
                "model.language_model.layers.3.mlp.up_proj.weight",
                "model.layers.3.mlp.up_proj.weight",
            ),
            (
                "layers.3.mlp.up_proj.weight",
                "model.layers.3.mlp.up_proj.weight",
            ),
            ("embed_tokens.weight", "model.embed_tokens.weight"),
            (
                "language_model.model.embed_tokens.weight",
                "model.embed_tokens.weight",
            ),
            ("model.norm.weight", "model.norm.weight"),
            ("norm.weight", "model.norm.weight"),
            ("lm_head.weight", "lm_head.weight"),
            ("language_model.lm_head.weight", "lm_head.weight"),
            (
                "h.0.attn.c_attn.weight",
                "transformer.h.0.attn.c_attn.weight",
            ),
            ("transformer.h.0.ln_1.bias", "transformer.h.0.ln_1.bias"),
            ("wpe.weight", "transformer.wpe.weight"),
            ("model.final_layernorm.bias", "model.final_layernorm.bias"),
            ("something.else", "something.else"),
            (
                "base_model.model.model.norm.weight",
                "base_model.model.model.norm.weight",
            ),
        ] {
            assert_eq!(canonical(file), Canonical::Text(here.into()), "{file}");
        }
    }

    #[test]
    fn every_spelling_of_a_vision_tensor_has_one_canonical_name() {
        let positions = "model.vision_tower.embeddings.position_embedding.weight";
        let norm = "model.multi_modal_projector.mm_soft_emb_norm.weight";
        for (file, here) in [
            (
                "vision_tower.vision_model.embeddings.position_embedding.weight",
                positions,
            ),
            (
                "model.vision_tower.vision_model.embeddings.position_embedding.weight",
                positions,
            ),
            (
                "vision_tower.embeddings.position_embedding.weight",
                positions,
            ),
            (positions, positions),
            (
                "vision_model.embeddings.position_embedding.weight",
                positions,
            ),
            (norm, norm),
            ("multi_modal_projector.mm_soft_emb_norm.weight", norm),
        ] {
            assert_eq!(canonical(file), Canonical::Vision(here.into()), "{file}");
        }
    }
}
