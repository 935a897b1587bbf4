//! Products whose activations were rounded to 8 bits as ggml rounds them are called so, and what else is wrong is still found.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::common::gguf::{TYPES, llama};
use crate::common::program;
use context_patch::Model;
use context_patch::compare::{Comparison, Recording, Report, Rules};
use context_patch::tensor::{Dtype, Storage, Tensor};
use context_patch::trace::Trace;
use half::f16;
use safetensors::SafeTensors;
use safetensors::tensor::{TensorView, serialize_to_file};
use tempfile::TempDir;

type Kind = (&'static str, u32, usize, usize, &'static [usize]);

/// What ggml rounds to for each of [`TYPES`].
const EXPECTED: [&str; 12] = [
    "Q8_0", "Q8_1", "Q8_0", "Q8_1", "Q8_0", "Q8_K", "Q8_K", "Q8_K", "Q8_K", "Q8_K", "Q8_0", "Q8_K",
];

/// What is recorded: all products, and all that they take in.
const RECORDED: [&str; 12] = [
    "*.input_layernorm",
    "*.q_proj",
    "*.k_proj",
    "*.v_proj",
    "*.mixed",
    "*.o_proj",
    "*.post_attention_layernorm",
    "*.gate_proj",
    "*.up_proj",
    "*.down_proj",
    "model.norm",
    "lm_head",
];

const TOKENS: u32 = 9;

/// How an engine rounds activations.
#[derive(Clone, Copy)]
struct Rounding {
    block: usize,
    /// The largest integer.
    most: f32,
    f16_scale: bool,
    /// Whether a block's sum, for offsets of the weight, is in f16.
    f16_sum: bool,
}

const Q8_0: Rounding = Rounding {
    block: 32,
    most: 127.0,
    f16_scale: true,
    f16_sum: true,
};

const Q8_K: Rounding = Rounding {
    block: 256,
    f16_scale: false,
    f16_sum: false,
    ..Q8_0
};

fn rounding(expected: &str) -> Rounding {
    if expected == "Q8_K" { Q8_K } else { Q8_0 }
}

/// A block of activations.
struct Block {
    d: f32,
    q: Vec<f32>,
    /// What offsets are multiplied with.
    sum: f32,
}

fn rounded(x: &[f32], rounding: Rounding) -> Vec<Block> {
    let blocks = x.chunks_exact(rounding.block).map(|block| {
        let largest = block.iter().fold(0f32, |max, x| max.max(x.abs()));
        let (scale, inverse) = match largest {
            0.0 => (0.0, 0.0),
            _ => (largest / rounding.most, rounding.most / largest),
        };
        let q = block.iter().map(|x| (x * inverse).round_ties_even());
        let q: Vec<_> = q.collect();
        let to = |f16: bool, x| if f16 { f16::from_f32(x).to_f32() } else { x };
        Block {
            d: to(rounding.f16_scale, scale),
            sum: to(rounding.f16_sum, scale * q.iter().sum::<f32>()),
            q,
        }
    });
    blocks.collect()
}

/// A row of a weight, and of Q4_1 and Q5_1 the offset of each 32 numbers.
struct Row {
    w: Vec<f32>,
    offsets: Vec<f32>,
}

impl Row {
    fn of(weight: &Tensor, row: usize) -> Self {
        let mut w = vec![0.0; weight.cols()];
        weight.read_row(row, &mut w);
        let blocks = weight
            .row_bytes(row)
            .chunks_exact(weight.storage().block().bytes);
        let offsets = match weight.storage() {
            // The second f16 of a block.
            Storage::Q4_1 | Storage::Q5_1 => {
                let bits = blocks.map(|block| f16::from_le_bytes([block[2], block[3]]));
                bits.map(f16::to_f32).collect()
            }
            _ => vec![],
        };
        Self { w, offsets }
    }

    /// w · x, summed block by block in f32.
    fn dot(&self, x: &[Block]) -> f32 {
        let mut sum = 0.0;
        for (i, (w, x)) in self.w.chunks(x[0].q.len()).zip(x).enumerate() {
            let offset = self.offsets.get(i).copied().unwrap_or(0.0);
            let terms = w.iter().zip(&x.q);
            let codes: f64 = terms
                .map(|(&w, &q)| f64::from(w - offset) * f64::from(q))
                .sum();
            sum += codes as f32 * x.d;
            sum += offset * x.sum;
        }
        sum
    }
}

/// Gives a number of the outcome of a map from the map's name, its rows, the number's place and the activations.
type Kernel<'k> = dyn Fn(&str, &[Row], usize, &[Block]) -> f32 + 'k;

/// A model, tokens and two recordings of them; one is in f64.
struct Bench {
    dir: TempDir,
    model: Model,
}

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

