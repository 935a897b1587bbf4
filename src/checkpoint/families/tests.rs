use super::*;
use crate::checkpoint::Rope;
use crate::checkpoint::form::ProjectionsForm;

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
    assert_eq!(config.max_position_embeddings, 32_768);
    assert_eq!((config.norm_eps(), config.scaling(0)), (1e-6, 1.0 / 16.0));
    assert_eq!(config.rope(5), Some(Rope::linear(1e6, 1.0)));
    assert_eq!(config.rope(4), Some(Rope::linear(1e4, 1.0)));
    assert_eq!(config.bos_token_id, Some(2));
    assert_eq!(config.eos_token_ids, [1]);
    assert!(config.tie_word_embeddings);
    let windows = (0..18).map(|layer| config.window(layer));
    let expected = |layer| ![5, 11, 17].contains(&layer);
    assert!(windows.eq((0..18).map(|layer| expected(layer).then_some(512))));
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
        (config.window(0), config.max_position_embeddings),
        (Some(4096), 131_072)
    );
    assert_eq!((config.norm_eps(), config.scaling(0)), (1e-6, 1.0 / 16.0));
    assert_eq!(config.rope(5), Some(Rope::linear(1e6, 1.0)));
    assert_eq!(config.rope(0), Some(Rope::linear(1e4, 1.0)));
    assert_eq!(config.bos_token_id, Some(2));
    assert!(config.eos_token_ids.is_empty() && !config.multimodal);
    assert_eq!(config.blocks.len(), 26);
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
    assert_eq!((config.vocab_size, config.window(0)), (262_208, Some(1024)));
    assert_eq!(config.rope(5), Some(Rope::linear(1e6, 8.0)));
    assert_eq!(config.rope(0), Some(Rope::linear(1e4, 1.0)));
    assert_eq!(config.eos_token_ids, [1, 106]);
    assert!(config.multimodal);
}

/// The rotary embedding of the full and the sliding layers.
fn ropes(fields: &str) -> [Rope; 2] {
    let config = parse(&flat(fields)).unwrap();
    [5, 0].map(|layer| config.rope(layer).unwrap())
}

