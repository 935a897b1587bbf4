//! The many spellings of rotary parameters.

use super::{flat, parse};
use crate::checkpoint::Rope;

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
