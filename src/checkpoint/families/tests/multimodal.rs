//! A text model inside a multimodal one: which of the two levels counts.

use super::{flat, message, nested, parse};

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
