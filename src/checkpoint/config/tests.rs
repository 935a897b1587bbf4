use super::*;

fn parse(json: &str) -> Result<Config> {
    Config::parse(Path::new("m/config.json"), json.as_bytes())
}

/// A config that says nothing but what it is and `fields`.
fn flat(fields: &str) -> String {
    let comma = if fields.is_empty() { "" } else { "," };
    format!(r#"{{"model_type": "gemma3_text"{comma} {fields}}}"#)
}

fn message(fields: &str) -> String {
    parse(&flat(fields)).unwrap_err().to_string()
}

const GEMMA_270M: &str = r#"{
    "architectures": ["Gemma3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
    "attn_logit_softcapping": null, "bos_token_id": 2, "eos_token_id": 1,
    "final_logit_softcapping": null, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 640, "intermediate_size": 2048, "max_position_embeddings": 32768,
    "model_type": "gemma3_text", "num_attention_heads": 4, "num_hidden_layers": 18,
    "num_key_value_heads": 1, "pad_token_id": 0, "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000.0, "rope_scaling": null,
    "rope_theta": 1000000.0, "sliding_window": 512, "_sliding_window_pattern": 6,
    "torch_dtype": "bfloat16", "use_bidirectional_attention": false, "vocab_size": 262144}"#;

#[test]
fn old_spelling_of_the_270m() {
    let config = parse(GEMMA_270M).unwrap();
    assert_eq!(config.vocab_size, 262_144);
    assert_eq!((config.hidden_size, config.intermediate_size), (640, 2048));
    assert_eq!(
        (config.num_attention_heads, config.num_key_value_heads),
        (4, 1)
    );
    assert_eq!((config.head_dim, config.num_hidden_layers), (256, 18));
    assert_eq!(
        (config.sliding_window, config.max_position_embeddings),
        (512, 32_768)
    );
    assert_eq!(
        (config.rms_norm_eps, config.query_pre_attn_scalar),
        (1e-6, 256.0)
    );
    assert_eq!(
        config.rope(LayerKind::Full),
        Rope {
            theta: 1e6,
            factor: 1.0
        }
    );
    assert_eq!(
        config.rope(LayerKind::Sliding),
        Rope {
            theta: 1e4,
            factor: 1.0
        }
    );
    assert_eq!(config.bos_token_id, 2);
    assert_eq!(config.eos_token_ids, [1]);
    assert!(config.tie_word_embeddings);
    let full = |(i, kind): (usize, &LayerKind)| (*kind == LayerKind::Full).then_some(i);
    let full: Vec<_> = config
        .layer_types
        .iter()
        .enumerate()
        .filter_map(full)
        .collect();
    assert_eq!(full, [5, 11, 17]);
}

#[test]
fn new_spelling_says_the_same() {
    let kinds = |i| {
        if i % 6 == 5 {
            "\"full_attention\""
        } else {
            "\"sliding_attention\""
        }
    };
    let kinds: Vec<_> = (0..18).map(kinds).collect();
    let new = GEMMA_270M
        .replace(
            r#""rope_local_base_freq": 10000.0, "rope_scaling": null,"#,
            "",
        )
        .replace(
            r#""rope_theta": 1000000.0"#,
            r#""rope_parameters": {
                "full_attention": {"rope_theta": 1000000.0, "rope_type": "default"},
                "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"}}"#,
        )
        .replace(
            r#""_sliding_window_pattern": 6"#,
            &format!(r#""layer_types": [{}]"#, kinds.join(",")),
        );
    assert_ne!(new, GEMMA_270M);
    assert_eq!(parse(&new).unwrap(), parse(GEMMA_270M).unwrap());
}

