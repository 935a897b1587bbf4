//! What single fields mean, and which nobody looks at.

use super::{flat, message, nested, parse};
use crate::checkpoint::form::ProjectionsForm;

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
