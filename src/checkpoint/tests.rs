use std::fs;

use super::*;

const CONFIG: &str = r#"{"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text",
    "vocab_size": 8, "eos_token_id": [1, 3]}"#;

/// One tensor `norm.weight` of one f32.
fn weights() -> Bytes {
    let header = r#"{"norm.weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    let mut data = (header.len() as u64).to_le_bytes().to_vec();
    data.extend(header.as_bytes());
    data.extend(1_f32.to_le_bytes());
    data.into()
}

/// A checkpoint in memory with these files besides config and weights.
fn in_memory(files: &[(&str, &str)]) -> Result<Checkpoint> {
    let own = [
        ("config.json", Bytes::from_static(CONFIG.as_bytes())),
        ("model.safetensors", weights()),
    ];
    let files = files
        .iter()
        .map(|(name, text)| (*name, Bytes::copy_from_slice(text.as_bytes())));
    Checkpoint::from_files("tiny", own.into_iter().chain(files))
}

#[test]
fn a_directory_and_memory_give_the_same() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), CONFIG).unwrap();
    fs::write(dir.path().join("model.safetensors"), weights()).unwrap();
    let name = dir.path().to_str().unwrap();
    let disk = Checkpoint::open(name, Access::Mapped).unwrap();
    let memory = in_memory(&[]).unwrap();
    assert_eq!(disk.config(), memory.config());
    assert_eq!(
        disk.tensors().content_hash(),
        memory.tensors().content_hash()
    );
    assert_eq!((disk.name(), memory.name()), (name, "tiny"));
    assert_eq!((disk.dir(), memory.dir()), (Some(dir.path()), None));
    assert_eq!(
        disk.file("config.json").unwrap().unwrap(),
        CONFIG.as_bytes()
    );
    assert_eq!(disk.file("other").unwrap(), None);
}

