//! What a verification is of.

use std::collections::HashSet;
use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::error::{Error, Result};
use super::{Keep, PROMPTS, Verification};
use crate::checkpoint;
use crate::kernels::Backend;
use crate::message::{hex, shown};
use crate::model::{EmbeddingScale, Inputs, Model};
use crate::patch::{ApplyMode, Method, Positions, Solver};
use crate::tensor::Dtype;
use crate::vision::{Picture, PictureRecord};

/// What a verification is of: all that its figures depend on, but for the machine where a backend promises no bits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Setting {
    /// What the model was opened as.
    pub model: String,
    /// The hash of its weights, [`Tensors::content_hash`](crate::checkpoint::Tensors::content_hash).
    pub model_hash: String,
    /// The SHA-256 of its config.json.
    pub config_hash: String,
    /// The rounding of the embedding's scale.
    pub embedding_scale: EmbeddingScale,
    /// The version of this crate.
    pub version: String,
    /// The prompts.
    pub prompts: Vec<String>,
    /// The token ids of each prompt.
    pub prompt_ids: Vec<Vec<u32>>,
    /// The pictures that are in every prompt, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<PictureRecord>,
    /// Whether crops of long pictures are in them, too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pan_and_scan: bool,
    /// Tokens to verify of each prompt.
    pub tokens: usize,
    /// What of the context stays.
    pub keep: Keep,
    /// The positions of the reduced pass.
    pub positions: Positions,
    /// [`Method::gain`], or [what does best](Method::gain()) for each kind.
    pub gain: Option<f64>,
    /// [`Method::layers`].
    pub layers: usize,
    /// [`Method::passes`].
    pub passes: usize,
    /// The rows of the table in order, each once.
    pub kinds: Vec<Kind>,
}

impl Setting {
    /// `prompts` in the given kinds on `model`, 20 tokens each, with every other choice as it is by default.
    ///
    /// # Errors
    ///
    /// Those of [`Checkpoint::tokenizer`](crate::Checkpoint::tokenizer) and
    /// [`Tokenizer::encode`](crate::checkpoint::Tokenizer::encode), and [`Error::Io`](crate::Error::Io).
    pub fn new(model: &Model, prompts: Vec<String>, kinds: Vec<Kind>) -> Result<Self> {
        let checkpoint = model.checkpoint();
        let tokenizer = checkpoint.tokenizer()?;
        let prompt_ids = prompts.iter().map(|prompt| tokenizer.encode(prompt));
        let prompt_ids = prompt_ids.collect::<checkpoint::Result<_>>()?;
        let config = Sha256::digest(checkpoint.file("config.json")?.unwrap_or_default());
        Ok(Self {
            model: checkpoint.name().into(),
            model_hash: checkpoint.tensors().content_hash(),
            config_hash: hex(&config),
            embedding_scale: model.embedding_scale(),
            version: env!("CARGO_PKG_VERSION").into(),
            prompts,
            prompt_ids,
            images: Vec::new(),
            pan_and_scan: false,
            tokens: 20,
            keep: Keep::default(),
            positions: Positions::Absolute,
            gain: None,
            layers: Method::LAYERS,
            passes: Method::PASSES,
            kinds,
        })
    }

    /// The command that runs it in one go. `FILE` stands for a file of the prompts where they are not the paper's.
    pub fn command(&self) -> String {
        let list = |each: fn(&Kind) -> String| {
            let mut names: Vec<_> = self.kinds.iter().map(each).collect();
            let mut seen = HashSet::new();
            names.retain(|name| seen.insert(name.clone()));
            names.join(",")
        };
        let mut command = format!(
            "context-patch verify --model {} --tokens {} --solver {} --dtype {} --apply {} --backend {} --keep {} \
             --positions {} --layers {} --passes {}",
            self.model,
            self.tokens,
            list(|kind| kind.solver.to_string()),
            list(|kind| kind.dtype.to_string()),
            list(|kind| kind.form.to_string()),
            list(|kind| kind.solved_on.to_string()),
            self.keep,
            self.positions,
            self.layers,
            self.passes,
        );
        if let Some(gain) = self.gain {
            command += &format!(" --gain {gain}");
        }
        if self.embedding_scale == EmbeddingScale::Bf16 {
            command += " --bf16-embedding-scale";
        }
        if self.prompts != PROMPTS {
            command += " --prompts FILE";
        }
        for image in &self.images {
            command += &format!(" --image {}", shown(&image.file));
        }
        if self.pan_and_scan {
            command += " --pan-and-scan";
        }
        command
    }

