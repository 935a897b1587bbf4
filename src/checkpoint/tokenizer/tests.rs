use serde_json::{Value, json};

use super::rebuilt::Rebuilt;
use super::*;

/// A byte-level-fallback tokenizer like Gemma's: ids 0–3 `<pad> <eos> <bos> <unk>`, then 256 bytes,
/// then these words from 260 on, then added special tokens.
fn json(words: &[&str], added: &[(&str, u32)]) -> String {
    let mut vocab: Vec<String> = ["<pad>", "<eos>", "<bos>", "<unk>"]
        .map(String::from)
        .into();
    vocab.extend((0..256).map(|b| format!("<0x{b:02X}>")));
    vocab.extend(words.iter().map(|w| (*w).to_owned()));
    let entries: Vec<_> = vocab
        .iter()
        .enumerate()
        .map(|(i, w)| format!("{w:?}: {i}"))
        .collect();
    let special = |(content, id): &(&str, u32)| {
        format!(
            r#"{{"id": {id}, "content": "{content}", "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true}}"#
        )
    };
    let mut tokens = vec![("<pad>", 0), ("<eos>", 1), ("<bos>", 2)];
    tokens.extend(added);
    let tokens: Vec<_> = tokens.iter().map(special).collect();
    format!(
        r#"{{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [{}],
            "normalizer": {{"type": "Replace", "pattern": {{"String": " "}}, "content": "▁"}},
            "pre_tokenizer": null, {BOS_FIRST},
            "decoder": {{"type": "Sequence", "decoders": [
                {{"type": "Replace", "pattern": {{"String": "▁"}}, "content": " "}},
                {{"type": "ByteFallback"}}, {{"type": "Fuse"}}]}},
            "model": {{"type": "BPE", "dropout": null, "unk_token": "<unk>",
                "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true,
                "byte_fallback": true, "ignore_merges": false, "vocab": {{{}}}, "merges": []}}}}"#,
        tokens.join(","),
        entries.join(",")
    )
}

const WORDS: [&str; 4] = ["a", "b", "▁", "é"];
const A: u32 = 260;
const B: u32 = 261;
const SPACE: u32 = 262;
const E_ACUTE: u32 = 263;

fn config(vocab_size: usize) -> Config {
    let json = format!(r#"{{"model_type": "gemma3_text", "vocab_size": {vocab_size}}}"#);
    Config::parse(Path::new("config.json"), json.as_bytes()).unwrap()
}

/// What puts `<bos>` before a text.
const BOS_FIRST: &str = r#""post_processor": {"type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
    "special_tokens": {"<bos>": {"id": "<bos>", "ids": [2], "tokens": ["<bos>"]}}}"#;

fn load(json: &str, vocab_size: usize, bos: Option<&str>) -> Result<Tokenizer> {
    Tokenizer::from_bytes(
        Path::new("m/tokenizer.json"),
        json.as_bytes(),
        &config(vocab_size),
        bos,
    )
}

fn tokenizer() -> Tokenizer {
    load(
        &json(&WORDS, &[("<image_soft_token>", 264)]),
        264,
        Some("<bos>"),
    )
    .unwrap()
}

#[test]
fn bos_comes_exactly_once() {
    let tokenizer = tokenizer();
    assert_eq!(tokenizer.encode("a b").unwrap(), [2, A, SPACE, B]);
    assert_eq!(tokenizer.encode("<bos>a").unwrap(), [2, A]);
    assert_eq!(tokenizer.encode("<bos><bos>a").unwrap(), [2, A]);
    assert_eq!(tokenizer.encode("").unwrap(), [2]);
    assert_eq!(tokenizer.encode("a<bos>").unwrap(), [2, A, 2]);
}