impl Bench {
    fn new(kind: Kind) -> Self {
        let dir = TempDir::new().unwrap();
        let file = dir.path().join("model.gguf");
        let mut model = llama(kind);
        for (name, _, _, bytes) in &mut model.tensors {
            // Scales of their own: quantised rows of the embedding alone would be ties by the dozen.
            if name.ends_with("norm.weight") {
                let scales = (0..256).map(|i| 1.0 + (0.618 * i as f32).fract());
                *bytes = scales.flat_map(f32::to_le_bytes).collect();
            }
        }
        std::fs::write(&file, model.bytes()).unwrap();
        let model = Model::open(file.to_str().unwrap()).unwrap();
        let bench = Self { dir, model };
        bench.record(Dtype::F64, "reference.safetensors");
        bench.record(Dtype::F32, "other.safetensors");
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn record(&self, dtype: Dtype, name: &str) {
        let ids: Vec<_> = (0..TOKENS).map(|i| (i * i * 7 + 3) % 96).collect();
        let trace = Trace::new(&self.model, dtype, &RECORDED.map(String::from), usize::MAX);
        trace
            .unwrap()
            .write(&self.path(name), &self.model, &ids)
            .unwrap();
    }

    /// Does every product again, from what is recorded of its input.
    fn products(&self, rounding: Rounding, kernel: &Kernel<'_>) {
        let product = |map: &str, x: &(Vec<usize>, Vec<f32>)| {
            let name = match map {
                "lm_head" => "model.embed_tokens.weight".into(),
                _ => format!("{map}.weight"),
            };
            let mut weights = self.model.checkpoint().tensors().iter();
            let (_, weight) = weights.find(|(found, _)| *found == name).unwrap();
            let rows: Vec<_> = (0..weight.rows()).map(|row| Row::of(weight, row)).collect();
            let x =
                x.1.chunks_exact(weight.cols())
                    .map(|x| rounded(x, rounding));
            let y = x.flat_map(|x| {
                let y = (0..rows.len()).map(|row| kernel(map, &rows, row, &x));
                y.collect::<Vec<_>>()
            });
            y.collect::<Vec<_>>()
        };
        self.change(|tensors| {
            let again = |tensors: &mut Tensors, map: &str, input: &str| {
                let y = product(map, &tensors[input]);
                tensors.get_mut(map).unwrap().1 = y;
            };
            for layer in ["model.layers.0", "model.layers.1"] {
                let point = |name: &str| format!("{layer}.{name}");
                for (map, input) in [
                    ("self_attn.q_proj", "input_layernorm"),
                    ("self_attn.k_proj", "input_layernorm"),
                    ("self_attn.v_proj", "input_layernorm"),
                    ("self_attn.o_proj", "self_attn.mixed"),
                    ("mlp.gate_proj", "post_attention_layernorm"),
                    ("mlp.up_proj", "post_attention_layernorm"),
                ] {
                    again(tensors, &point(map), &point(input));
                }
                let [(shape, gate), (_, up)] =
                    ["mlp.gate_proj", "mlp.up_proj"].map(|map| tensors[&point(map)].clone());
                let h = gate
                    .iter()
                    .zip(up)
                    .map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up);
                tensors.insert(point("mlp.product"), (shape, h.collect()));
                again(tensors, &point("mlp.down_proj"), &point("mlp.product"));
            }
            again(tensors, "lm_head", "model.norm");
        });
    }

    /// Rewrites what the other engine recorded.
    fn change(&self, change: impl FnOnce(&mut Tensors)) {
        let bytes = std::fs::read(self.path("other.safetensors")).unwrap();
        let recorded = SafeTensors::deserialize(&bytes)
            .unwrap()
            .tensors()
            .into_iter();
        let owned = recorded.map(|(name, view)| {
            let (fours, _) = view.data().as_chunks::<4>();
            let numbers = fours.iter().map(|&b| f32::from_le_bytes(b)).collect();
            (name, (view.shape().to_vec(), numbers))
        });
        let mut tensors = owned.collect();
        change(&mut tensors);
        let bytes = tensors.into_iter().map(|(name, (shape, numbers))| {
            let bytes: Vec<u8> = numbers.into_iter().flat_map(f32::to_le_bytes).collect();
            (name, shape, bytes)
        });
        let bytes: Vec<_> = bytes.collect();
        let views = bytes.iter().map(|(name, shape, bytes)| {
            (
                name,
                TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap(),
            )
        });
        serialize_to_file(views, None, &self.path("other.safetensors")).unwrap();
    }

    fn report(&self) -> Report {
        let open =
            |name| Recording::open(&self.path(name), &self.model, &Rules::default()).unwrap();
        let (reference, other) = (open("reference.safetensors"), open("other.safetensors"));
        let f32 = Some(Dtype::F32.into());
        let comparison = Comparison::new(&self.model, &reference, &other, f32, false).unwrap();
        comparison.run(|| ()).unwrap()
    }
}

/// The products of both layers and the logits.
fn is_product(name: &str) -> bool {
    name.ends_with("_proj") || name == "lm_head"
}

/// Asserts that the products are called by what was rounded, and nothing else is.
fn assert_called(report: &Report, expected: &str) {
    for row in &report.rows {
        let called = row.activations.map(|activations| activations.to_string());
        let expected = is_product(&row.name).then_some(expected);
        assert_eq!(called.as_deref(), expected, "{}", row.name);
    }
    assert_eq!(
        report
            .rows
            .iter()
            .filter(|row| is_product(&row.name))
            .count(),
        15
    );
}