    /// How patches of a kind are solved and applied.
    pub fn method(&self, kind: Kind) -> Method {
        let best = Method::gain(kind.solver, kind.dtype);
        Method {
            solver: kind.solver,
            form: kind.form,
            gain: self.gain.unwrap_or(best),
            layers: self.layers,
            passes: self.passes,
        }
    }

    /// How many steps each prompt has in a kind: a span begins with the prompt's last token.
    pub fn steps(&self, kind: Kind) -> usize {
        match kind.solver {
            Solver::Span => self.tokens.saturating_add(1),
            _ => self.tokens,
        }
    }

    /// Whether every prompt can be verified, before any work; `pixel_values` are those of each prompt's images, where any has
    /// some.
    ///
    /// # Errors
    ///
    /// Those of [`Verification::check`].
    pub fn check(&self, model: &Model, pixel_values: &[Vec<&[f32]>]) -> Result<()> {
        let kinds = self.kinds.iter();
        let mut checks = kinds.map(|kind| self.verification(*kind, model));
        checks.try_for_each(|kind| {
            let mut prompts = 0..self.prompt_ids.len();
            prompts.try_for_each(|prompt| kind.check(self.inputs(prompt, pixel_values)))
        })
    }

    /// Whether `pictures` are those of the prompts, in order.
    ///
    /// # Errors
    ///
    /// [`Error::OtherPicture`] with the first that is not.
    pub fn check_pictures(&self, pictures: &[Picture]) -> Result<()> {
        let given: Vec<_> = pictures.iter().map(Picture::record).collect();
        let same = |at: &usize| {
            let hash = |records: &[PictureRecord]| Some(records.get(*at)?.sha256.clone());
            hash(&self.images) == hash(&given)
        };
        let shown = |record: Option<&PictureRecord>| {
            record.map_or_else(
                || "none".to_owned(),
                |record| format!("{record}, SHA-256 {}", record.sha256),
            )
        };
        match (0..given.len().max(self.images.len())).find(|at| !same(at)) {
            None => Ok(()),
            Some(at) => Err(Error::OtherPicture {
                number: at + 1,
                expected: shown(self.images.get(at)),
                found: shown(given.get(at)),
            }),
        }
    }

