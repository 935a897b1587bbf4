//! Known bugs recorded and looked for, as `trace --mutate` and `compare` do.

use std::path::Path;

use context_patch::Model;
use context_patch::compare::{Comparison, Recording, Report, Rules};
use context_patch::model::{Inputs, KnownBug};
use context_patch::tensor::Dtype;
use context_patch::trace::{Point, Trace, names};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A model, tokens, and the recording in f64 that others are held against.
pub struct Bench {
    model: Model,
    ids: Vec<u32>,
    /// Of each image among the tokens.
    pixels: Vec<Vec<f32>>,
    globs: Vec<String>,
    dir: TempDir,
}

impl Bench {
    /// `globs`: the tensors to record; all where there are none.
    pub fn new(model: Model, ids: Vec<u32>, globs: &[String]) -> Self {
        let text = Inputs::text(&ids);
        Self::of(model, text, globs)
    }

    /// The same for tokens with images.
    pub fn of(model: Model, inputs: Inputs<'_>, globs: &[String]) -> Self {
        let bench = Self {
            model,
            ids: inputs.ids.to_vec(),
            pixels: inputs.pixel_values.iter().map(|x| x.to_vec()).collect(),
            globs: globs.to_vec(),
            dir: TempDir::new().unwrap(),
        };
        bench.record(
            &bench.model,
            Dtype::F64,
            &bench.ids,
            &bench.pixels,
            "reference",
        );
        bench
    }

    fn record(&self, model: &Model, dtype: Dtype, ids: &[u32], pixels: &[Vec<f32>], name: &str) {
        let trace = Trace::new(model, dtype, &self.globs, usize::MAX).unwrap();
        let pixel_values: Vec<_> = pixels.iter().map(Vec::as_slice).collect();
        let inputs = Inputs {
            ids,
            pixel_values: &pixel_values,
        };
        trace
            .write(&self.dir.path().join(name), model, inputs)
            .unwrap();
    }

    fn open(&self, name: &str) -> Recording {
        let path = self.dir.path().join(name);
        Recording::open(&path, &self.model, &Rules::default()).unwrap()
    }

    /// A recording in `dtype`, with a bug or without, held against the one in f64.
    pub fn report(&self, dtype: Dtype, bug: Option<KnownBug>) -> Report {
        let (mut model, mut ids) = (self.model.clone(), &self.ids[..]);
        let mut pixels = self.pixels.clone();
        if let Some(bug) = bug {
            assert!(self.shows(bug, dtype));
            let config = model.checkpoint().image_processor().unwrap();
            let config = config.unwrap_or_default();
            for image in &mut pixels {
                *image = bug.pixels(&config, image).into_owned();
            }
            model = model.with_bug(bug);
            ids = bug.tokens(ids);
        }
        self.record(&model, dtype, ids, &pixels, "other");
        let (reference, other) = (self.open("reference"), self.open("other"));
        let comparison = Comparison::new(&self.model, &reference, &other, None, false).unwrap();
        assert_eq!(comparison.dtype(), dtype.into());
        comparison.run(|| ()).unwrap()
    }

    /// Whether a bug can be seen here.
    pub fn shows(&self, bug: KnownBug, dtype: Dtype) -> bool {
        let pixel_values: Vec<_> = self.pixels.iter().map(Vec::as_slice).collect();
        let inputs = Inputs {
            ids: &self.ids,
            pixel_values: &pixel_values,
        };
        bug.without_effect(&self.model, dtype, inputs).is_none()
    }

    /// Looks for each of `bugs` that can be seen: at its tensor, and by its name. Gives those that were found.
    pub fn find(&self, dtype: Dtype, bugs: &[KnownBug]) -> Vec<KnownBug> {
        let bugs = bugs.iter().copied();
        let shown: Vec<_> = bugs.filter(|&bug| self.shows(bug, dtype)).collect();
        for &bug in &shown {
            let report = self.report(dtype, Some(bug));
            let finding = report
                .finding
                .unwrap_or_else(|| panic!("{bug} {dtype}: not found"));
            let mut enters = self.enters(bug);
            let alone = self.model.config().window(0) == Some(1);
            if bug == KnownBug::SoftCapping && (alone || dtype == Dtype::Bf16) {
                // A cap of 50 does nothing to a score that is alone, nor to one so small that bf16 rounds it away; then
                // the logits' cap of 30 is what there is.
                assert!(finding.tensor.ends_with(".mixed") || finding.tensor == "lm_head");
                enters.clone_from(&finding.tensor);
            }
            if bug == KnownBug::NormEps {
                // ε does nothing to numbers that are large.
                assert!(is_norm(&finding.tensor), "{}", finding.tensor);
                enters.clone_from(&finding.tensor);
            }
            assert_eq!(finding.tensor, enters, "{bug} {dtype}");
            let causes: Vec<_> = finding.causes.iter().map(|cause| cause.name).collect();
            assert_eq!(causes, [bug.name()], "{dtype}");
        }
        shown
    }

    /// Every name of a recording.
    fn names(&self) -> Vec<String> {
        let points = match &self.pixels[..] {
            [] => Point::all(&self.model),
            _ => Point::with_images(&self.model).unwrap(),
        };
        points.into_iter().map(|point| point.name).collect()
    }

