//! Recordings of other engines: every kind of file, name and layout word, and everything that can be wrong with them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use crate::common::open;
use bytes::Bytes;
use context_patch::Model;
use context_patch::checkpoint::{Config, TensorData, write_safetensors};
use context_patch::compare::{Point, Recording, Result, Rules};
use context_patch::tensor::{Dtype, Storage};
use context_patch::trace::{Trace, names};
use safetensors::tensor::{Dtype as Stored, SafeTensors, TensorView, serialize};
use sha2::{Digest, Sha256};

const TOKENS: usize = 5;
const Q: &str = "model.layers.0.self_attn.q_proj";

fn model() -> Model {
    open("checkpoints/grouped-queries")
}

fn config() -> Config {
    model().checkpoint().config().clone()
}

fn point(name: &str) -> Point {
    let all = Point::all(&model());
    all.into_iter().find(|point| point.name == name).unwrap()
}

/// Numbers that tell row and column.
fn number(row: usize, col: usize) -> f32 {
    (row * 1000 + col) as f32
}

/// Row-major numbers of `rows` tokens.
fn plain(rows: usize, cols: usize) -> Vec<f32> {
    (0..rows)
        .flat_map(|r| (0..cols).map(move |c| number(r, c)))
        .collect()
}

fn bytes(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// A safetensors file in F32.
fn file(tensors: &[(&str, &[usize], &[f32])]) -> Bytes {
    let stored: Vec<_> = tensors.iter().map(|t| (t.0, t.1, bytes(t.2))).collect();
    let views = stored.iter().map(|(name, shape, data)| {
        (
            *name,
            TensorView::new(Stored::F32, shape.to_vec(), data).unwrap(),
        )
    });
    serialize(views, None).unwrap().into()
}

/// A `.npy` file.
fn npy(descr: &str, order: &str, shape: &[usize], data: &[u8]) -> Vec<u8> {
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': (");
    for axis in shape {
        write!(header, "{axis}, ").unwrap();
    }
    header += "), }\n";
    let length = u16::try_from(header.len()).unwrap().to_le_bytes();
    [b"\x93NUMPY\x01\x00", &length[..], header.as_bytes(), data].concat()
}

fn recording(data: &Bytes, map: &str) -> Result<Recording> {
    let rules = Rules::parse(Path::new("engine.map"), map.as_bytes())?;
    Recording::parse(Path::new("engine.safetensors"), data, &model(), &rules)
}

/// The error's one line, which has all `parts`.
fn refused<T: std::fmt::Debug>(result: Result<T>, parts: &[&str]) {
    let error = result.unwrap_err().to_string();
    assert_eq!(error.lines().count(), 1, "{error}");
    for part in parts {
        assert!(error.contains(part), "{part}: {error}");
    }
}

/// Asserts that `name` reads as `number` says.
fn reads(recording: &Recording, name: &str) -> bool {
    let matrix = recording.read(name).unwrap().unwrap();
    assert_eq!([matrix.rows(), matrix.cols()], [TOKENS, point(name).width]);
    let mut rows = matrix.iter_rows().enumerate();
    rows.all(|(r, row)| (0..row.len()).all(|c| row[c] == f64::from(number(r, c))))
}

#[test]
fn our_own_trace_comes_back() {
    let model = model();
    let ids = [1, 2, 3, 4, 5, 6];
    let folder = tempfile::tempdir().unwrap();
    for dtype in [Dtype::F64, Dtype::F32, Dtype::Bf16] {
        let trace = Trace::new(&model, dtype, &[], 4).unwrap();
        let path = folder.path().join(format!("{dtype}.safetensors"));
        trace.write(&path, &model, &ids).unwrap();
        let recording = Recording::open(&path, &model, &Rules::default()).unwrap();
        assert_eq!(recording.names().len(), names(&model).len());
        assert!(names(&model).iter().all(|name| recording.contains(name)));
        assert_eq!((recording.tokens(), recording.ids()), (4, Some(&ids[..])));
        assert_eq!(recording.dtype(), Some(dtype.into()));
        let hash = model.checkpoint().tensors().content_hash();
        assert_eq!(recording.model_hash(), Some(hash.as_str()));
        assert!(recording.aside().is_empty() && recording.model().is_some());
        for (name, shape) in trace.shapes(&model, ids.len()) {
            let matrix = recording.read(&name).unwrap().unwrap();
            assert_eq!([matrix.rows(), matrix.cols()], shape, "{name}");
        }
        assert!(recording.read("model.layers.99").unwrap().is_none());
    }
}

/// Two machines are compared by these: what is hashed is what would be written, and another bit is another hash.
#[test]
fn hashes_are_those_of_what_is_written() {
    let (model, ids) = (model(), [3, 1, 4, 1, 5]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("trace.safetensors");
    for dtype in [Dtype::F64, Dtype::F32, Dtype::Bf16] {
        let trace = Trace::new(&model, dtype, &[], 4).unwrap();
        let hashes = trace.hashes(&model, &ids).unwrap();
        trace.write(&file, &model, &ids).unwrap();
        let bytes = fs::read(&file).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(hashes.len(), tensors.len());
        for (name, hash) in &hashes {
            let written = Sha256::digest(tensors.tensor(name).unwrap().data());
            let written: String = written.iter().map(|b| format!("{b:02x}")).collect();
            assert_eq!(*hash, written, "{name}");
        }
        let others = trace.hashes(&model, &[3, 1, 4, 1, 6]).unwrap();
        let different = hashes.iter().zip(&others).filter(|(a, b)| a != b);
        assert_eq!(different.count(), hashes.len());
    }
}

#[test]
fn every_layout_is_read() {
    let config = config();
    let (heads, d) = (config.num_attention_heads, config.head_dim);
    let width = heads * d;
    let at = plain(TOKENS, width);
    let pick = |f: &dyn Fn(usize, usize) -> usize, n: usize| -> Vec<f32> {
        (0..TOKENS * n).map(|i| f(i, n)).map(|i| at[i]).collect()
    };
    let heads_first = pick(
        &|i, _| i / d % TOKENS * width + i / (TOKENS * d) * d + i % d,
        width,
    );
    let transposed = pick(&|i, _| i % TOKENS * width + i / TOKENS, width);
    let half = |j: usize| j / 2 + j % 2 * (d / 2);
    let interleaved = pick(&|i, n| i / n * n + i % n / d * d + half(i % d), width);
    let mut fused = vec![-1.0; TOKENS * (width + 7)];
    for row in 0..TOKENS {
        fused[row * (width + 7) + 3..][..width].copy_from_slice(&at[row * width..][..width]);
    }
    let rule = |words: &str| format!("q.{{i}} = model.layers.{{i}}.self_attn.q_proj {words}");
    let columns = format!("columns 3..{}", width + 3);
    let cases: [(&str, &[usize], &[f32]); 9] = [
        ("", &[TOKENS, width], &at),
        ("", &[1, TOKENS, width], &at),
        ("", &[1, TOKENS, heads, d], &at),
        ("tokens-first", &[TOKENS, heads, d], &at),
        ("", &[heads, TOKENS, d], &heads_first),
        ("heads-first", &[1, heads, TOKENS, d], &heads_first),
        ("transposed", &[width, TOKENS], &transposed),
        ("interleaved", &[TOKENS, width], &interleaved),
        (&columns, &[TOKENS, width + 7], &fused),
    ];
    for (words, shape, numbers) in cases {
        let file = file(&[("q.0", shape, numbers)]);
        let read = recording(&file, &rule(words)).unwrap();
        assert!(reads(&read, Q), "{words} {shape:?}");
        // The control: the same numbers read another way.
        if shape.len() == 2 && shape[1] == width {
            let other = if words == "interleaved" {
                ""
            } else {
                "interleaved"
            };
            assert!(!reads(&recording(&file, &rule(other)).unwrap(), Q));
        }
    }
    // Both readings fit: which one only a rule can say.
    let square = plain(heads, width);
    let file = file(&[("q.0", &[heads, heads, d], &square)]);
    refused(
        recording(&file, &rule("")),
        &["q.0", "heads-first", "--map"],
    );
    let first = recording(&file, &rule("tokens-first")).unwrap();
    let second = recording(&file, &rule("heads-first")).unwrap();
    let [a, b] = [first, second].map(|r| r.read(Q).unwrap().unwrap().into_vec());
    assert!(a.iter().map(|&x| x as f32).eq(square) && a != b);
}

#[test]
fn arrays_of_numpy_are_read() {
    let width = config().hidden_size;
    let numbers = plain(TOKENS, width);
    let columns: Vec<f32> = (0..TOKENS * width)
        .map(|i| number(i % TOKENS, i / TOKENS))
        .collect();
    let ids: Vec<u8> = (7..12_i64).flat_map(i64::to_le_bytes).collect();
    let files = [
        (
            "l_out-0.npy",
            npy("<f4", "False", &[TOKENS, width], &bytes(&numbers)),
        ),
        (
            "l_out-1.npy",
            npy("<f4", "True", &[TOKENS, width], &bytes(&columns)),
        ),
        ("ids.npy", npy("<i8", "False", &[5], &ids)),
        ("node_3.npy", npy("|O", "False", &[1], b"pickle")),
    ];
    let folder = tempfile::tempdir().unwrap();
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let stored = zip::write::SimpleFileOptions::default()
        .compression_method(zip::CompressionMethod::Stored)
        .large_file(true);
    for (name, data) in &files {
        fs::write(folder.path().join(name), data).unwrap();
        archive.start_file(*name, stored).unwrap();
        std::io::Write::write_all(&mut archive, data).unwrap();
    }
    fs::write(folder.path().join("notes.txt"), "no array").unwrap();
    let archive = archive.finish().unwrap().into_inner();
    let path = folder.path().join("engine.npz");
    fs::write(&path, &archive).unwrap();
    for path in [folder.path(), &path] {
        let recording = Recording::open(path, &model(), &Rules::default()).unwrap();
        assert!(reads(&recording, "model.layers.0") && reads(&recording, "model.layers.1"));
        assert_eq!(recording.ids(), Some(&[7, 8, 9, 10, 11][..]));
        let aside = recording.aside().iter().map(|aside| aside.name.as_str());
        assert!(aside.eq(["node_3"]));
    }
    for cut in [archive.len() - 1, archive.len() / 2, 3] {
        fs::write(&path, &archive[..cut]).unwrap();
        refused(
            Recording::open(&path, &model(), &Rules::default()),
            &["engine.npz"],
        );
    }
}

#[test]
fn files_of_torch_save_are_named() {
    for begin in [&b"PK\x03\x04"[..], b"\x80\x02\x8a\x0a"] {
        let data = Bytes::from([begin, &[0; 40]].concat());
        refused(
            recording(&data, ""),
            &["torch.save", "safetensors.torch.save_file"],
        );
    }
}

/// What hooks record beside tensors of known names and types.
#[test]
fn types_that_are_not_read_are_named_where_the_name_is_known() {
    let shape = [TOKENS, config().hidden_size];
    let count = shape[0] * shape[1];
    for (stored, size, name) in [
        (Stored::F8_E4M3, 1, "F8_E4M3"),
        (Stored::F8_E5M2, 1, "F8_E5M2"),
        (Stored::I64, 8, "I64"),
        (Stored::BOOL, 1, "BOOL"),
    ] {
        let data = vec![0; count * size];
        let view = || TensorView::new(stored, shape.to_vec(), &data).unwrap();
        let file = serialize([("model.norm", view())], None).unwrap();
        refused(recording(&file.into(), ""), &["model.norm", name, "F16"]);
        // Of an unknown name it is only listed.
        let norm = bytes(&plain(shape[0], shape[1]));
        let norm = TensorView::new(Stored::F32, shape.to_vec(), &norm).unwrap();
        let file = serialize([("mask", view()), ("model.norm", norm)], None).unwrap();
        let read = recording(&file.into(), "").unwrap();
        assert_eq!(read.aside()[0].name, "mask");
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.norm.npy");
    for descr in [">f4", "|O", "|V2", "<i8", "<c8"] {
        fs::write(&path, npy(descr, "False", &shape, &vec![0; 8 * count])).unwrap();
        refused(
            Recording::open(&path, &model(), &Rules::default()),
            &[descr, "little-endian"],
        );
    }
}

/// One axis for the batch, and one point under several names of which one is enough.
#[test]
fn what_hooks_on_every_module_write_is_read() {
    let config = config();
    let width = config.hidden_size;
    let numbers = plain(TOKENS, width);
    let batch = [1, TOKENS, width];
    let last = format!("hidden_states.{}", config.num_hidden_layers);
    let tensors: Vec<(&str, &[usize], &[f32])> = [
        "_orig_mod.model.layers.0.mlp",
        "module.model.layers.0.self_attn.0",
        "model.layers.0.output.0",
        "hidden_states.0",
        "hidden_states.1",
        "model.layers[0].pre_feedforward_layernorm.input",
        last.as_str(),
    ]
    .map(|name| (name, &batch[..], &numbers[..]))
    .into();
    let read = recording(&file(&tensors), "").unwrap();
    let want = [
        "model.embed_tokens",
        "model.layers.0",
        "model.layers.0.mlp.down_proj",
        "model.layers.0.residual_mid",
        "model.layers.0.self_attn.o_proj",
        "model.norm",
    ];
    assert!(
        read.names().eq(want),
        "{:?}",
        read.names().collect::<Vec<_>>()
    );
    assert!(want.iter().all(|name| reads(&read, name)));
    // The layer's own output counts, and not what is only as much as that.
    assert_eq!(
        read.stored_name("model.layers.0"),
        Some("model.layers.0.output.0")
    );
    assert_eq!(read.aside().len(), 1);
    assert!(read.aside()[0].spare && read.aside()[0].name == "hidden_states.1");
    // A name that may mean a point, and a shape that does not.
    let logits = plain(1, 3);
    let norm = ("model.norm", &batch[..], &numbers[..]);
    let read = recording(&file(&[("logits", &[1, 3], &logits), norm]), "").unwrap();
    assert!(read.aside()[0].reason.contains("and lm_head would be ["));
}

#[test]
fn bad_tensors_are_refused() {
    let width = config().hidden_size;
    let shape = [TOKENS, width];
    let numbers = plain(TOKENS, width);
    let good = ("model.layers.0", &shape[..], &numbers[..]);
    assert!(recording(&file(&[good]), "").is_ok());
    let wide = plain(TOKENS, width + 1);
    refused(
        recording(&file(&[("l_out-0", &[TOKENS, width + 1], &wide)]), ""),
        &["l_out-0", "model.layers.0"],
    );
    refused(
        recording(&file(&[good, ("l_out-0", &shape, &numbers)]), ""),
        &["l_out-0", "model.layers.0"],
    );
    refused(
        recording(&file(&[("l_out-99", &shape, &numbers)]), ""),
        &["l_out-99", "layer 99"],
    );
    refused(
        recording(
            &file(&[("x", &shape, &numbers), ("y", &shape, &numbers)]),
            "",
        ),
        &["x, y", "--map"],
    );
    refused(
        recording(
            &file(&[good, ("l_out-1", &[4, width], &plain(4, width))]),
            "",
        ),
        &["l_out-1", "4 tokens", "has 5"],
    );
    let fewer = file(&[good, ("result_norm", &[1, width], &plain(1, width))]);
    assert_eq!(recording(&fewer, "").unwrap().tokens(), TOKENS);
    let cut = file(&[good]);
    refused(
        recording(&cut.slice(..cut.len() - 1), ""),
        &["engine.safetensors"],
    );
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut numbers = numbers.clone();
        numbers[2 * width + 3] = bad;
        let opened = recording(&file(&[("l_out-0", &shape, &numbers)]), "").unwrap();
        refused(
            opened.read("model.layers.0"),
            &["l_out-0", "token 2, column 3"],
        );
    }
    let integers = TensorView::new(Stored::I64, vec![1, 1], &[0; 8]).unwrap();
    let whole: Bytes = serialize([("l_out-0", integers.clone())], None)
        .unwrap()
        .into();
    refused(recording(&whole, ""), &["l_out-0", "I64"]);
}

#[test]
fn bad_rules_are_refused() {
    let width = config().hidden_size;
    let file = file(&[("x", &[TOKENS, width], &plain(TOKENS, width))]);
    let good = "# ours\n\nx = model.layers.0  # the first\n";
    assert!(reads(&recording(&file, good).unwrap(), "model.layers.0"));
    for (map, parts) in [
        ("y = model.layers.0", &["engine.map, line 1", "y"][..]),
        ("\nx", &["line 2, column 2"]),
        ("= model.norm", &["line 1, column 1"]),
        ("x =", &["line 1, column 4"]),
        ("x = model.layer.0", &["line 1, column 5", "model.layer.0"]),
        ("x.{i} = model.norm", &["column 9", "{i}"]),
        ("x = model.layers.{i}", &["column 5", "{i}"]),
        ("x = model.norm sideways", &["column 16", "sideways"]),
        ("x = model.norm columns", &["columns"]),
        ("x = model.norm columns 4..4", &["column 24", "4..4"]),
        ("x = model.norm transposed transposed", &["column 27"]),
        ("x = model.norm interleaved", &["column 16", "q and k"]),
        ("x = model.norm columns 0..3", &["the rule names 3"]),
    ] {
        refused(recording(&file, map), parts);
    }
    let path = Path::new("engine.map");
    refused(
        Rules::parse(path, b"\xffx = model.norm"),
        &["line 1, column 1", "UTF-8"],
    );
}

#[test]
fn stored_types_are_widened_exactly() {
    let width = config().hidden_size;
    let numbers = [0.5, -1.25, 3.0].into_iter().cycle().take(width);
    let numbers: Vec<f64> = numbers.collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    for storage in [Storage::F64, Storage::F32, Storage::F16, Storage::Bf16] {
        let tensor =
            context_patch::tensor::Tensor::from_f64(storage, vec![1, width], &numbers).unwrap();
        let data = TensorData {
            storage,
            shape: vec![1, width],
            bytes: tensor.bytes().into(),
        };
        let tensors = BTreeMap::from([("result_norm".to_owned(), data)]);
        write_safetensors(&path, &BTreeMap::new(), &tensors).unwrap();
        let recording = Recording::open(&path, &model(), &Rules::default()).unwrap();
        assert_eq!(
            recording.read("model.norm").unwrap().unwrap().into_vec(),
            numbers,
            "{storage}"
        );
    }
}