#[test]
fn what_is_left_out_has_hugging_faces_defaults() {
    let config = parse(&flat("")).unwrap();
    assert_eq!(config.vocab_size, 262_208);
    assert_eq!((config.hidden_size, config.intermediate_size), (2304, 9216));
    assert_eq!(
        (config.num_attention_heads, config.num_key_value_heads),
        (8, 4)
    );
    assert_eq!((config.head_dim, config.num_hidden_layers), (256, 26));
    assert_eq!(
        (config.sliding_window, config.max_position_embeddings),
        (4096, 131_072)
    );
    assert_eq!(
        (config.rms_norm_eps, config.query_pre_attn_scalar),
        (1e-6, 256.0)
    );
    assert_eq!(
        config.rope_full,
        Rope {
            theta: 1e6,
            factor: 1.0
        }
    );
    assert_eq!(
        config.rope_sliding,
        Rope {
            theta: 1e4,
            factor: 1.0
        }
    );
    assert_eq!(config.bos_token_id, 2);
    assert_eq!(config.eos_token_ids, [1]);
    assert_eq!(config.layer_types.len(), 26);
    assert!(config.tie_word_embeddings);
}

#[test]
fn the_text_part_of_the_published_4b() {
    let config = parse(
        r#"{"architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 255999,
            "eos_token_id": [1, 106], "image_token_index": 262144, "model_type": "gemma3",
            "text_config": {"hidden_size": 2560, "intermediate_size": 10240,
                "model_type": "gemma3_text", "num_hidden_layers": 34,
                "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024},
            "vision_config": {"hidden_size": 1152, "num_hidden_layers": 27}}"#,
    )
    .unwrap();
    assert_eq!((config.hidden_size, config.num_hidden_layers), (2560, 34));
    assert_eq!((config.vocab_size, config.sliding_window), (262_208, 1024));
    assert_eq!(
        config.rope_full,
        Rope {
            theta: 1e6,
            factor: 8.0
        }
    );
    assert_eq!(
        config.rope_sliding,
        Rope {
            theta: 1e4,
            factor: 1.0
        }
    );
    assert_eq!(config.eos_token_ids, [1, 106]);
}