#[test]
fn rotary_parameters_combine_as_in_hugging_face() {
    const USUAL: [Rope; 2] = [Rope::linear(1e6, 1.0), Rope::linear(1e4, 1.0)];
    let full = |theta, factor| [Rope::linear(theta, factor), USUAL[1]];
    for (fields, expected) in [
        ("", USUAL),
        (r#""rope_parameters": null, "rope_scaling": null"#, USUAL),
        (r#""rope_parameters": {}"#, USUAL),
        (r#""rope_parameters": {"sliding_attention": null}"#, USUAL),
        // The old spelling.
        (
            r#""rope_theta": 7, "rope_local_base_freq": 8.5"#,
            [Rope::linear(7.0, 1.0), Rope::linear(8.5, 1.0)],
        ),
        (
            r#""rope_scaling": {"rope_type": "linear", "factor": 4}"#,
            full(1e6, 4.0),
        ),
        (
            r#""rope_scaling": {"rope_type": "linear", "factor": 4, "rope_theta": 9}, "rope_theta": 7"#,
            full(9.0, 4.0),
        ),
        (
            r#""rope_scaling": {"rope_type": "default", "factor": 4}"#,
            USUAL,
        ),
        // Where rope_parameters is left out there is a rope_type, so that the name of old is not looked at, nor a
        // factor without a type.
        (r#""rope_scaling": {"type": "linear", "factor": 4}"#, USUAL),
        (r#""rope_scaling": {"factor": 4}"#, USUAL),
        (
            r#""rope_scaling": {"full_attention": {"rope_type": "linear", "factor": 4}}"#,
            USUAL,
        ),
        // The new one.
        (
            r#""rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8}}, "rope_theta": 5e5"#,
            full(5e5, 8.0),
        ),
        (
            r#""rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2, "rope_theta": 7}}"#,
            [USUAL[0], Rope::linear(7.0, 2.0)],
        ),
        (
            r#""rope_parameters": {"full_attention": {"type": "linear", "factor": 8}}"#,
            full(1e6, 8.0),
        ),
        (
            r#""rope_parameters": {"full_attention": {"type": "linear", "rope_type": "default", "factor": 8}}"#,
            USUAL,
        ),
        (
            r#""rope_parameters": {"full_attention": {"factor": 8}}"#,
            USUAL,
        ),
        (
            r#""rope_parameters": {"full_attention": {"rope_theta": 7}}, "rope_theta": 9"#,
            full(7.0, 1.0),
        ),
        (
            r#""rope_parameters": {"full_attention": {"rope_type": "default", "partial_rotary_factor": 0.5}}"#,
            USUAL,
        ),
        (
            r#""rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 2, "beta_fast": 1, "partial_rotary_factor": 1}}"#,
            full(1e6, 2.0),
        ),
        (
            r#""rope_scaling": {"rope_type": "linear", "factor": 2}, "partial_rotary_factor": null"#,
            full(1e6, 2.0),
        ),
        // Both: rope_scaling is laid over.
        (
            r#""rope_parameters": {"full_attention": {"rope_theta": 7}}, "rope_scaling": {"rope_type": "linear", "factor": 2}"#,
            full(7.0, 2.0),
        ),
        (
            r#""rope_parameters": {"full_attention": {}}, "rope_scaling": {"type": "linear", "factor": 2}"#,
            full(1e6, 2.0),
        ),
        // What stands beside the two kinds is not looked at.
        (
            r#""rope_parameters": {"rope_type": "linear", "factor": 8, "rope_theta": 7}"#,
            USUAL,
        ),
        (
            r#""rope_parameters": {"rope_theta": 9, "chunked_attention": 5, "full_attention": {"rope_theta": 7}}"#,
            full(7.0, 1.0),
        ),
        // True is 1, as in Python.
        (r#""rope_theta": true"#, full(1.0, 1.0)),
        (
            r#""rope_parameters": {"full_attention": {"rope_type": "linear", "factor": true}}"#,
            USUAL,
        ),
    ] {
        assert_eq!(ropes(fields), expected, "{fields}");
    }
}

#[test]
fn rotary_parameters_of_a_kind_without_layers_are_not_looked_at() {
    let rope = |kind: &str, fields: &str| {
        let kind = format!(r#""num_hidden_layers": 1, "layer_types": ["{kind}"]"#);
        parse(&flat(&format!("{kind}, {fields}"))).unwrap().rope(0)
    };
    for fields in [
        r#""rope_parameters": {"full_attention": {"rope_type": "yarn"}}"#,
        r#""rope_theta": null"#,
    ] {
        let sliding = rope("sliding_attention", fields);
        assert_eq!(sliding, Some(Rope::linear(1e4, 1.0)), "{fields}");
    }
    let fields = r#""rope_parameters": {"sliding_attention": {"rope_theta": "x"}}"#;
    let full = rope("full_attention", fields);
    assert_eq!(full, Some(Rope::linear(1e6, 1.0)));
}

#[test]
fn layers_by_pattern() {
    let kinds = |fields: &str| {
        let config = parse(&flat(&format!(r#""num_hidden_layers": 6, {fields}"#))).unwrap();
        let letter = |layer| config.window(layer).map_or('F', |_| 's');
        (0..6).map(letter).collect::<String>()
    };
    for (fields, expected) in [
        (r#""layer_types": null"#, "sssssF"),
        (r#""sliding_window_pattern": 1"#, "FFFFFF"),
        (r#""sliding_window_pattern": 2"#, "sFsFsF"),
        // As Python's % has it.
        (r#""sliding_window_pattern": -2"#, "sFsFsF"),
        (r#""sliding_window_pattern": 2.0"#, "sFsFsF"),
        (r#""sliding_window_pattern": 2.5"#, "ssssFs"),
        (r#""sliding_window_pattern": true"#, "FFFFFF"),
        // The spelling that transformers itself writes, and does not read.
        (r#""_sliding_window_pattern": 2"#, "sssssF"),
        (
            r#""_sliding_window_pattern": 2, "sliding_window_pattern": 3"#,
            "ssFssF",
        ),
        (
            r#""layer_types": ["full_attention", "attention", "sliding_attention", "attention", "sliding_attention", "sliding_attention"], "sliding_window_pattern": null"#,
            "FFsFss",
        ),
    ] {
        assert_eq!(kinds(fields), expected, "{fields}");
    }
}

#[test]
fn ends_are_the_outer_ones_else_the_inner_ones() {
    let ends = |fields: &str| parse(&flat(fields)).unwrap().eos_token_ids;
    let none: [u32; 0] = [];
    assert_eq!(ends(r#""eos_token_id": null"#), none);
    assert_eq!(ends(r#""eos_token_id": []"#), none);
    assert_eq!(ends(r#""eos_token_id": [1, 106]"#), [1, 106]);
    // What no token can be ends nothing.
    assert_eq!(
        ends(r#""vocab_size": 64, "eos_token_id": [1, 106, -1]"#),
        [1]
    );
    assert_eq!(ends(r#""eos_token_id": 18446744073709551616"#), none);
    let ends = |outer: &str, inner: &str| nested(outer, inner).unwrap().eos_token_ids;
    assert_eq!(ends(r#""eos_token_id": 5"#, r#""eos_token_id": 7"#), [5]);
    assert_eq!(ends(r#""eos_token_id": null"#, r#""eos_token_id": 7"#), [7]);
    assert_eq!(ends("", r#""eos_token_id": [7, 8]"#), [7, 8]);
    assert_eq!(ends("", ""), none);
}

/// A multimodal config with these fields outside and inside text_config.
fn nested(outer: &str, inner: &str) -> Result<Config> {
    let comma = if outer.is_empty() { "" } else { "," };
    parse(&format!(
        r#"{{"model_type": "gemma3"{comma} {outer}, "text_config": {{{inner}}}}}"#
    ))
}

#[test]
fn of_the_outer_level_little_counts() {
    let plain = nested("", "").unwrap();
    assert_eq!(parse(r#"{"model_type": "gemma3"}"#).unwrap(), plain);
    assert_eq!(
        parse(r#"{"model_type": "gemma3", "text_config": null}"#).unwrap(),
        plain
    );
    for outer in [
        r#""sliding_window": 1"#,
        r#""sliding_window": null"#,
        r#""vocab_size": "x""#,
        r#""rope_theta": 7.0, "rope_scaling": {"rope_type": "linear", "factor": 4}"#,
        r#""rope_parameters": {"full_attention": {"rope_type": "yarn"}}"#,
        r#""hidden_activation": "silu", "final_logit_softcapping": 1.0"#,
        r#""attention_bias": true, "use_bidirectional_attention": true"#,
        r#""layer_types": ["full_attention"], "bos_token_id": 7"#,
        r#""vision_config": 5, "architectures": ["Gemma3ForCausalLM"]"#,
    ] {
        assert_eq!(nested(outer, "").unwrap(), plain, "{outer}");
    }
    assert_eq!(nested("", r#""model_type": "llama""#).unwrap(), plain);
    let window = nested("", r#""sliding_window": 9"#).unwrap().window(0);
    assert_eq!(window, Some(9));
}

#[test]
fn the_outer_level_says_whether_embeddings_are_tied() {
    let tied = |outer: &str, inner: &str| nested(outer, inner).unwrap().tie_word_embeddings;
    for inner in [
        "",
        r#""tie_word_embeddings": true"#,
        r#""tie_word_embeddings": false"#,
    ] {
        assert!(tied("", inner), "{inner}");
        assert!(tied(r#""tie_word_embeddings": true"#, inner), "{inner}");
        assert!(!tied(r#""tie_word_embeddings": false"#, inner), "{inner}");
        assert!(!tied(r#""tie_word_embeddings": null"#, inner), "{inner}");
    }
    assert!(
        !parse(&flat(r#""tie_word_embeddings": false"#))
            .unwrap()
            .tie_word_embeddings
    );
}

#[test]
fn a_text_config_in_a_text_config_is_refused() {
    assert_eq!(
        message(r#""text_config": {"sliding_window": 1}"#),
        "m/config.json: text_config is an object, but must be left out where model_type is gemma3_text"
    );
    assert!(parse(&flat(r#""text_config": null"#)).is_ok());
}

#[test]
fn json_is_what_python_takes_for_json() {
    let plain = parse(&flat("")).unwrap();
    let long = format!(r#""x": {}"#, "9".repeat(400));
    for fields in [
        r#""attention_dropout": NaN, "a": [Infinity, -Infinity]"#,
        r#""initializer_range": 1e999"#,
        r#""a": "\ud800", "\udc00": 1"#,
        r#""sliding_window": null, "sliding_window": 4096"#,
        r#""time_step_limit": {"__float__": "Infinity"}"#,
        &long,
    ] {
        assert_eq!(parse(&flat(fields)).unwrap(), plain, "{fields}");
    }
    for (fields, rest) in [
        (
            r#""rms_norm_eps": NaN"#,
            "rms_norm_eps is NaN, but must be from 0 to 1",
        ),
        (
            r#""rms_norm_eps": {"__float__": "Infinity"}"#,
            "rms_norm_eps is inf, but must be from 0 to 1",
        ),
        (
            r#""hidden_size": Infinity"#,
            "hidden_size must be a whole number, not Infinity",
        ),
        (
            r#""sliding_window": 7, "sliding_window": null"#,
            "sliding_window must be a whole number, not null",
        ),
        (
            r#""max_position_embeddings": 18446744073709551616"#,
            "max_position_embeddings is 1.8446744073709552e+19, but must be from 1 to 1073741824",
        ),
    ] {
        assert_eq!(message(fields), format!("m/config.json: {rest}"));
    }
}

#[test]
fn model_type_says_what_it_is() {
    let known = "known are gemma3_text, gemma3, gemma2, gemma, llama, mistral, qwen2, qwen3, mixtral, olmo2, falcon, gpt2, gptj, phi, phi3";
    for found in ["llama4", "gemma3n", "Gemma3_Text", "gemma3_txt", ""] {
        let json =
            format!(r#"{{"model_type": "{found}", "architectures": ["Gemma3ForCausalLM"]}}"#);
        assert_eq!(
            parse(&json).unwrap_err().to_string(),
            format!("m/config.json: cannot run models of model_type {found}; {known}")
        );
    }
    assert_eq!(
        parse(r#"{"model_type": "a\nb"}"#).unwrap_err().to_string(),
        format!("m/config.json: cannot run models of model_type a\\nb; {known}")
    );
    for json in [
        "{}",
        r#"{"model_type": null}"#,
        r#"{"architectures": ["Gemma3ForCausalLM"]}"#,
    ] {
        assert_eq!(
            parse(json).unwrap_err().to_string(),
            "m/config.json has no model_type; transformers needs it: gemma3_text for Gemma3ForCausalLM, llama for LlamaForCausalLM, …"
        );
    }
    // Architectures, of which there may be several or none, do not count.
    let plain = parse(&flat("")).unwrap();
    for architectures in [
        "null",
        "[]",
        r#"["Gemma3ForConditionalGeneration"]"#,
        r#"["Gemma3TextModel", "LlamaForCausalLM"]"#,
    ] {
        let fields = format!(r#""architectures": {architectures}"#);
        assert_eq!(parse(&flat(&fields)).unwrap(), plain, "{fields}");
    }
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
            r#""hidden_size": -640.5"#,
            "hidden_size must be a whole number, not -640.5",
        ),
        (
            r#""hidden_size": 640.0"#,
            "hidden_size must be a whole number, not 640.0",
        ),
        (
            r#""hidden_size": true"#,
            "hidden_size must be a whole number, not true",
        ),
        (
            r#""hidden_size": null"#,
            "hidden_size must be a whole number, not null",
        ),
        (
            r#""query_pre_attn_scalar": 256.0"#,
            "query_pre_attn_scalar must be a whole number, not 256.0",
        ),
        (
            r#""sliding_window": null"#,
            "sliding_window must be a whole number, not null",
        ),
        (
            r#""sliding_window_pattern": null"#,
            "sliding_window_pattern must be a number, not null",
        ),
        (
            r#""sliding_window_pattern": "2""#,
            r#"sliding_window_pattern must be a number, not "2""#,
        ),
        (
            r#""rms_norm_eps": []"#,
            "rms_norm_eps must be a number with a point or an exponent, not a list",
        ),
        (
            r#""rms_norm_eps": 1"#,
            "rms_norm_eps must be a number with a point or an exponent, not 1",
        ),
        (
            r#""rms_norm_eps": "1e-6""#,
            r#"rms_norm_eps must be a number with a point or an exponent, not "1e-6""#,
        ),
        (
            r#""rms_norm_eps": null"#,
            "rms_norm_eps must be a number with a point or an exponent, not null",
        ),
        (
            r#""layer_types": [1]"#,
            "layer_types must be a list of strings, not a list",
        ),
        (
            r#""layer_types": "full_attention""#,
            r#"layer_types must be a list of strings, not "full_attention""#,
        ),
        (
            r#""hidden_activation": null"#,
            "hidden_activation must be a string, not null",
        ),
        (
            r#""attention_bias": null"#,
            "attention_bias must be true or false, not null",
        ),
        (
            r#""use_bidirectional_attention": 0"#,
            "use_bidirectional_attention must be true or false, not 0",
        ),
        (
            r#""tie_word_embeddings": 1"#,
            "tie_word_embeddings must be true or false, not 1",
        ),
        (
            r#""tie_word_embeddings": null"#,
            "tie_word_embeddings must be true or false, not null",
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
            r#""eos_token_id": true"#,
            "eos_token_id must be a token id or a list of them, not true",
        ),
        (
            r#""bos_token_id": [1, 3]"#,
            "bos_token_id must be a token id, not a list",
        ),
        (
            r#""rope_theta": null"#,
            "rope_theta must be a number, not null",
        ),
        (
            r#""rope_local_base_freq": "10""#,
            r#"rope_local_base_freq must be a number, not "10""#,
        ),
        (
            r#""rope_parameters": []"#,
            "rope_parameters must be an object, not a list",
        ),
        (
            r#""rope_parameters": {"sliding_attention": 8}"#,
            "rope_parameters.sliding_attention must be an object, not 8",
        ),
        (
            r#""rope_parameters": {"full_attention": {"rope_theta": null}}, "rope_theta": 7.0"#,
            "rope_parameters.full_attention.rope_theta must be a number, not null",
        ),
        (
            r#""rope_parameters": {"full_attention": {"rope_type": null}}"#,
            "rope_parameters.full_attention.rope_type must be a string, not null",
        ),
        (
            r#""rope_scaling": {"rope_type": "linear", "factor": "8"}"#,
            r#"rope_scaling.factor must be a number, not "8""#,
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
            r#""rope_parameters": {"full_attention": {"rope_theta": "x"}}"#,
            r#"rope_parameters.full_attention.rope_theta must be a number, not "x""#,
        ),
    ] {
        assert_eq!(message(fields), format!("m/config.json: {rest}"));
    }
    for (inner, rest) in [
        (
            r#""head_dim": true"#,
            "head_dim must be a whole number, not true",
        ),
        (
            r#""rope_parameters": {"full_attention": {"rope_theta": "x"}}"#,
            r#"rope_parameters.full_attention.rope_theta must be a number, not "x""#,
        ),
    ] {
        assert_eq!(
            nested("", inner).unwrap_err().to_string(),
            format!("m/config.json: text_config.{rest}")
        );
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
            r#""hidden_size": -640"#,
            "hidden_size is -640, but must be from 1 to 1048576",
        ),
        (
            r#""num_attention_heads": 5, "num_key_value_heads": 5"#,
            "num_attention_heads is 5, but must be a divisor of hidden_size, 2304",
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
            "sliding_window_pattern is 0, but must be another number",
        ),
        (
            r#""rms_norm_eps": -1e-6"#,
            "rms_norm_eps is -0.000001, but must be from 0 to 1",
        ),
        (
            r#""query_pre_attn_scalar": 0"#,
            "query_pre_attn_scalar is 0, but must be from 1 to 1073741824",
        ),
        (
            r#""rope_theta": 0"#,
            "rope_theta is 0, but must be from 0.000000000000001 to 1000000000000000",
        ),
        (
            r#""rope_local_base_freq": -0.5"#,
            "rope_local_base_freq is -0.5, but must be from 0.000000000000001 to 1000000000000000",
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
            r#""rope_parameters": {"sliding_attention": {}}, "rope_scaling": {}"#,
            "rope_parameters.full_attention is left out, but must be an object, which rope_scaling changes",
        ),
        (
            r#""layer_types": []"#,
            "layer_types is a list of 0, but must be one entry for each of the 26 hidden layers",
        ),
        (
            r#""layer_types": ["full_attention"]"#,
            "layer_types is a list of 1, but must be one entry for each of the 26 hidden layers",
        ),
    ] {
        assert_eq!(message(fields), format!("m/config.json: {rest}"));
    }
}

#[test]
fn what_nothing_is_computed_with_is_not_looked_at() {
    let plain = parse(&flat("")).unwrap();
    for fields in [
        r#""pad_token_id": 262208"#,
        r#""pad_token_id": -1"#,
        r#""bos_token_id": null"#,
        r#""bos_token_id": -1"#,
        r#""hidden_act": "silu""#,
        r#""attn_logit_softcapping": 50.0"#,
        r#""final_logit_softcapping": null"#,
        r#""use_bidirectional_attention": null"#,
        r#""quantization_config": null, "per_layer_config": null"#,
        r#""torch_dtype": "float99", "dtype": 5"#,
    ] {
        assert_eq!(parse(&flat(fields)).unwrap(), plain, "{fields}");
    }
    let beyond = parse(&flat(r#""bos_token_id": 1000000"#)).unwrap();
    assert_eq!(beyond.bos_token_id, Some(1_000_000));
}

/// transformers does not cap the logits of a multimodal model.
#[test]
fn logits_of_a_text_model_may_be_capped() {
    const CAPPED: &str = r#""final_logit_softcapping": 30.0"#;
    assert_eq!(parse(&flat(CAPPED)).unwrap().decoder.softcap, Some(30.0));
    assert_eq!(nested("", CAPPED).unwrap().decoder.softcap, None);
}

#[test]
fn attention_may_have_biases() {
    let maps = |fields: &str| {
        let mut config = parse(&flat(fields)).unwrap();
        let attention = config.blocks.remove(0).attention;
        let ProjectionsForm::Separate(maps) = attention.projections else {
            panic!("Gemma's maps are three");
        };
        let all = maps.into_iter().chain([attention.out]);
        all.map(|map| map.bias).collect::<Vec<_>>()
    };
    assert_eq!(maps(r#""attention_bias": true"#), [true; 4]);
    assert_eq!(maps(""), [false; 4]);
}

#[test]
fn settings_of_other_models_are_refused() {
    for (fields, rest) in [
        (
            r#""hidden_activation": "silu""#,
            "hidden_activation is silu; this crate computes only gelu_pytorch_tanh",
        ),
        (
            r#""use_bidirectional_attention": true"#,
            "use_bidirectional_attention is true; this crate computes only false",
        ),
        (
            r#""per_layer_config": {"0": {"sliding_window": 1}}"#,
            "per_layer_config is an object; this crate computes only layers that are all configured alike",
        ),
        (
            r#""configuration_files": ["config.4.0.0.json"]"#,
            "configuration_files is a list; this crate computes only what config.json itself says; rename the file that is for your version to it",
        ),
        (
            r#""rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 2, "partial_rotary_factor": 0.5}}"#,
            "rope_parameters.full_attention.partial_rotary_factor is 0.5; this crate computes only whole heads (1)",
        ),
        (
            r#""rope_scaling": {"rope_type": "linear", "factor": 2}, "partial_rotary_factor": 0.5"#,
            "partial_rotary_factor is 0.5; this crate computes only whole heads (1)",
        ),
        (
            r#""rope_scaling": {"rope_type": "yarn", "factor": 8.0}"#,
            "rope_scaling.rope_type is yarn; this crate computes only default and linear",
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
    let inside = nested("", r#""quantization_config": {}"#).unwrap_err();
    assert_eq!(
        inside.to_string(),
        "m/config.json: text_config.quantization_config is an object; this crate computes only unquantised weights; take the checkpoint in bf16"
    );
}

#[test]
fn experts_do_not_fill_the_memory() {
    let mixtral = |fields: &str| parse(&format!(r#"{{"model_type": "mixtral", {fields}}}"#));
    for (fields, most) in [
        (r#""num_local_experts": 2049"#, 2048),
        (
            r#""num_local_experts": 4096, "num_hidden_layers": 4096"#,
            16,
        ),
    ] {
        let said = mixtral(fields).unwrap_err().to_string();
        let end = format!("but must be from 1 to {most}");
        assert!(
            said.contains("num_local_experts is") && said.ends_with(&end),
            "{said}"
        );
    }
    assert!(mixtral(r#""num_local_experts": 64"#).is_ok());
}