    /// The tensor at which a bug enters.
    fn enters(&self, bug: KnownBug) -> String {
        let names = match bug {
            // What the vision part has as well.
            KnownBug::NormWeight
            | KnownBug::NormRounded
            | KnownBug::NormRoundedOnce
            | KnownBug::NormEps
            | KnownBug::QkvBiasMissing
            | KnownBug::KeyBiasMissing
            | KnownBug::Silu
            | KnownBug::GeluErf
            | KnownBug::GeluTanh
            | KnownBug::GeluF16 => self.names(),
            _ => names(&self.model),
        };
        let first = |condition: &dyn Fn(&str) -> bool| {
            let found = names.iter().find(|name| condition(name));
            found
                .unwrap_or_else(|| panic!("{bug} enters nowhere"))
                .clone()
        };
        let ends = |parts: &[&str]| first(&|name| parts.contains(&last_part(name)));
        let config = self.model.config();
        let in_layer = |condition: &dyn Fn(Option<usize>) -> bool, part: &str| {
            let mut layers = 0..config.num_hidden_layers;
            let layer = layers
                .find(|&layer| condition(config.window(layer)))
                .unwrap();
            first(&|name| name.contains(&format!(".{layer}.")) && last_part(name) == part)
        };
        match bug {
            KnownBug::PixelsBgr | KnownBug::PixelsClip => "pixel_values".into(),
            KnownBug::ImagesScaled => "inputs_embeds".into(),
            KnownBug::ImagesCausal => ends(&["mixed"]),
            KnownBug::EmbeddingUnscaled | KnownBug::EmbeddingScaleType | KnownBug::MissingBos => {
                names[0].clone()
            }
            KnownBug::PositionsPlus1 | KnownBug::PositionsPlus2 => ends(&["wpe"]),
            KnownBug::NormWeight
            | KnownBug::NormRounded
            | KnownBug::NormRoundedOnce
            | KnownBug::NormEps => first(&is_rms_norm),
            KnownBug::BranchNormShared => ends(&["ln_mlp"]),
            KnownBug::QkPermuted | KnownBug::QkvBiasMissing => {
                ends(&["q_proj", "c_attn", "query_key_value"])
            }
            KnownBug::KeyBiasMissing => ends(&["k_proj", "c_attn", "query_key_value"]),
            KnownBug::QkvOrder => ends(&["q_rope", "mixed"]),
            KnownBug::NormAfterRope => ends(&["q_norm"]),
            KnownBug::RopeInterleaved
            | KnownBug::RopeHalves
            | KnownBug::RopeWholeHead
            | KnownBug::RopeDefaultTheta => ends(&["q_rope"]),
            KnownBug::RopeLocalTheta | KnownBug::RopeNoFactor => {
                in_layer(&|window| window.is_none(), "q_rope")
            }
            KnownBug::ScaleHeadDim | KnownBug::ScaleHidden => {
                in_layer(&|window| window != Some(1), "mixed")
            }
            KnownBug::SoftCapping | KnownBug::SoftCappingMissing => ends(&["mixed"]),
            KnownBug::WindowMinus1 | KnownBug::WindowPlus1 | KnownBug::WindowMissing => {
                in_layer(&|window| window.is_some(), "mixed")
            }
            KnownBug::WindowEverywhere => in_layer(&|window| window.is_none(), "mixed"),
            KnownBug::Silu | KnownBug::GeluErf | KnownBug::GeluTanh | KnownBug::GeluF16 => {
                ends(&["act_fn"])
            }
            KnownBug::GatesUnnormalised => ends(&["block_sparse_moe"]),
            KnownBug::HeadTied => "lm_head".into(),
        }
    }
}

fn last_part(name: &str) -> &str {
    name.rsplit('.').next().unwrap()
}

fn is_norm(name: &str) -> bool {
    let part = last_part(name);
    part.contains("norm") || part.starts_with("ln_")
}

/// The vision tower has LayerNorms.
fn is_rms_norm(name: &str) -> bool {
    is_norm(name) && !name.contains("vision_tower")
}

/// A model as it is, but with a factor of RoPE and an attention scale that is not head_dim, as larger ones have.
pub fn with_factor_and_scalar(dir: &Path) -> Model {
    let copy = TempDir::new().unwrap();
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() != "config.json" {
            let from = entry.path().canonicalize().unwrap();
            std::os::unix::fs::symlink(from, copy.path().join(entry.file_name())).unwrap();
        }
    }
    let config = std::fs::read(dir.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    config["query_pre_attn_scalar"] = json!(168);
    match config.get_mut("rope_parameters") {
        Some(parameters) => {
            let full = &mut parameters["full_attention"];
            full["rope_type"] = json!("linear");
            full["factor"] = json!(8.0);
        }
        None => config["rope_scaling"] = json!({"rope_type": "linear", "factor": 8.0}),
    }
    std::fs::write(copy.path().join("config.json"), config.to_string()).unwrap();
    Model::open(copy.path().to_str().unwrap()).unwrap()
}
