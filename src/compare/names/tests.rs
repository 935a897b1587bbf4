use super::*;

/// The names of a random checkpoint.
fn names(checkpoint: &str) -> Names {
    let folder = format!(
        "{}/reference/checkpoints/{checkpoint}",
        env!("CARGO_MANIFEST_DIR")
    );
    Names::new(&Model::open(&folder).unwrap())
}

fn recognised(names: &Names, theirs: &str) -> Option<String> {
    names.recognise(theirs).map(|known| known.name)
}

#[test]
fn every_spelling_of_a_module_is_ours() {
    let names = names("multimodal");
    for (theirs, ours) in [
        (
            "model.layers.3.mlp.up_proj",
            Some("model.layers.3.mlp.up_proj"),
        ),
        ("language_model.model.layers.3", Some("model.layers.3")),
        (
            "model.language_model.layers.3.residual_mid",
            Some("model.layers.3.residual_mid"),
        ),
        (
            "model.layers.3.self_attn.q_norm.output",
            Some("model.layers.3.self_attn.q_norm"),
        ),
        ("layers.12.mlp.act_fn", Some("model.layers.12.mlp.act_fn")),
        ("embed_tokens", Some("model.embed_tokens")),
        ("language_model.lm_head", Some("lm_head")),
        ("model.lm_head.output", Some("lm_head")),
        ("model.norm", Some("model.norm")),
        ("model.layers.03", None),
        ("model.layers.+3", None),
        ("model.layers.3.mlp", Some("model.layers.3.mlp.down_proj")),
        (
            "model.layers.3.self_attn",
            Some("model.layers.3.self_attn.o_proj"),
        ),
        (
            "model.layers.3.self_attn.0",
            Some("model.layers.3.self_attn.o_proj"),
        ),
        ("model.layers.3.self_attn.1", None),
        ("model.layers.3.0", Some("model.layers.3")),
        ("model.layers.3.output.0", Some("model.layers.3")),
        (
            "model.layers[3].mlp.output",
            Some("model.layers.3.mlp.down_proj"),
        ),
        ("model.layers.3.output[0]", Some("model.layers.3")),
        (
            "model.layers.3.mlp.act_fn_out",
            Some("model.layers.3.mlp.act_fn"),
        ),
        ("module.model.layers.3", Some("model.layers.3")),
        (
            "_orig_mod.model.layers.3.mlp.up_proj",
            Some("model.layers.3.mlp.up_proj"),
        ),
        (
            "model.layers.3._orig_mod.mlp.up_proj",
            Some("model.layers.3.mlp.up_proj"),
        ),
        ("base_model.model.model.layers.3", Some("model.layers.3")),
        ("model.layers.3.input", Some("model.layers.2")),
        ("model.layers.0.input", Some("model.embed_tokens")),
        (
            "model.layers.3.mlp.input",
            Some("model.layers.3.pre_feedforward_layernorm"),
        ),
        (
            "model.layers.3.self_attn.o_proj.input",
            Some("model.layers.3.self_attn.mixed"),
        ),
        (
            "model.layers.3.mlp.down_proj_input",
            Some("model.layers.3.mlp.product"),
        ),
        (
            "model.layers.3.pre_feedforward_layernorm.input.0",
            Some("model.layers.3.residual_mid"),
        ),
        ("lm_head.input", Some("model.norm")),
        ("model.norm.input", Some("model.layers.6")),
        ("hidden_states.0", Some("model.embed_tokens")),
        ("hidden_states.4", Some("model.layers.3")),
        ("hidden_states[4]", Some("model.layers.3")),
        ("hidden_states_7", Some("model.norm")),
        ("hidden_states", None),
        ("logits", Some("lm_head")),
        ("last_hidden_state", Some("model.norm")),
        ("model.layers.3.mlp.up_proj.weight", None),
        ("model.layers", None),
        ("norm.3", None),
        ("", None),
    ] {
        assert_eq!(recognised(&names, theirs).as_deref(), ours, "{theirs}");
    }
}