/// As ggml does it.
fn right(_: &str, rows: &[Row], row: usize, x: &[Block]) -> f32 {
    rows[row].dot(x)
}

#[test]
fn every_type_is_called_by_what_ggml_rounds_to() {
    for (kind, expected) in TYPES.into_iter().zip(EXPECTED) {
        let bench = Bench::new(kind);
        bench.products(rounding(expected), &right);
        let report = bench.report();
        assert!(report.finding.is_none(), "{}: {:?}", kind.0, report.finding);
        assert_called(&report, expected);
    }
}

/// Exact products have nothing to call; other roundings than ggml's are found at the first product, and have no name.
#[test]
fn another_rounding_is_a_finding() {
    let seven_bits = |rounding| Rounding {
        most: 63.0,
        ..rounding
    };
    let to_128 = |rounding| Rounding {
        most: 128.0,
        ..rounding
    };
    let exact_scale = |rounding| Rounding {
        f16_scale: false,
        ..rounding
    };
    let exact_sum = |rounding| Rounding {
        f16_sum: false,
        ..rounding
    };
    for (kind, roundings) in [
        (
            TYPES[0],
            vec![seven_bits(Q8_0), to_128(Q8_0), exact_scale(Q8_0), Q8_K],
        ),
        (TYPES[1], vec![seven_bits(Q8_0), exact_sum(Q8_0)]),
        (TYPES[7], vec![seven_bits(Q8_K), to_128(Q8_K), Q8_0]),
    ] {
        let bench = Bench::new(kind);
        let exact = bench.report();
        assert!(exact.finding.is_none(), "{}: {:?}", kind.0, exact.finding);
        let called = |report: &Report| report.rows.iter().any(|row| row.activations.is_some());
        assert!(!called(&exact), "{}", kind.0);
        for (i, rounding) in roundings.into_iter().enumerate() {
            bench.products(rounding, &right);
            let report = bench.report();
            let finding = report.finding.as_ref().unwrap();
            let first = "model.layers.0.self_attn.q_proj";
            assert_eq!(finding.tensor, first, "{} {i}", kind.0);
            assert_eq!(finding.causes, []);
            assert!(!called(&report), "{} {i}", kind.0);
        }
    }
}

/// A kernel that is wrong in one product is found there, whatever the others are called.
#[test]
fn a_wrong_kernel_is_found_behind_the_rounding() {
    const WRONG: &str = "model.layers.1.mlp.up_proj";
    let exchanged = |map: &str, rows: &[Row], row: usize, x: &[Block]| match row {
        0 | 1 if map == WRONG => rows[1 - row].dot(x),
        _ => rows[row].dot(x),
    };
    // The first 32 numbers of every row are 1/16 too large.
    let scaled = |map: &str, rows: &[Row], row: usize, x: &[Block]| {
        let first = rows[row].w[..32]
            .iter()
            .zip(&x[0].q)
            .map(|(w, q)| w * q * x[0].d);
        let more = if map == WRONG {
            first.sum::<f32>() / 16.0
        } else {
            0.0
        };
        rows[row].dot(x) + more
    };
    for (kind, expected) in [0, 1, 7, 9].map(|i| (TYPES[i], EXPECTED[i])) {
        let bench = Bench::new(kind);
        let found = |kernel: &Kernel<'_>| {
            bench.products(rounding(expected), kernel);
            let report = bench.report();
            let finding = report.finding.unwrap();
            assert_eq!(finding.tensor, WRONG, "{}", kind.0);
            assert_eq!(finding.causes, []);
            let called = report.rows.iter().filter(|row| row.activations.is_some());
            assert_eq!(called.count(), 14, "{}", kind.0);
        };
        found(&exchanged);
        found(&scaled);
    }
}

/// What the program says, with its exit code.
fn compare(dir: &Path, options: &[&str]) -> String {
    let files = [
        "compare",
        "reference.safetensors",
        "other.safetensors",
        "--model",
        "model.gguf",
    ];
    let output = program(dir)
        .args(files)
        .args(["--dtype", "f32"])
        .args(options)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    format!(
        "exit code {:?}\n{}{}",
        output.status.code(),
        text(output.stdout),
        text(output.stderr)
    )
}

#[test]
fn the_program_says_so() {
    let bench = Bench::new(TYPES[7]);
    bench.products(Q8_K, &right);
    let dir = bench.dir.path();
    insta::assert_snapshot!("activations_q8", compare(dir, &[]));
    let exact = compare(dir, &["--exact-activations"]);
    assert!(exact.starts_with("exit code Some(1)"), "{exact}");
    let all = compare(dir, &["--all"]);
    let row = all
        .lines()
        .find(|line| line.starts_with("0.self_attn.q_proj"))
        .unwrap();
    assert!(row.ends_with("Q8_K"), "{all}");
    compare(dir, &["--json", "out.json"]);
    let json = std::fs::read(bench.path("out.json")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let mut rows = json["rows"].as_array().unwrap().iter();
    let head = rows.find(|row| row["name"] == "lm_head").unwrap();
    assert_eq!(head["activations"], "Q8_K");
    assert!(head["beyond"].is_null());
}
