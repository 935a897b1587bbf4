//! What is no JSON, or JSON of another type.

use super::super::{Config, Error, Path};
use super::{message, nested, parse};

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