#[test]
fn modules_of_other_families_are_ours() {
    for (checkpoint, theirs, ours) in [
        (
            "llama-3",
            "model.layers.1.mlp.input",
            "model.layers.1.post_attention_layernorm",
        ),
        ("olmo2", "model.layers.1.self_attn.input", "model.layers.0"),
        (
            "olmo2",
            "model.layers.1.mlp.input",
            "model.layers.1.residual_mid",
        ),
        (
            "mixtral",
            "model.layers.1.mlp.gate.0",
            "model.layers.1.block_sparse_moe.gate",
        ),
        (
            "mixtral",
            "model.layers.1.mlp",
            "model.layers.1.block_sparse_moe",
        ),
        ("gpt2", "h.1.mlp.act", "transformer.h.1.mlp.act_fn"),
        ("gpt2", "transformer.h.0.input", "transformer.drop"),
        ("gpt2", "hidden_states.0", "transformer.drop"),
        ("gpt2", "last_hidden_state", "transformer.ln_f"),
        ("gpt2", "h.1.attn.0", "transformer.h.1.attn.c_proj"),
        ("gptj", "transformer.h.1.mlp.input", "transformer.h.1.ln_1"),
        (
            "phi",
            "model.layers.1.mlp.activation_fn",
            "model.layers.1.mlp.act_fn",
        ),
        (
            "falcon-40b",
            "transformer.h.1.mlp",
            "transformer.h.1.mlp.dense_4h_to_h",
        ),
        ("falcon-40b", "attn_norm-1", "transformer.h.1.ln_mlp"),
        (
            "falcon-7b",
            "attn_norm-1",
            "transformer.h.1.input_layernorm",
        ),
        ("qwen2", "Qcur-1.ADD", "model.layers.1.self_attn.q_proj"),
        (
            "gemma2",
            "blocks.1.hook_mlp_out",
            "model.layers.1.post_feedforward_layernorm",
        ),
        (
            "llama-2",
            "blocks.1.hook_mlp_out",
            "model.layers.1.mlp.down_proj",
        ),
        (
            "gpt2",
            "blocks.1.mlp.hook_post",
            "transformer.h.1.mlp.act_fn",
        ),
    ] {
        let names = names(checkpoint);
        assert_eq!(
            recognised(&names, theirs).as_deref(),
            Some(ours),
            "{checkpoint}: {theirs}"
        );
    }
    // The product before its bias is no point of ours.
    assert_eq!(recognised(&names("qwen2"), "Qcur-1.MUL_MAT"), None);
    // Nor is a tensor of another family.
    assert_eq!(recognised(&names("llama-2"), "transformer.h.1.ln_1"), None);
}

#[test]
fn every_alias_means_the_point_it_claims() {
    for checkpoint in [
        "multimodal",
        "llama-3",
        "gpt2",
        "falcon-40b",
        "mixtral",
        "olmo2",
    ] {
        let names = names(checkpoint);
        let mut theirs = BTreeSet::new();
        for alias in &names.aliases {
            let both = [alias.theirs, &alias.ours].map(Pattern::new);
            assert_eq!(both[0].has_layer(), both[1].has_layer(), "{alias:?}");
            let [engines, ours] = both.map(|pattern| pattern.with(Some(1)));
            assert!(names.point(&ours).is_some(), "{checkpoint}: {alias:?}");
            assert_eq!(
                recognised(&names, &engines),
                Some(ours),
                "{checkpoint}: {alias:?}"
            );
            assert!(theirs.insert(alias.theirs), "{alias:?} is there twice");
        }
    }
    let names = names("multimodal");
    // q before or after RoPE: nobody can know.
    assert_eq!(names.recognise("Qcur-3"), None);
    // Before the norm's weight.
    assert_eq!(names.recognise("blocks.3.ln1.hook_normalized"), None);
}

#[test]
fn llama_cpp_has_the_pairs_of_llama_side_by_side() {
    let interleaved = |checkpoint, name| names(checkpoint).recognise(name).unwrap().interleaved;
    assert!(interleaved("llama-3", "Qcur-1.MUL_MAT"));
    assert!(interleaved("mixtral", "Kcur-1.ROPE"));
    assert!(!interleaved("llama-3", "Vcur-1"));
    assert!(!interleaved("qwen2", "Kcur-1.ROPE"));
    assert!(!interleaved("llama-3", "model.layers.1.self_attn.q_proj"));
}

#[test]
fn q_and_k_are_turned() {
    let turned = |checkpoint: &str, point: &str| {
        names(checkpoint).is_turned(&format!("model.layers.1.self_attn.{point}"))
    };
    for point in ["q_proj", "k_proj", "q_norm", "k_norm", "q_rope", "k_rope"] {
        assert!(turned("multimodal", point), "{point}");
    }
    assert!(!turned("multimodal", "v_proj") && !turned("multimodal", "mixed"));
    assert!(names("falcon-7b").is_turned("transformer.h.0.self_attention.q_rope"));
    assert!(!names("falcon-7b").is_turned("transformer.h.0.self_attention.query_key_value"));
}

#[test]
fn the_stream_before_a_block_is_a_second_choice() {
    let names = names("multimodal");
    let at = |name: &str| names.recognise(name).map(|k| (k.name, k.second)).unwrap();
    assert_eq!(
        at("blocks.0.hook_resid_pre"),
        ("model.embed_tokens".into(), true)
    );
    assert_eq!(
        at("blocks.4.hook_resid_pre"),
        ("model.layers.3".into(), true)
    );
    assert_eq!(
        at("blocks.3.hook_resid_post"),
        ("model.layers.3".into(), false)
    );
}