#[test]
fn rotary_parameters_combine_as_in_hugging_face() {
    let full = |fields: &str| parse(&flat(fields)).unwrap().rope_full;
    let rope = |theta, factor| Rope { theta, factor };
    assert_eq!(
        full(r#""rope_scaling": {"type": "linear", "factor": 4}"#),
        rope(1e6, 4.0)
    );
    assert_eq!(
        full(r#""rope_scaling": {"type": "default", "factor": 4}"#),
        rope(1e6, 1.0)
    );
    assert_eq!(
        full(
            r#""rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8}}, "rope_theta": 5e5"#
        ),
        rope(5e5, 8.0)
    );
    assert_eq!(
        full(
            r#""rope_parameters": {"full_attention": {"rope_theta": 7}}, "rope_scaling": {"rope_type": "linear", "factor": 2}"#
        ),
        rope(7.0, 2.0)
    );
    assert_eq!(
        full(r#""rope_parameters": {"sliding_attention": null}"#),
        rope(1e6, 1.0)
    );
}

#[test]
fn layers_by_pattern() {
    let kinds = |fields: &str| parse(&flat(fields)).unwrap().layer_types;
    use LayerKind::{Full, Sliding};
    assert_eq!(
        kinds(r#""num_hidden_layers": 3, "sliding_window_pattern": 1"#),
        [Full; 3]
    );
    assert_eq!(
        kinds(r#""num_hidden_layers": 3, "_sliding_window_pattern": 2"#),
        [Sliding, Full, Sliding]
    );
    assert_eq!(
        kinds(r#""num_hidden_layers": 1, "layer_types": ["full_attention"]"#),
        [Full]
    );
}

#[test]
fn no_end_where_it_is_null() {
    let config = parse(&flat(r#""eos_token_id": null"#)).unwrap();
    assert!(config.eos_token_ids.is_empty());
}

#[test]
fn other_architectures_are_refused() {
    let supported = "supported are Gemma3ForCausalLM (gemma3_text) and the text part of Gemma3ForConditionalGeneration (gemma3)";
    for (json, found) in [
        (
            r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}"#,
            "llama",
        ),
        (
            r#"{"architectures": ["Gemma2ForCausalLM"]}"#,
            "Gemma2ForCausalLM",
        ),
        (r#"{"model_type": "gemma3n"}"#, "gemma3n"),
        (r#"{"model_type": "a\nb"}"#, "a\\nb"),
    ] {
        assert_eq!(
            parse(json).unwrap_err().to_string(),
            format!("m/config.json: cannot run {found}; {supported}")
        );
    }
    assert_eq!(
        parse("{}").unwrap_err().to_string(),
        "m/config.json names neither architectures nor model_type; is it a model's config.json?"
    );
}

#[test]
fn what_is_not_json_is_refused() {
    assert_eq!(
        parse("{\"model_type\": ").unwrap_err().to_string(),
        "m/config.json is not valid JSON: EOF while parsing a value at line 1 column 15; fetch the file again"
    );
    assert_eq!(
        parse("[]").unwrap_err().to_string(),
        "m/config.json: the top level must be an object, not a list"
    );
    let deep = "[".repeat(1_000_000);
    assert!(matches!(parse(&deep), Err(Error::NotJson { .. })));
    assert!(matches!(
        Config::parse(Path::new("x"), &[0xff, 0xfe, 0]),
        Err(Error::NotJson { .. })
    ));
}

#[test]
fn wrong_types_name_the_field() {
    for (fields, rest) in [
        (
            r#""hidden_size": "640""#,
            r#"hidden_size must be a whole number, not "640""#,
        ),
        (
            r#""hidden_size": 640.5"#,
            "hidden_size must be a whole number, not 640.5",
        ),
        (
            r#""hidden_size": -640"#,
            "hidden_size must be a whole number, not -640",
        ),
        (
            r#""rms_norm_eps": []"#,
            "rms_norm_eps must be a number, not a list",
        ),
        (
            r#""layer_types": [1]"#,
            "layer_types must be a list of strings, not a list",
        ),
        (
            r#""tie_word_embeddings": 1"#,
            "tie_word_embeddings must be true or false, not 1",
        ),
        (
            r#""eos_token_id": {}"#,
            "eos_token_id must be a token id or a list of them, not an object",
        ),
        (
            r#""eos_token_id": [1, 1e9]"#,
            "eos_token_id must be a token id or a list of them, not a list",
        ),
        (
            r#""rope_scaling": 8"#,
            "rope_scaling must be an object, not 8",
        ),
        (
            r#""text_config": 8"#,
            "text_config must be an object, not 8",
        ),
        (
            r#""text_config": {"head_dim": true}"#,
            "text_config.head_dim must be a whole number, not true",
        ),
        (
            r#""rope_parameters": {"full_attention": {"rope_theta": "x"}}"#,
            r#"rope_parameters.full_attention.rope_theta must be a number, not "x""#,
        ),
    ] {
        assert_eq!(message(fields), format!("m/config.json: {rest}"));
    }
}

#[test]
fn absurd_values_are_refused() {
    for (fields, rest) in [
        (
            r#""hidden_size": 0"#,
            "hidden_size is 0, but must be from 1 to 1048576",
        ),
        (
            r#""hidden_size": 18446744073709551615"#,
            "hidden_size is 18446744073709551615, but must be from 1 to 1048576",
        ),
        (
            r#""intermediate_size": 0"#,
            "intermediate_size is 0, but must be from 1 to 1048576",
        ),
        (
            r#""vocab_size": 0"#,
            "vocab_size is 0, but must be from 1 to 16777216",
        ),
        (
            r#""num_hidden_layers": 0"#,
            "num_hidden_layers is 0, but must be from 1 to 4096",
        ),
        (
            r#""num_attention_heads": 0"#,
            "num_attention_heads is 0, but must be from 1 to 4096",
        ),
        (
            r#""num_key_value_heads": 0"#,
            "num_key_value_heads is 0, but must be from 1 to 4096",
        ),
        (
            r#""num_key_value_heads": 3"#,
            "num_key_value_heads is 3, but must be a divisor of num_attention_heads, 8",
        ),
        (
            r#""head_dim": 0"#,
            "head_dim is 0, but must be from 2 to 16384",
        ),
        (r#""head_dim": 7"#, "head_dim is 7, but must be even"),
        (
            r#""sliding_window": 0"#,
            "sliding_window is 0, but must be from 1 to 1073741824",
        ),
        (
            r#""max_position_embeddings": 0"#,
            "max_position_embeddings is 0, but must be from 1 to 1073741824",
        ),
        (
            r#""sliding_window_pattern": 0"#,
            "sliding_window_pattern is 0, but must be from 1 to 4096",
        ),
        (
            r#""rms_norm_eps": -1e-6"#,
            "rms_norm_eps is -0.000001, but must be from 0 to 1",
        ),
        (
            r#""query_pre_attn_scalar": 0"#,
            "query_pre_attn_scalar is 0, but must be from 0.000001 to 1000000000",
        ),
        (
            r#""rope_theta": 0"#,
            "rope_theta is 0, but must be from 1 to 1000000000000000",
        ),
        (
            r#""rope_local_base_freq": 0.5"#,
            "rope_local_base_freq is 0.5, but must be from 1 to 1000000000000000",
        ),
        (
            r#""rope_scaling": {"rope_type": "linear", "factor": 0}"#,
            "rope_scaling.factor is 0, but must be from 0.000001 to 1000000",
        ),
        (
            r#""rope_scaling": {"rope_type": "linear"}"#,
            "rope_scaling.factor is left out, but must be a number",
        ),
        (
            r#""layer_types": ["full_attention"]"#,
            "layer_types is a list of 1, but must be one entry for each of the 26 hidden layers",
        ),
        (
            r#""vocab_size": 2"#,
            "bos_token_id is 2, but must be from 0 to 1",
        ),
        (
            r#""vocab_size": 64, "eos_token_id": [1, 106]"#,
            "eos_token_id is 106, but must be below vocab_size, 64",
        ),
    ] {
        assert_eq!(message(fields), format!("m/config.json: {rest}"));
    }
    assert!(matches!(
        parse(&flat(r#""rms_norm_eps": 1e999"#)),
        Err(Error::NotJson { .. })
    ));
}

#[test]
fn what_nothing_is_computed_with_is_not_looked_at() {
    for value in ["262208", "-1", "\"none\""] {
        assert!(parse(&flat(&format!(r#""pad_token_id": {value}"#))).is_ok());
    }
}

#[test]
fn settings_of_other_models_are_refused() {
    for (fields, rest) in [
        (
            r#""hidden_activation": "silu""#,
            "hidden_activation is silu; this crate computes only gelu_pytorch_tanh",
        ),
        (
            r#""attention_bias": true"#,
            "attention_bias is true; this crate computes only false",
        ),
        (
            r#""use_bidirectional_attention": true"#,
            "use_bidirectional_attention is true; this crate computes only false",
        ),
        (
            r#""attn_logit_softcapping": 50.0"#,
            "attn_logit_softcapping is 50.0; this crate computes only models without soft-capping (null)",
        ),
        (
            r#""text_config": {"final_logit_softcapping": 30.0}"#,
            "text_config.final_logit_softcapping is 30.0; this crate computes only models without soft-capping (null)",
        ),
        (
            r#""rope_scaling": {"rope_type": "yarn", "factor": 8.0}"#,
            "rope_scaling.rope_type is yarn; this crate computes only default and linear",
        ),
        (
            r#""rope_scaling": {"factor": 8.0}"#,
            "rope_scaling.rope_type is left out beside a factor; this crate computes only default and linear",
        ),
        (
            r#""rope_parameters": {"rope_theta": 10000.0}"#,
            "rope_parameters.rope_theta is one of its keys; this crate computes only full_attention and sliding_attention, each with its own parameters",
        ),
        (
            r#""num_hidden_layers": 1, "layer_types": ["chunked_attention"]"#,
            "layer_types is chunked_attention; this crate computes only full_attention and sliding_attention",
        ),
        (
            r#""quantization_config": {"quant_method": "bitsandbytes"}"#,
            "quantization_config is an object; this crate computes only unquantised weights; take the checkpoint in bf16",
        ),
    ] {
        assert_eq!(message(fields), format!("m/config.json: {rest}"));
    }
}

/// What the fuzz target does, on every prefix of and some bytes changed in a real file.
#[test]
fn damaged_files_never_panic() {
    let json = GEMMA_270M.as_bytes();
    for i in 0..json.len() {
        let _ = Config::parse(Path::new("x"), &json[..i]);
        for byte in [b'0', b'9', b'-', b'"', b'[', b'}', 0, 0xff] {
            let mut damaged = json.to_vec();
            damaged[i] = byte;
            let _ = Config::parse(Path::new("x"), &damaged);
        }
    }
}