    /// A prompt's tokens and images.
    pub(super) fn inputs<'i>(
        &'i self,
        prompt: usize,
        pixel_values: &'i [Vec<&'i [f32]>],
    ) -> Inputs<'i> {
        Inputs {
            ids: &self.prompt_ids[prompt],
            pixel_values: pixel_values.get(prompt).map_or(&[], Vec::as_slice),
        }
    }

    /// Whether this setting, which the file `path` has, is `other`, the setting of `than`: whatever figures depend on. What
    /// the model is called is not, its hash is.
    ///
    /// # Errors
    ///
    /// [`Error::OtherSetting`] with the first difference.
    pub(super) fn check_same(&self, path: &Path, other: &Self, than: &str) -> Result<()> {
        let fields = self.fields().into_iter().zip(other.fields());
        match fields
            .into_iter()
            .find(|(found, expected)| found != expected)
        {
            None => Ok(()),
            Some(((field, found), (_, expected))) => Err(Error::OtherSetting {
                path: path.into(),
                than: than.into(),
                field,
                found: from_difference(&found, &expected),
                expected: from_difference(&expected, &found),
            }),
        }
    }

    /// Everything that figures depend on, under names for people.
    fn fields(&self) -> [(&'static str, String); 15] {
        let Self {
            model: _,
            model_hash,
            config_hash,
            embedding_scale,
            version,
            prompts,
            prompt_ids,
            images,
            pan_and_scan,
            tokens,
            keep,
            positions,
            gain,
            layers,
            passes,
            kinds,
        } = self;
        let kinds: Vec<_> = kinds.iter().map(Kind::to_string).collect();
        [
            ("the model's hash", model_hash.clone()),
            ("the hash of config.json", config_hash.clone()),
            ("the embedding's scale", name(embedding_scale)),
            ("the version", version.clone()),
            ("the list of prompts", name(prompts)),
            ("the prompts' tokens", name(prompt_ids)),
            ("the images", name(images)),
            ("--pan-and-scan", pan_and_scan.to_string()),
            ("--tokens", tokens.to_string()),
            ("--keep", keep.to_string()),
            ("--positions", positions.to_string()),
            (
                "--gain",
                gain.map_or("the default".into(), |gain| gain.to_string()),
            ),
            ("--layers", layers.to_string()),
            ("--passes", passes.to_string()),
            ("the list of kinds", kinds.join(", ")),
        ]
    }

    /// The protocol for a kind, on a model that is on the backend where patches are solved.
    pub fn verification<'m>(&self, kind: Kind, model: &'m Model) -> Verification<'m> {
        Verification {
            model,
            tokens: self.tokens,
            method: self.method(kind),
            keep: self.keep,
            positions: self.positions,
        }
    }
}

/// As the file has it.
fn name(field: &impl Serialize) -> String {
    serde_json::to_string(field).unwrap_or_default()
}

/// A long text from where it begins to differ from another.
fn from_difference(text: &str, other: &str) -> String {
    let mut pairs = text.chars().zip(other.chars());
    let same = pairs.position(|(a, b)| a != b).unwrap_or(0);
    match same.saturating_sub(10) {
        0 => text.into(),
        skip => std::iter::once('…')
            .chain(text.chars().skip(skip))
            .collect(),
    }
}

/// A row of a verification's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kind {
    /// How patches are solved.
    pub solver: Solver,
    /// The compute type.
    pub dtype: Dtype,
    /// How patches are applied.
    #[serde(rename = "apply")]
    pub form: ApplyMode,
    /// What multiplies matrices while they are solved.
    pub solved_on: Backend,
    /// What multiplies matrices where they are applied.
    pub applied_on: Backend,
}

impl Kind {
    /// All combinations in the order of a table, each once: under each solver, type and form the backends by themselves,
    /// then the ways from one to another.
    pub fn all(
        solvers: &[Solver],
        dtypes: &[Dtype],
        forms: &[ApplyMode],
        backends: &[Backend],
    ) -> Vec<Self> {
        let mut ways: Vec<_> = backends
            .iter()
            .flat_map(|&solved| backends.iter().map(move |&applied| (solved, applied)))
            .collect();
        ways.sort_by_key(|(solved, applied)| solved != applied);
        let mut kinds = Vec::new();
        for &solver in solvers {
            for &dtype in dtypes {
                for &form in forms {
                    for &(solved_on, applied_on) in &ways {
                        let kind = Self {
                            solver,
                            dtype,
                            form,
                            solved_on,
                            applied_on,
                        };
                        if !kinds.contains(&kind) {
                            kinds.push(kind);
                        }
                    }
                }
            }
        }
        kinds
    }

    /// Whether patches are solved on one backend and applied on another.
    pub fn crosses(self) -> bool {
        self.solved_on != self.applied_on
    }
}

/// The backend is not named where it is the native one by itself, which is what is meant where none is.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            solver,
            dtype,
            form,
            solved_on,
            applied_on,
        } = self;
        let backend = match (solved_on, applied_on) {
            (Backend::Native, Backend::Native) => String::new(),
            (solved, _) if !self.crosses() => format!(" {solved}"),
            (solved, applied) => format!(" {solved}→{applied}"),
        };
        f.pad(&format!("{solver} {dtype} {form}{backend}"))
    }
}
