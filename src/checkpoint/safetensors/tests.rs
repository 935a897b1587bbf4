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
fn unsupported_dtypes_are_refused() {
    for (dtype, size) in [
        ("I64", 8),
        ("F8_E4M3", 1),
        ("U8", 1),
        ("BOOL", 1),
        ("F5_NEW", 1),
    ] {
        let header = format!("{{{}}}", entry("model.norm.weight", dtype, "[1]", 0, size));
        assert_eq!(
            message(file(&header, size)),
            format!(
                "m.safetensors: tensor model.norm.weight is {dtype}; weights must be F64, F32, F16 or BF16, so take an unquantised checkpoint"
            )
        );
    }
}

#[test]
fn two_spellings_of_one_tensor_are_refused() {
    assert_eq!(
        message(vectors(&[
            ("model.norm.weight", 1),
            ("language_model.model.norm.weight", 1)
        ])),
        "tensor model.norm.weight is stored twice, in m.safetensors and in m.safetensors; remove one"
    );
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
    assert_eq!(
        message(r#"{"weight_map":{"a":"1.safetensors","b":"1.safetensors"}}"#),
        format!(
            "{index} places tensor b in 1.safetensors, which does not hold it; index and shards do not belong together"
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

#[test]
fn a_tensor_in_two_shards_is_refused() {
    let dir = shards(
        &[
            ("1.safetensors", vectors(&[("a", 1)])),
            ("2.safetensors", vectors(&[("a", 1), ("b", 1)])),
        ],
        r#"{"weight_map":{"a":"1.safetensors","b":"2.safetensors"}}"#,
    );
    let error = Tensors::open(dir.path(), Access::Read).unwrap_err();
    assert_eq!(
        error
            .to_string()
            .replace(&format!("{}/", dir.path().display()), ""),
        "tensor a is stored twice, in 1.safetensors and in 2.safetensors; remove one"
    );
}

#[test]
fn a_directory_without_weights_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(
        Tensors::open(dir.path(), Access::Mapped)
            .unwrap_err()
            .to_string(),
        format!(
            "{} has neither model.safetensors nor model.safetensors.index.json; fetch the weights in safetensors form",
            dir.path().display()
        )
    );
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
    let message = |shard: Option<Bytes>| {
        let shard = |asked: &str| {
            assert_eq!(asked, name);
            Ok(shard.clone())
        };
        let error = Tensors::from_index(index, json, shard);
        error.unwrap_err().to_string()
    };
    assert_eq!(
        message(None),
        "index.json names the shard 1\\u{1b}[2J.safetensors, which is not beside it; fetch the missing file"
    );
    assert_eq!(
        message(Some(vectors(&[("a", 1)]))),
        "index.json places tensor b in 1\\u{1b}[2J.safetensors, which does not hold it; index and shards do not belong together"
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
