use super::*;

/// A safetensors file with this header, as it stands, and this many bytes after it.
fn file(header: &str, bytes: usize) -> Bytes {
    let mut data = (header.len() as u64).to_le_bytes().to_vec();
    data.extend(header.as_bytes());
    data.resize(data.len() + bytes, 0);
    data.into()
}

/// A file of f32 vectors with these names, each as long as given.
fn vectors(tensors: &[(&str, usize)]) -> Bytes {
    let mut at = 0;
    let mut header = Vec::new();
    for (name, len) in tensors {
        let end = at + 4 * len;
        header.push(format!(
            r#""{name}":{{"dtype":"F32","shape":[{len}],"data_offsets":[{at},{end}]}}"#
        ));
        at = end;
    }
    file(&format!("{{{}}}", header.join(",")), at)
}

fn message(data: Bytes) -> String {
    let tensors = Tensors::parse(Path::new("m.safetensors"), data);
    tensors.unwrap_err().to_string()
}

/// An entry of a header.
fn entry(name: &str, dtype: &str, shape: &str, from: usize, to: usize) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{from},{to}]}}"#)
}

fn shards(files: &[(&str, Bytes)], index: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, data) in files {
        fs::write(dir.path().join(name), data).unwrap();
    }
    if !index.is_empty() {
        fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
    }
    dir
}

#[test]
fn all_storage_types_are_kept() {
    let header = [
        entry("a", "F64", "[1]", 0, 8),
        entry("b", "F32", "[1,2]", 8, 16),
        entry("c", "F16", "[2]", 16, 20),
        entry("d", "BF16", "[2,1]", 20, 24),
        entry("e", "F32", "[]", 24, 28),
        entry("f", "F32", "[0]", 28, 28),
    ];
    let data = file(&format!("{{{}}}", header.join(",")), 28);
    let tensors = Tensors::parse(Path::new("m"), data).unwrap();
    let found: Vec<_> = tensors
        .iter()
        .map(|(_, t)| (t.storage(), t.shape().len()))
        .collect();
    let expected = [
        (Storage::F64, 1),
        (Storage::F32, 2),
        (Storage::F16, 1),
        (Storage::Bf16, 2),
        (Storage::F32, 0),
        (Storage::F32, 1),
    ];
    assert_eq!(found, expected);
}

