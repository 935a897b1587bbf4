//! Tensor names: many spellings in files, one in this crate.

/// The name of the text model's tensor that a file calls `name`, as its `…ForCausalLM` spells it, or
/// `None` for a tensor of the vision part. Names of no known form stay as they are.
///
/// | in files | here |
/// |---|---|
/// | `model.layers.0.…`, `lm_head.weight` | the same |
/// | `language_model.model.layers.0.…` | `model.layers.0.…` |
/// | `model.language_model.layers.0.…` | `model.layers.0.…` |
/// | `language_model.lm_head.weight` | `lm_head.weight` |
/// | `layers.0.…`, `embed_tokens.weight`, `norm.weight` | with `model.` before them |
/// | `h.0.…`, `wte.weight`, `wpe.weight`, `ln_f.weight` | with `transformer.` before them |
/// | `vision_tower.…`, `multi_modal_projector.…`, also after `model.` | ignored |
pub(super) fn canonical(name: &str) -> Option<String> {
    let mut rest = name;
    while let Some(inner) = ["model.", "language_model."]
        .iter()
        .find_map(|prefix| rest.strip_prefix(prefix))
    {
        rest = inner;
    }
    let begins = |parts: &[&str]| parts.iter().any(|part| rest.starts_with(part));
    if begins(&["vision_tower.", "vision_model.", "multi_modal_projector."]) {
        None
    } else if begins(&["lm_head."]) {
        Some(rest.into())
    } else if begins(&["layers.", "embed_tokens.", "norm.", "final_layernorm."]) {
        Some(format!("model.{rest}"))
    } else if begins(&["h.", "wte.", "wpe.", "ln_f.", "word_embeddings."]) {
        Some(format!("transformer.{rest}"))
    } else {
        Some(name.into())
    }
}

#[cfg(test)]
mod tests {
    use super::canonical;

    #[test]
    fn every_spelling_has_one_canonical_name() {
        for (file, here) in [
            (
                "model.layers.3.mlp.up_proj.weight",
                Some("model.layers.3.mlp.up_proj.weight"),
            ),
            (
                "language_model.model.layers.3.mlp.up_proj.weight",
                Some("model.layers.3.mlp.up_proj.weight"),
            ),
            (
                "model.language_model.layers.3.mlp.up_proj.weight",
                Some("model.layers.3.mlp.up_proj.weight"),
            ),
            (
                "layers.3.mlp.up_proj.weight",
                Some("model.layers.3.mlp.up_proj.weight"),
            ),
            ("embed_tokens.weight", Some("model.embed_tokens.weight")),
            (
                "language_model.model.embed_tokens.weight",
                Some("model.embed_tokens.weight"),
            ),
            ("model.norm.weight", Some("model.norm.weight")),
            ("norm.weight", Some("model.norm.weight")),
            ("lm_head.weight", Some("lm_head.weight")),
            ("language_model.lm_head.weight", Some("lm_head.weight")),
            (
                "vision_tower.vision_model.embeddings.position_embedding.weight",
                None,
            ),
            ("model.vision_tower.vision_model.head.weight", None),
            ("model.multi_modal_projector.mm_soft_emb_norm.weight", None),
            ("multi_modal_projector.mm_input_projection_weight", None),
            (
                "h.0.attn.c_attn.weight",
                Some("transformer.h.0.attn.c_attn.weight"),
            ),
            (
                "transformer.h.0.ln_1.bias",
                Some("transformer.h.0.ln_1.bias"),
            ),
            ("wpe.weight", Some("transformer.wpe.weight")),
            (
                "model.final_layernorm.bias",
                Some("model.final_layernorm.bias"),
            ),
            ("something.else", Some("something.else")),
            (
                "base_model.model.model.norm.weight",
                Some("base_model.model.model.norm.weight"),
            ),
        ] {
            assert_eq!(canonical(file).as_deref(), here, "{file}");
        }
    }
}