#[test]
fn ends_are_those_of_generation_config_json() {
    assert_eq!(in_memory(&[]).unwrap().eos_token_ids(), [1, 3]);
    let with = |json| in_memory(&[("generation_config.json", json)]);
    let ids = |json| with(json).unwrap().eos_token_ids().to_vec();
    let none: [u32; 0] = [];
    assert_eq!(ids(r#"{"eos_token_id": 5}"#), [5]);
    assert_eq!(ids(r#"{"eos_token_id": [3, 6]}"#), [3, 6]);
    // Where it says nothing of ends, there are none.
    for json in ["{}", r#"{"eos_token_id": null}"#, r#"{"eos_token_id": []}"#] {
        assert_eq!(ids(json), none, "{json}");
    }
    // What no token can be ends nothing.
    assert_eq!(ids(r#"{"eos_token_id": [106, 7, -1, 99999999999]}"#), [7]);
    assert_eq!(ids(r#"{"eos_token_id": 7, "temperature": NaN}"#), [7]);
    // A file that is no JSON is as none.
    for json in ["", "{", "\u{feff}{\"eos_token_id\": 7}"] {
        assert_eq!(ids(json), [1, 3], "{json:?}");
    }
    for (json, rest) in [
        (
            r#"{"eos_token_id": "7"}"#,
            r#"eos_token_id must be a token id or a list of them, not "7""#,
        ),
        ("[7]", "the top level must be an object, not a list"),
    ] {
        let message = with(json).unwrap_err().to_string();
        assert_eq!(message, format!("tiny/generation_config.json: {rest}"));
    }
}

#[test]
fn config_json_may_name_the_weights() {
    let with = |files: &[(&str, Bytes)], named: &str| {
        let config = CONFIG.replace('{', &format!(r#"{{"transformers_weights": {named}, "#));
        let config = ("config.json", Bytes::from(config));
        let files = files.iter().cloned().chain([config]);
        Checkpoint::from_files("tiny", files).map_err(|error| error.to_string())
    };
    let other = [("other.safetensors", weights())];
    let found = with(&other, r#""other.safetensors""#).unwrap();
    assert!(found.tensors().contains("model.norm.weight"));
    let usual = [("model.safetensors", weights())];
    assert!(with(&usual, "null").is_ok());
    for named in [
        "other.bin",
        "../other.safetensors",
        "a/other.safetensors",
        "",
    ] {
        assert_eq!(
            with(&other, &format!("{named:?}")).unwrap_err(),
            format!(
                "tiny/config.json: transformers_weights is {named}, but must be a .safetensors file or .safetensors.index.json beside config.json"
            )
        );
    }
    let message = with(&usual, "1").unwrap_err();
    assert_eq!(
        message,
        "tiny/config.json: transformers_weights must be a string, not 1"
    );

    // On disk, the index of another name too.
    let dir = tempfile::tempdir().unwrap();
    let config = CONFIG.replace(
        '{',
        r#"{"transformers_weights": "x.safetensors.index.json", "#,
    );
    fs::write(dir.path().join("config.json"), config).unwrap();
    let index = r#"{"weight_map": {"norm.weight": "y.safetensors"}}"#;
    fs::write(dir.path().join("x.safetensors.index.json"), index).unwrap();
    fs::write(dir.path().join("y.safetensors"), weights()).unwrap();
    let found = Checkpoint::open(dir.path().to_str().unwrap(), Access::Mapped).unwrap();
    assert!(found.tensors().contains("model.norm.weight"));
}

#[cfg(unix)]
#[test]
fn a_link_to_nothing_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("config.json");
    std::os::unix::fs::symlink("../../blobs/none", &link).unwrap();
    assert_eq!(
        Checkpoint::open(dir.path().to_str().unwrap(), Access::Mapped)
            .unwrap_err()
            .to_string(),
        format!(
            "{} is a link to a file that is not there; fetch it again",
            link.display()
        )
    );
}

#[test]
fn a_directory_without_config_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(
        Checkpoint::open(dir.path().to_str().unwrap(), Access::Mapped)
            .unwrap_err()
            .to_string(),
        format!(
            "{} has no config.json; give the directory of a Hugging Face checkpoint",
            dir.path().display()
        )
    );
}

#[test]
fn missing_files_are_named() {
    let none: [(&str, Bytes); 0] = [];
    assert!(matches!(
        Checkpoint::from_files("tiny", none),
        Err(Error::NoConfig { .. })
    ));
    let config = [("config.json", Bytes::from_static(CONFIG.as_bytes()))];
    assert!(matches!(
        Checkpoint::from_files("tiny", config),
        Err(Error::NoWeights { .. })
    ));
    assert_eq!(
        in_memory(&[]).unwrap().tokenizer().unwrap_err().to_string(),
        "tiny has no tokenizer.json; copy the model's own there, or give token ids instead of text"
    );
    for files in [&[][..], &[("tokenizer_config.json", "{}")]] {
        assert_eq!(
            in_memory(files)
                .unwrap()
                .chat_template()
                .unwrap_err()
                .to_string(),
            "tiny has no chat template (no chat_template.jinja, and no chat_template in tokenizer_config.json, processor_config.json or chat_template.json); use an instruction-tuned checkpoint, or leave out --chat"
        );
    }
}

#[test]
fn the_chat_template_comes_from_where_transformers_takes_it() {
    let render = |files: &[(&str, &str)]| {
        let template = in_memory(files).unwrap().chat_template().unwrap();
        let text = template.render(&Conversation::new([Message::user("x")]));
        text.unwrap()
    };
    let json = (
        "chat_template.json",
        r#"{"chat_template": "{{ bos_token }}1"}"#,
    );
    let processor = (
        "processor_config.json",
        r#"{"chat_template": "{{ bos_token }}2"}"#,
    );
    let config = r#"{"bos_token": "<s>", "chat_template": "{{ bos_token }}3"}"#;
    let config = ("tokenizer_config.json", config);
    let folder = (
        "additional_chat_templates/default.jinja",
        "{{ bos_token }}5",
    );
    let jinja = ("chat_template.jinja", "{{ bos_token }}4");
    assert_eq!(render(&[json]), "<bos>1");
    assert_eq!(render(&[json, processor]), "<bos>2");
    assert_eq!(render(&[json, processor, config]), "<s>3");
    assert_eq!(render(&[json, processor, config, jinja]), "<s>4");
    assert_eq!(render(&[config, jinja, folder]), "<s>5");
    let list = r#"{"chat_template": [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]}"#;
    assert_eq!(render(&[("tokenizer_config.json", list)]), "d");

    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), CONFIG).unwrap();
    fs::write(dir.path().join("model.safetensors"), weights()).unwrap();
    fs::create_dir(dir.path().join("additional_chat_templates")).unwrap();
    fs::write(dir.path().join(folder.0), folder.1).unwrap();
    let disk = Checkpoint::open(dir.path().to_str().unwrap(), Access::Mapped).unwrap();
    let talk = Conversation::new([Message::user("x")]);
    assert_eq!(
        disk.chat_template().unwrap().render(&talk).unwrap(),
        "<bos>5"
    );
}

#[test]
fn a_chat_template_that_is_not_text_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), CONFIG).unwrap();
    fs::write(dir.path().join("model.safetensors"), weights()).unwrap();
    let path = dir.path().join("chat_template.jinja");
    fs::write(&path, b"caf\xe9").unwrap();
    let disk = Checkpoint::open(dir.path().to_str().unwrap(), Access::Mapped).unwrap();
    assert_eq!(
        disk.chat_template().unwrap_err().to_string(),
        format!(
            "the chat template of {}: it is not UTF-8; save it as such",
            path.display()
        )
    );
}

#[test]
fn a_class_that_makes_another_tokenizer_is_refused() {
    let files = [
        ("tokenizer.json", "{}"),
        (
            "tokenizer_config.json",
            r#"{"tokenizer_class": "CodeLlamaTokenizerFast"}"#,
        ),
    ];
    let checkpoint = in_memory(&files).unwrap();
    assert_eq!(
        checkpoint.tokenizer().unwrap_err().to_string(),
        "tiny/tokenizer_config.json: tokenizer_class is CodeLlamaTokenizerFast; this crate computes only the tokenizers of Gemma, GPT-2, Llama and Qwen2, or PreTrainedTokenizerFast for a tokenizer.json as it is"
    );
    let config = CONFIG.replace('{', r#"{"tokenizer_class": "T5Tokenizer", "#);
    let checkpoint = in_memory(&[("tokenizer.json", "{}"), ("config.json", &config)]).unwrap();
    assert_eq!(
        checkpoint.tokenizer().unwrap_err().to_string(),
        "tiny/config.json: tokenizer_class is T5Tokenizer; this crate computes only the tokenizers of Gemma, GPT-2, Llama and Qwen2, or PreTrainedTokenizerFast for a tokenizer.json as it is"
    );
}

#[test]
fn a_checkpoint_is_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Checkpoint>();
    shared::<Tokenizer>();
    shared::<ChatTemplate>();
}