#[test]
fn metadata_is_no_tensor() {
    let data = file(r#"{"__metadata__":{"format":"pt"}}"#, 0);
    let tensors = Tensors::parse(Path::new("m"), data).unwrap();
    assert!(tensors.is_empty());
}

#[test]
fn vision_tensors_are_left_out_whatever_their_dtype() {
    let header = [
        entry("language_model.model.norm.weight", "F32", "[1]", 0, 4),
        entry("vision_tower.ids", "I64", "[1]", 4, 12),
    ];
    let data = file(&format!("{{{}}}", header.join(",")), 12);
    let tensors = Tensors::parse(Path::new("m"), data).unwrap();
    assert_eq!(tensors.names().collect::<Vec<_>>(), ["model.norm.weight"]);
}

#[test]
fn what_is_not_safetensors_is_refused() {
    let not = |reason: &str| {
        format!("m.safetensors is not a safetensors file: {reason}; fetch the file again")
    };
    assert_eq!(message(Bytes::new()), not("it has only 0 bytes"));
    assert_eq!(
        message(Bytes::from_static(b"GGUF")),
        not("it has only 4 bytes")
    );
    let no_header = not("it does not begin with a JSON header");
    assert_eq!(
        message(Bytes::from_static(b"GGUF\x03\0\0\0more of it")),
        no_header
    );
    assert_eq!(
        message(Bytes::from_static(
            b"version https://git-lfs.github.com/spec/v1\n"
        )),
        not("it is a Git LFS pointer to one")
    );
    assert_eq!(
        message(Bytes::from_static(b"\xff\xff\xff\xff\xff\xff\xff\xff[")),
        no_header
    );
    assert_eq!(
        message(file("{\"a\": ", 0)),
        not("its header has EOF while parsing a value at line 1 column 6")
    );
    assert_eq!(
        message(file(r#"{"a": 1}"#, 0)),
        not(
            "its tensor a has invalid type: integer `1`, expected an object with dtype, shape and data_offsets"
        )
    );
    assert_eq!(
        message(file(
            r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#,
            4
        )),
        not("its tensor a has invalid value: integer `-1`, expected usize")
    );
}

#[test]
fn a_header_longer_than_the_file_is_refused() {
    let mut data = vectors(&[("a", 1)]).to_vec();
    data.truncate(20);
    assert_eq!(
        message(data.into()),
        "m.safetensors: its header claims 54 bytes and only 12 follow; the file is cut short, fetch it again"
    );
    assert_eq!(
        message(Bytes::from_static(b"\xff\xff\xff\xff\xff\xff\xff\xff{")),
        "m.safetensors: its header claims 18446744073709551615 bytes and only 1 follow; the file is cut short, fetch it again"
    );
}

#[test]
fn a_header_above_the_limit_is_refused() {
    let claimed = MAX_HEADER + 1;
    let mut data = vec![0; 8 + claimed as usize];
    data[..8].copy_from_slice(&claimed.to_le_bytes());
    data[8] = b'{';
    assert_eq!(
        message(data.into()),
        "m.safetensors is not a safetensors file: its header claims 100000001 bytes, above the limit of 100000000; fetch the file again"
    );
}

#[test]
fn overlapping_tensors_are_refused() {
    let (a, b) = (
        entry("a", "F32", "[2]", 0, 8),
        entry("b", "F32", "[1]", 4, 8),
    );
    assert_eq!(
        message(file(&format!("{{{a},{b}}}"), 8)),
        "m.safetensors: tensor b starts at byte 4, inside the tensor before it, which ends at 8; fetch the file again"
    );
}

#[test]
fn gapped_tensors_are_refused() {
    let (a, b) = (
        entry("a", "F32", "[1]", 0, 4),
        entry("b", "F32", "[1]", 8, 12),
    );
    assert_eq!(
        message(file(&format!("{{{a},{b}}}"), 12)),
        "m.safetensors: tensor b starts at byte 8, leaving a gap after byte 4; fetch the file again"
    );
}

#[test]
fn tensors_of_the_wrong_size_are_refused() {
    for (shape, from, to, found) in [
        ("[3]", 0, 8, 8),
        ("[18446744073709551615]", 0, 4, 4),
        ("[4294967296,4294967296]", 0, 0, 0),
    ] {
        let header = format!("{{{}}}", entry("a", "F32", shape, from, to));
        let shape = shape.replace(',', ", ");
        assert_eq!(
            message(file(&header, to)),
            format!(
                "m.safetensors: tensor a has {found} bytes, which is not F32 {shape}; fetch the file again"
            )
        );
    }
    let backwards = format!(
        "{{{}}}",
        entry("a", "F32", "[0]", 0, 0).replace("[0,0]", "[4,0]")
    );
    assert!(message(file(&backwards, 4)).contains("tensor a starts at byte 4, leaving a gap"));
}

#[test]
fn offsets_whose_sum_overflows_are_refused() {
    let each = (1_usize << 61) - 1;
    let entry = |i: usize| {
        entry(
            &format!("t{i}"),
            "U8",
            &format!("[{each}]"),
            i * each,
            (i + 1) * each,
        )
    };
    let header: Vec<_> = (0..8).map(entry).collect();
    assert_eq!(
        message(file(&format!("{{{}}}", header.join(",")), 0)),
        "m.safetensors: its tensors need 18446744073709551608 bytes after the header and 0 are there; the file is cut short, fetch it again"
    );
}

#[test]
fn truncated_and_trailing_bytes_are_refused() {
    let whole = vectors(&[("a", 2)]);
    assert_eq!(
        message(whole.slice(..whole.len() - 3)),
        "m.safetensors: its tensors need 8 bytes after the header and 5 are there; the file is cut short, fetch it again"
    );
    let mut longer = whole.to_vec();
    longer.push(0);
    assert_eq!(
        message(longer.into()),
        "m.safetensors: 1 bytes follow the last tensor; fetch the file again"
    );
}

#[test]
fn unsupported_dtypes_are_refused_where_they_are_needed() {
    let message = |dtype: &str| {
        let text = format!(
            "m.safetensors: tensor norm.weight is {dtype}; weights must be F64, F32, F16 or BF16, so take an unquantised checkpoint"
        );
        Err(text)
    };
    let of_type = |dtype: &str, bits: usize| {
        let header = format!("{{{}}}", entry("norm.weight", dtype, "[8]", 0, bits));
        let tensors = Tensors::parse(Path::new("m.safetensors"), file(&header, bits));
        tensors.map_err(|error| error.to_string())
    };
    for (dtype, bits) in [
        ("I64", 64),
        ("F8_E4M3", 8),
        ("F8_E8M0", 8),
        ("U8", 8),
        ("BOOL", 8),
        ("F4", 4),
    ] {
        let tensors = of_type(dtype, bits).unwrap();
        let needed = tensors.get("model.norm.weight", &[8]).map(|_| ());
        let needed = needed.map_err(|error| error.to_string());
        assert_eq!(needed, message(dtype));
        assert_eq!(tensors.iter().count(), 0, "{dtype}");
        assert!(tensors.contains("model.norm.weight"), "{dtype}");
        assert!(tensors.check_finite().is_ok());
    }
    assert_eq!(of_type("F5_NEW", 8).map(|_| ()), message("F5_NEW"));
}

#[test]
fn what_is_not_needed_does_not_count_in_the_hash_if_it_is_of_another_type() {
    let hash = |entries: &[String], bytes| {
        let data = file(&format!("{{{}}}", entries.join(",")), bytes);
        Tensors::parse(Path::new("m"), data).unwrap().content_hash()
    };
    let weight = entry("model.norm.weight", "F32", "[1]", 0, 4);
    let buffer = entry("model.position_ids", "I64", "[1]", 4, 12);
    assert_eq!(hash(&[weight.clone()], 4), hash(&[weight, buffer], 12));
}

#[test]
fn of_two_spellings_the_first_in_the_alphabet_counts() {
    for (first, second) in [
        ("language_model.model.norm.weight", "model.norm.weight"),
        ("model.norm.weight", "norm.weight"),
        ("model.model.norm.weight", "model.norm.weight"),
    ] {
        for names in [[(first, 1), (second, 2)], [(second, 2), (first, 1)]] {
            let tensors = Tensors::parse(Path::new("m"), vectors(&names)).unwrap();
            assert!(tensors.get("model.norm.weight", &[1]).is_ok(), "{names:?}");
            // The other one is left for exports.
            assert_eq!((tensors.len(), tensors.stored().count()), (1, 2));
        }
    }
}

#[test]
fn mapped_and_read_say_the_same() {
    let dir = shards(
        &[("model.safetensors", vectors(&[("model.norm.weight", 3)]))],
        "",
    );
    let mapped = Tensors::open(dir.path(), Access::Mapped).unwrap();
    let read = Tensors::open(dir.path(), Access::Read).unwrap();
    assert_eq!(mapped.content_hash(), read.content_hash());
    fs::write(dir.path().join("model.safetensors"), b"").unwrap();
    assert!(Tensors::open(dir.path(), Access::Mapped).is_err());
}

#[test]
fn shards_are_joined() {
    let index =
        r#"{"metadata":{"total_size":12},"weight_map":{"a":"1.safetensors","b":"2.safetensors"}}"#;
    let dir = shards(
        &[
            ("1.safetensors", vectors(&[("a", 1)])),
            ("2.safetensors", vectors(&[("b", 2)])),
        ],
        index,
    );
    for access in [Access::Mapped, Access::Read] {
        let tensors = Tensors::open(dir.path(), access).unwrap();
        assert_eq!(tensors.names().collect::<Vec<_>>(), ["a", "b"]);
        let one = Tensors::parse(Path::new("m"), vectors(&[("b", 2), ("a", 1)])).unwrap();
        assert_eq!(tensors.content_hash(), one.content_hash());
    }
}

#[test]
fn an_index_that_does_not_fit_its_shards_is_refused() {
    let message = |index: &str| {
        let dir = shards(&[("1.safetensors", vectors(&[("a", 1)]))], index);
        let error = Tensors::open(dir.path(), Access::Mapped).unwrap_err();
        error
            .to_string()
            .replace(&format!("{}/", dir.path().display()), "")
    };
    let index = "model.safetensors.index.json";
    assert_eq!(
        message(r#"{"weight_map":{"a":"1.safetensors","b":"2.safetensors"}}"#),
        format!(
            "{index} names the shard 2.safetensors, which is not beside it; fetch the missing file"
        )
    );
    let long = "x".repeat(300);
    assert_eq!(
        message(&format!(r#"{{"weight_map":{{"a":"\n{long}"}}}}"#)),
        format!(
            "{index} names the shard \\n{}…, which is not beside it; fetch the missing file",
            &long[..79]
        )
    );
    for name in [
        "../1.safetensors",
        "/etc/passwd",
        "..",
        "",
        "a/b",
        "./1.safetensors",
        "c:x",
    ] {
        assert_eq!(
            message(&format!(r#"{{"weight_map":{{"a":"{name}"}}}}"#)),
            format!(
                "{index}: {name} is not the name of a file beside the index; do not trust this checkpoint"
            )
        );
    }
    assert_eq!(
        message(r#"{"weight_map":{"a":1}}"#),
        format!("{index}: weight_map.a must be a file name, not 1")
    );
    assert_eq!(
        message("{}"),
        format!("{index}: weight_map must be an object, not left out")
    );
    assert!(message("{").starts_with(&format!("{index} is not valid JSON: ")));
}

/// The length of tensor `a`, which tells where it is from.
fn length_of_a(files: &[(&str, Bytes)], index: &str) -> usize {
    let dir = shards(files, index);
    let tensors = Tensors::open(dir.path(), Access::Read).unwrap();
    let (_, tensor) = tensors.iter().find(|(name, _)| *name == "a").unwrap();
    tensor.shape()[0]
}

#[test]
fn of_a_tensor_in_several_shards_the_last_counts() {
    let files = |first, second| {
        [
            ("1.safetensors", vectors(&[("a", first)])),
            ("2.safetensors", vectors(&[("a", second), ("b", 1)])),
        ]
    };
    // Whichever the index names: transformers takes from it which files there are, and no more.
    for place in ["1", "2"] {
        let index = format!(
            r#"{{"weight_map":{{"a":"{place}.safetensors","b":"2.safetensors","c":"1.safetensors"}}}}"#
        );
        assert_eq!(length_of_a(&files(1, 3), &index), 3);
        assert_eq!(length_of_a(&files(3, 1), &index), 1);
    }
    // A file that the index does not name is none of the checkpoint's.
    let index = r#"{"weight_map":{"a":"1.safetensors"}}"#;
    assert_eq!(length_of_a(&files(1, 3), index), 1);
}

#[test]
fn an_index_need_not_place_tensors_rightly() {
    let files = [
        ("1.safetensors", vectors(&[("a", 3), ("c", 1)])),
        ("2.safetensors", vectors(&[("b", 1)])),
    ];
    for index in [
        r#"{"weight_map":{"a":"2.safetensors","b":"1.safetensors"}}"#,
        r#"{"weight_map":{"b":"2.safetensors","x":"1.safetensors"}}"#,
        r#"{"metadata":{"total_size":"many"},"weight_map":{"b":"1.safetensors","y":"2.safetensors"}}"#,
    ] {
        assert_eq!(length_of_a(&files, index), 3, "{index}");
    }
}

#[test]
fn a_single_file_comes_before_an_index() {
    let files = [
        ("model.safetensors", vectors(&[("a", 1)])),
        ("1.safetensors", vectors(&[("a", 2)])),
    ];
    assert_eq!(
        length_of_a(&files, r#"{"weight_map":{"a":"1.safetensors"}}"#),
        1
    );
}

#[test]
fn a_directory_without_weights_says_what_there_is() {
    let message = |files: &[&str]| {
        let files: Vec<_> = files.iter().map(|name| (*name, Bytes::new())).collect();
        let dir = shards(&files, "");
        let error = Tensors::open(dir.path(), Access::Mapped).unwrap_err();
        error.to_string().replace(dir.path().to_str().unwrap(), "M")
    };
    let neither = "M has neither model.safetensors nor model.safetensors.index.json";
    let fetch = format!("{neither}; fetch the weights in safetensors form");
    assert_eq!(message(&[]), fetch);
    assert_eq!(message(&["config.json", "tokenizer.model"]), fetch);
    for file in [
        "model-00001-of-00001.safetensors",
        "model.fp16.safetensors",
        "gemma.safetensors",
    ] {
        assert_eq!(
            message(&["tokenizer.json", file]),
            format!(
                "{neither}, but {file}; if that is all of the weights, rename it to model.safetensors"
            )
        );
    }
    for file in [
        "pytorch_model.bin",
        "pytorch_model-00001-of-00002.bin",
        "gemma.gguf",
    ] {
        assert_eq!(
            message(&[file]),
            format!(
                "{neither}, but {file}; convert it to safetensors: load it with transformers and save_pretrained it"
            )
        );
    }
}

#[cfg(unix)]
#[test]
fn a_link_to_weights_that_are_gone_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("model.safetensors");
    std::os::unix::fs::symlink("../../blobs/none", &link).unwrap();
    assert_eq!(
        Tensors::open(dir.path(), Access::Mapped)
            .unwrap_err()
            .to_string(),
        format!(
            "{} is a link to a file that is not there; fetch it again",
            link.display()
        )
    );
}

#[test]
fn metadata_of_all_shards_is_kept() {
    let shard = |said: &str| file(&format!(r#"{{"__metadata__":{{{said}}}}}"#), 0);
    let dir = shards(
        &[
            ("1.safetensors", shard(r#""format":"pt","x":"1""#)),
            ("2.safetensors", shard(r#""x":"2","y":"3""#)),
        ],
        r#"{"weight_map":{"a":"1.safetensors","b":"2.safetensors"}}"#,
    );
    let tensors = Tensors::open(dir.path(), Access::Read).unwrap();
    let expected = [("format", "pt"), ("x", "2"), ("y", "3")];
    let expected = expected.map(|(key, value)| (key.to_owned(), value.to_owned()));
    assert_eq!(*tensors.metadata(), BTreeMap::from(expected));
}

#[test]
fn a_directory_in_the_place_of_weights_is_named() {
    for (name, index) in [
        ("model.safetensors", ""),
        ("1.safetensors", r#"{"weight_map":{"a":"1.safetensors"}}"#),
    ] {
        let dir = shards(&[], index);
        let path = dir.path().join(name);
        fs::create_dir(&path).unwrap();
        for access in [Access::Mapped, Access::Read] {
            let error = Tensors::open(dir.path(), access).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("cannot open {}: is a directory", path.display())
            );
        }
    }
}

#[test]
fn a_shards_name_is_shown_on_one_line() {
    let name = "1\u{1b}[2J.safetensors";
    let index = Path::new("index.json");
    let json = br#"{"weight_map":{"b":"1\u001b[2J.safetensors"}}"#;
    let none = |asked: &str| {
        assert_eq!(asked, name);
        Ok(None)
    };
    let error = Tensors::from_index(index, json, none);
    assert_eq!(
        error.unwrap_err().to_string(),
        "index.json names the shard 1\\u{1b}[2J.safetensors, which is not beside it; fetch the missing file"
    );
}

/// What the fuzz target does, on every prefix of and some bytes changed in a good file.
#[test]
fn damaged_files_never_panic() {
    let data = vectors(&[("a", 2), ("model.norm.weight", 1)]);
    for i in 0..data.len() {
        let _ = Tensors::parse(Path::new("x"), data.slice(..i));
        for byte in [b'0', b'9', b'-', b'"', b'[', b'}', 0, 0xff] {
            let mut damaged = data.to_vec();
            damaged[i] = byte;
            let _ = Tensors::parse(Path::new("x"), damaged.into());
        }
    }
}
