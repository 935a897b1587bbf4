//! Known bugs recorded and looked for, as `trace --mutate` and `compare` do.

use std::path::Path;

use context_patch::Model;
use context_patch::compare::{Comparison, Recording, Report, Rules};
use context_patch::model::KnownBug;
use context_patch::tensor::Dtype;
use context_patch::trace::Trace;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A model, tokens, and the recording in f64 that others are held against.
pub struct Bench {
    model: Model,
    ids: Vec<u32>,
    globs: Vec<String>,
    dir: TempDir,
}

impl Bench {
    /// `globs`: the tensors to record; all where there are none.
    pub fn new(model: Model, ids: Vec<u32>, globs: &[String]) -> Self {
        let bench = Self {
            model,
            ids,
            globs: globs.to_vec(),
            dir: TempDir::new().unwrap(),
        };
        bench.record(&bench.model, Dtype::F64, &bench.ids, "reference");
        bench
    }

    fn record(&self, model: &Model, dtype: Dtype, ids: &[u32], name: &str) {
        let trace = Trace::new(model, dtype, &self.globs, usize::MAX).unwrap();
        trace
            .write(&self.dir.path().join(name), model, ids)
            .unwrap();
    }

    fn open(&self, name: &str) -> Recording {
        let path = self.dir.path().join(name);
        Recording::open(&path, &self.model, &Rules::default()).unwrap()
    }

    /// A recording in `dtype`, with a bug or without, held against the one in f64.
    pub fn report(&self, dtype: Dtype, bug: Option<KnownBug>) -> Report {
        let (mut model, mut ids) = (self.model.clone(), &self.ids[..]);
        if let Some(bug) = bug {
            bug.check(model.config(), dtype, ids.len()).unwrap();
            model = model.with_bug(bug);
            ids = bug.tokens(ids);
        }
        self.record(&model, dtype, ids, "other");
        let (reference, other) = (self.open("reference"), self.open("other"));
        let comparison = Comparison::new(&self.model, &reference, &other, None, false).unwrap();
        assert_eq!(comparison.dtype(), dtype.into());
        comparison.run(|| ()).unwrap()
    }

    /// Whether a bug can be seen here.
    pub fn shows(&self, bug: KnownBug, dtype: Dtype) -> bool {
        let why = bug.without_effect(self.model.config(), dtype, self.ids.len());
        why.is_none()
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
                assert!(
                    finding.tensor.ends_with(".self_attn.mixed") || finding.tensor == "lm_head"
                );
                enters.clone_from(&finding.tensor);
            }
            assert_eq!(finding.tensor, enters, "{bug} {dtype}");
            let causes: Vec<_> = finding.causes.iter().map(|cause| cause.name).collect();
            assert_eq!(causes, [bug.name()], "{dtype}");
        }
        shown
    }

    /// The tensor at which a bug enters.
    fn enters(&self, bug: KnownBug) -> String {
        let config = self.model.config();
        let first = |full: bool| {
            let mut layers = 0..config.num_hidden_layers;
            layers
                .find(|&layer| config.window(layer).is_none() == full)
                .unwrap()
        };
        let (layer, part) = match bug {
            KnownBug::EmbeddingUnscaled | KnownBug::EmbeddingScaleType | KnownBug::MissingBos => {
                return "model.embed_tokens".into();
            }
            KnownBug::NormWeight | KnownBug::NormRounded => (0, "input_layernorm"),
            KnownBug::NormAfterRope => (0, "self_attn.q_norm"),
            KnownBug::RopeInterleaved => (0, "self_attn.q_rope"),
            KnownBug::RopeLocalTheta | KnownBug::RopeNoFactor => (first(true), "self_attn.q_rope"),
            KnownBug::ScaleHeadDim | KnownBug::SoftCapping => (0, "self_attn.mixed"),
            KnownBug::WindowMinus1 | KnownBug::WindowPlus1 => (first(false), "self_attn.mixed"),
            KnownBug::Silu | KnownBug::GeluErf | KnownBug::GeluF16 => (0, "mlp.act_fn"),
        };
        format!("model.layers.{layer}.{part}")
    }
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
