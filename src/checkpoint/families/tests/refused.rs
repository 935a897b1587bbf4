//! Values that no model has, and models that are not computed here.

use super::{flat, message, nested, parse};

#[test]
fn model_type_says_what_it_is() {
    let known = "take one whose model_type is one of gemma3_text, gemma3, gemma2, gemma, llama, mistral, qwen2, qwen3, mixtral, olmo2, falcon, gpt2, gptj, phi, phi3";
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