#[test]
fn the_post_processor_decides_what_stands_around_a_text() {
    let json = json(&WORDS, &[]);
    let eos = json.replace(
        r#"{"Sequence": {"id": "A", "type_id": 0}}],
    "pair""#,
        r#"{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<bos>", "type_id": 0}}],
    "pair""#,
    );
    let tokenizer = load(&eos, 264, Some("<bos>")).unwrap();
    assert_eq!(tokenizer.encode("a").unwrap(), [2, A, 2]);
    assert_eq!(tokenizer.encode_as_written("a").unwrap(), [A]);
    assert_eq!(tokenizer.encode_more("<bos>a").unwrap(), [A]);
    let without = json.replace(BOS_FIRST, r#""post_processor": null"#);
    let tokenizer = load(&without, 264, Some("<bos>")).unwrap();
    assert_eq!(tokenizer.encode("a").unwrap(), [A]);
    // What the tokenizer does not put before a text is the text's own.
    assert_eq!(tokenizer.encode("<bos><bos>a").unwrap(), [2, 2, A]);
    assert_eq!(tokenizer.encode_more("<bos>a").unwrap(), [2, A]);
}

#[test]
fn merges_are_not_left_out_at_random() {
    let dropped = json(&WORDS, &[]).replace(r#""dropout": null"#, r#""dropout": 1.0"#);
    let dropped = dropped.replace(r#""merges": []"#, r#""merges": ["▁ a"]"#);
    let dropped = dropped.replace("\"é\"", "\"▁a\"");
    let tokenizer = load(&dropped, 264, None).unwrap();
    for _ in 0..9 {
        assert_eq!(tokenizer.encode(" a").unwrap(), [2, E_ACUTE]);
    }
}

#[test]
fn truncation_and_padding_are_ignored() {
    let cut = json(&WORDS, &[])
        .replace(
            r#""truncation": null"#,
            r#""truncation": {"max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}"#,
        )
        .replace(
            r#""padding": null"#,
            r#""padding": {"strategy": {"Fixed": 8}, "direction": "Left", "pad_to_multiple_of": null,
                "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"}"#,
        );
    let tokenizer = load(&cut, 264, None).unwrap();
    assert_eq!(tokenizer.encode("aaaaa").unwrap(), [2, A, A, A, A, A]);
}

#[test]
fn raw_text_gets_nothing_but_its_own_special_tokens() {
    let tokenizer = tokenizer();
    assert_eq!(tokenizer.encode_as_written("a<eos>").unwrap(), [A, 1]);
    assert_eq!(tokenizer.encode_as_written("<bos>a").unwrap(), [2, A]);
}

#[test]
fn decoding_leaves_special_tokens_out() {
    let tokenizer = tokenizer();
    assert_eq!(tokenizer.decode(&[2, A, SPACE, B, 1]).unwrap(), "a b");
    assert_eq!(tokenizer.token_text(2).as_deref(), Some("<bos>"));
    assert_eq!(tokenizer.token_text(SPACE).as_deref(), Some("▁"));
    assert_eq!(tokenizer.token_text(9999), None);
}

/// The pieces that a stream gives for `ids`, the last one from `finish`.
fn pieces(ids: &[u32]) -> Vec<String> {
    let tokenizer = tokenizer();
    let mut stream = tokenizer.stream();
    let mut pieces: Vec<_> = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
    pieces.push(stream.finish().unwrap());
    pieces
}

/// The tokens of `text` as bytes.
fn bytes(text: &str) -> Vec<u32> {
    text.bytes().map(|b| u32::from(b) + 4).collect()
}

#[test]
fn a_stream_never_cuts_a_character() {
    assert_eq!(pieces(&[SPACE, A, 1, E_ACUTE]), [" ", "a", "", "é", ""]);
    assert_eq!(pieces(&bytes("€a")), ["", "", "€", "a", ""]);
    assert_eq!(pieces(&bytes("€é")), ["", "", "€", "", "é", ""]);
    assert_eq!(pieces(&bytes("🎉")), ["", "", "", "🎉", ""]);
    assert_eq!(pieces(&bytes("€")[..2]), ["", "", "\u{fffd}\u{fffd}"]);
}

#[test]
fn a_stream_survives_stray_bytes() {
    let mut ids = bytes("€");
    ids.extend([4 + 0xff, A]);
    assert_eq!(pieces(&ids), ["", "", "€", "\u{fffd}", "a", ""]);
    // A beginning that another beginning cuts off, one that a word cuts off, and one at the end.
    let (begun, a) = (4 + 0xe2, A);
    let euro = bytes("€");
    let ids = [begun, begun, euro[1], euro[2], begun, a, begun, euro[1]];
    assert_eq!(
        pieces(&ids),
        [
            "",
            "\u{fffd}",
            "",
            "€",
            "",
            "\u{fffd}a",
            "",
            "",
            "\u{fffd}\u{fffd}"
        ]
    );
    // A special token between a character's bytes leaves no trace, as in the text of all tokens.
    let ids = [euro[0], euro[1], 1, euro[2]];
    assert_eq!(pieces(&ids), ["", "", "", "€", ""]);
    assert_eq!(tokenizer().decode(&ids).unwrap(), "€");
}

#[test]
fn a_stream_tells_a_real_replacement_character_at_once() {
    let mark = "\u{fffd}";
    let words = json(&["a", "b", "▁", mark], &[]);
    let tokenizer = load(&words, 264, None).unwrap();
    let mut stream = tokenizer.stream();
    for (id, piece) in [(E_ACUTE, mark), (E_ACUTE, mark), (A, "a"), (E_ACUTE, mark)] {
        assert_eq!(stream.push(id).unwrap(), piece);
    }
    assert_eq!(stream.finish().unwrap(), "");
    // The same character spelled as bytes.
    assert_eq!(pieces(&bytes(mark)), ["", "", mark, ""]);
}

#[test]
fn a_token_of_bytes_may_end_a_character_and_begin_the_next() {
    // As GPT-2 writes bytes: é is C3 A9, written Ã©; these tokens are C3, A9 C3, A9 and "a".
    let level = json(&["Ã", "©Ã", "©", "a"], &[]).replace(
        r#""decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"}, {"type": "Fuse"}]}"#,
        r#""decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}"#,
    );
    let tokenizer = load(&level, 264, None).unwrap();
    let pieces = |ids: &[u32]| {
        let mut stream = tokenizer.stream();
        let mut pieces: Vec<_> = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
        pieces.push(stream.finish().unwrap());
        assert_eq!(pieces.concat(), tokenizer.decode(ids).unwrap());
        pieces
    };
    let [first, both, last, a] = [260, 261, 262, 263];
    assert_eq!(
        pieces(&[first, both, both, last, a]),
        ["", "é", "é", "é", "a", ""]
    );
    assert_eq!(
        pieces(&[first, both, a, first]),
        ["", "é", "\u{fffd}a", "", "\u{fffd}"]
    );
    assert_eq!(
        pieces(&[last, last, first]),
        ["\u{fffd}", "\u{fffd}", "", "\u{fffd}"]
    );
}

#[test]
fn a_streams_pieces_make_the_whole_text() {
    let tokenizer = tokenizer();
    let text = "ab é🎉 € naïve 日本語 a";
    let ids = tokenizer.encode(text).unwrap();
    assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    assert_eq!(pieces(&ids).concat(), text);
}

#[test]
fn an_added_token_beyond_the_model_is_refused_only_in_a_text() {
    let tokenizer = tokenizer();
    assert_eq!(
        tokenizer
            .encode("a<image_soft_token>")
            .unwrap_err()
            .to_string(),
        "the text contains <image_soft_token> (token 264), which the text model with its 264 tokens does not have; leave it out"
    );
}

#[test]
fn a_larger_vocabulary_is_refused() {
    assert_eq!(
        load(&json(&WORDS, &[]), 263, None).unwrap_err().to_string(),
        "m/tokenizer.json is for another vocabulary: its token é has id 263, but the model's vocabulary has 263 tokens; use the tokenizer.json of this checkpoint"
    );
    assert!(load(&json(&WORDS, &[]), 300, None).is_ok());
}

#[test]
fn another_bos_is_refused() {
    let message = |json: &str, bos| load(json, 264, bos).unwrap_err().to_string();
    assert_eq!(
        message(&json(&WORDS, &[]), Some("<eos>")),
        "m/tokenizer.json is for another vocabulary: <eos> is token 1, but the model's bos_token_id is 2; use the tokenizer.json and tokenizer_config.json of this checkpoint"
    );
    assert_eq!(
        message(&json(&WORDS, &[]), Some("<s>")),
        "m/tokenizer.json is for another vocabulary: <s> is not in it, but the model's bos_token_id is 2; use the tokenizer.json and tokenizer_config.json of this checkpoint"
    );
    let renamed = json(&WORDS, &[]).replace("<bos>", "<s>");
    assert!(load(&renamed, 264, Some("<s>")).is_ok());
    assert!(load(&renamed, 264, None).is_ok());
}

#[test]
fn letters_are_no_vocabulary_of_a_model() {
    let letters: Vec<_> = ('a'..='z')
        .enumerate()
        .map(|(i, c)| format!(r#""{c}": {i}"#))
        .collect();
    let json = format!(
        r#"{{"model": {{"type": "BPE", "vocab": {{{}, "?": 26}}, "merges": [], "unk_token": "?"}}}}"#,
        letters.join(",")
    );
    assert!(matches!(
        load(&json, 264, Some("<bos>")),
        Err(Error::TokenizerBos { found: None, .. })
    ));
    assert!(load(&json, 264, Some("c")).is_ok());
}

#[test]
fn what_is_not_a_tokenizer_is_refused() {
    for (json, reason) in [
        ("{}", "Model missing. at line 1 column 2"),
        (
            "[1",
            "invalid type: sequence, expected struct Tokenizer at line 1 column 1",
        ),
        (
            r#"{"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}"#,
            "invalid value: string \"WordLevel\", expected BPE at line 1 column 30",
        ),
    ] {
        assert_eq!(
            load(json, 264, None).unwrap_err().to_string(),
            format!("m/tokenizer.json: not a tokenizer this crate can read: {reason}")
        );
    }
}

#[test]
fn a_stream_leaves_out_the_space_that_the_decoder_does() {
    let stripped = json(&WORDS, &[]).replace(
        r#"{"type": "Fuse"}]"#,
        r#"{"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]"#,
    );
    let tokenizer = load(&stripped, 264, None).unwrap();
    let byte = 4 + 0x20;
    for ids in [
        &[SPACE, A, SPACE, B][..],
        &[SPACE, SPACE, A],
        &[2, SPACE, 1, SPACE, A],
        &[byte, byte, A],
        &[byte, SPACE, A],
        &[A, SPACE],
    ] {
        let mut stream = tokenizer.stream();
        let pieces: String = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
        assert_eq!(pieces, tokenizer.decode(ids).unwrap(), "{ids:?}");
    }
}

#[test]
fn a_model_types_class_is_auto_tokenizers() {
    let golden = include_str!("../../../reference/tokenizers/classes.golden.json");
    let golden: Vec<(bool, String, Option<String>, String)> = serde_json::from_str(golden).unwrap();
    assert!(golden.len() >= 440);
    for (of_bytes, model_type, declared, name) in golden {
        let mut settings = TokenizerConfig::default();
        settings.model_type = model_type.clone();
        settings.class = declared.clone().map(|name| (name, PathBuf::new()));
        let json = if of_bytes {
            r#"{"type": "ByteLevel"}"#
        } else {
            "{}"
        };
        let expected = Rebuilt::named(&name).map_or(Class::AsWritten, Class::Rebuilt);
        let class = Class::of(&settings, json.as_bytes()).unwrap();
        assert_eq!(
            class, expected,
            "{model_type}, {declared:?}, bytes: {of_bytes}"
        );
    }
}

/// A tokenizer with `changes` to its JSON, each a pointer and a value.
fn changed(changes: &[(&str, Value)]) -> Tokenizer {
    let json = json(&["a", "b", "▁", "ab", "aa"], &[]);
    let mut json: Value = serde_json::from_str(&json).unwrap();
    for (pointer, value) in changes {
        *json.pointer_mut(pointer).unwrap() = value.clone();
    }
    load(&json.to_string(), 266, None).unwrap()
}

#[test]
fn whatever_decides_ids_is_a_difference() {
    const MERGES: &str = "/model/merges";
    let both = json!([["a", "b"], ["a", "a"]]);
    let base = changed(&[(MERGES, both.clone())]);
    let parts = base.parts().unwrap();
    let difference = |pointer, value| {
        let other = changed(&[(MERGES, both.clone()), (pointer, value)]);
        base.difference(&parts, &other)
    };
    let mut said = String::new();
    for (pointer, value) in [
        (MERGES, both.clone()),
        (
            "/pre_tokenizer",
            json!({"type": "Sequence", "pretokenizers": []}),
        ),
        ("/padding", json!(null)),
        (MERGES, json!([["a", "a"], ["a", "b"]])),
        (MERGES, json!([["a", "b"]])),
        ("/normalizer", json!(null)),
        ("/normalizer", json!({"type": "NFC"})),
        (
            "/pre_tokenizer",
            json!({"type": "Digits", "individual_digits": true}),
        ),
        ("/decoder/decoders/0/content", json!("_")),
        ("/post_processor", json!(null)),
        ("/post_processor/special_tokens/<bos>/ids/0", json!(1)),
        ("/model/vocab/a", json!(265)),
        ("/model/byte_fallback", json!(false)),
        ("/model/ignore_merges", json!(true)),
        ("/model/end_of_word_suffix", json!("b")),
        ("/added_tokens/1/special", json!(false)),
        ("/added_tokens/1/lstrip", json!(true)),
        ("/added_tokens/1/normalized", json!(true)),
        ("/added_tokens", json!([])),
    ] {
        let what = difference(pointer, value.clone()).unwrap_or("the same".into());
        said += &format!("{pointer} = {value}: {what}\n");
    }
    insta::assert_snapshot!(said);
}

#[test]
fn merges_that_cannot_be_are_refused() {
    const LONG: &str = "one of its merges makes a token that is not in its vocabulary";
    const PREFIX: &str = r#""continuing_subword_prefix": "<0x0""#;
    let plain = json(&["a", "b"], &[]);
    let prefixed = plain.replace(r#""continuing_subword_prefix": null"#, PREFIX);
    for (json, merges, reason) in [
        (&plain, r#"[["<0x00>", "<0x00>"]]"#, LONG),
        (&plain, r#"["<0x00> <0x00>"]"#, LONG),
        (&plain, r#"[["a", "b"]]"#, "Token `ab` out of vocabulary"),
        (&prefixed, r#"[["<bos>", "<0x00>"]]"#, LONG),
        (
            &prefixed,
            r#"[["a", "b"]]"#,
            "one of its merges lacks the continuing_subword_prefix",
        ),
    ] {
        let json = json.replace(r#""merges": []"#, &format!(r#""merges": {merges}"#));
        let error = load(&json, 262, None).unwrap_err().to_string();
        let said = error.strip_prefix("m/tokenizer.json: not a tokenizer this crate can read: ");
        assert!(
            said.is_some_and(|said| said.starts_with(reason)),
            "{merges}: {error}"
        );
    }
}
