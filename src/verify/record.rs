//! What a verification was of, where it ran, and every step of it.

use std::collections::HashSet;
use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Keep, PROMPTS, Step, Summary, Verification};
use crate::error::{Error, Result};
use crate::kernels::Backend;
use crate::model::{EmbeddingScale, Model};
use crate::patch::{Form, Method, Positions, Solver};
use crate::tensor::Dtype;

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
        let prompt_ids = prompt_ids.collect::<Result<_>>()?;
        let config = Sha256::digest(checkpoint.file("config.json")?.unwrap_or_default());
        Ok(Self {
            model: checkpoint.name().into(),
            model_hash: checkpoint.tensors().content_hash(),
            config_hash: config.iter().map(|b| format!("{b:02x}")).collect(),
            embedding_scale: model.embedding_scale(),
            version: env!("CARGO_PKG_VERSION").into(),
            prompts,
            prompt_ids,
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

    /// Whether every prompt can be verified, before any work.
    ///
    /// # Errors
    ///
    /// Those of [`Verification::check`].
    pub fn check(&self, model: &Model) -> Result<()> {
        let kinds = self.kinds.iter();
        let mut checks = kinds.map(|kind| self.verification(*kind, model));
        checks.try_for_each(|kind| self.prompt_ids.iter().try_for_each(|ids| kind.check(ids)))
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
    fn fields(&self) -> [(&'static str, String); 13] {
        let Self {
            model: _,
            model_hash,
            config_hash,
            embedding_scale,
            version,
            prompts,
            prompt_ids,
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
            ("the embedding's scale", format!("{embedding_scale:?}")),
            ("the version", version.clone()),
            ("the list of prompts", format!("{prompts:?}")),
            ("the prompts' tokens", format!("{prompt_ids:?}")),
            ("--tokens", tokens.to_string()),
            ("--keep", keep.to_string()),
            ("--positions", positions.to_string()),
            ("--gain", format!("{gain:?}")),
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
    pub form: Form,
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
        forms: &[Form],
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

/// A kind and its steps.
#[derive(Clone, Debug)]
pub struct Run {
    /// The kind.
    pub kind: Kind,
    /// By prompt and step, each once.
    pub steps: Vec<Step>,
}

/// What a step is to those that are there.
pub(super) enum Added {
    /// New; where its place is.
    New(usize),
    /// There, with the same figures.
    There,
    /// There, with other figures.
    Differs,
}

impl Run {
    /// The steps of a prompt.
    pub fn prompt(&self, prompt: usize) -> &[Step] {
        let start = self.steps.partition_point(|step| step.prompt < prompt);
        let rest = &self.steps[start..];
        &rest[..rest.partition_point(|step| step.prompt == prompt)]
    }

    /// How many steps of a prompt are there without a gap.
    pub fn done(&self, prompt: usize) -> usize {
        let steps = self.prompt(prompt);
        let gap = steps
            .iter()
            .enumerate()
            .position(|(i, step)| step.step != i);
        gap.unwrap_or(steps.len())
    }

    /// Looks a step up.
    pub(super) fn compare(&self, step: &Step) -> Added {
        match self.steps.binary_search_by_key(&key(step), key) {
            Err(at) => Added::New(at),
            Ok(at) if same(&self.steps[at], step) => Added::There,
            Ok(_) => Added::Differs,
        }
    }

    /// Brings steps that were added at the end in order, each once; gives one that is there with other figures.
    fn settle(&mut self) -> Result<(), Place> {
        self.steps.sort_by_key(key);
        let mut pairs = self.steps.windows(2);
        if let Some([a, _]) =
            pairs.find(|pair| key(&pair[0]) == key(&pair[1]) && !same(&pair[0], &pair[1]))
        {
            return Err(Place::new(self.kind, a));
        }
        self.steps.dedup_by_key(|step| key(step));
        Ok(())
    }
}

fn key(step: &Step) -> (usize, usize) {
    (step.prompt, step.step)
}

/// Whether two steps have the same figures, NaN among them.
fn same(a: &Step, b: &Step) -> bool {
    let json = |step| serde_json::to_string(step).ok();
    json(a) == json(b)
}

/// Which step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The kind.
    pub kind: Kind,
    /// The prompt, from 0.
    pub prompt: usize,
    /// The step, from 0.
    pub step: usize,
}

impl Place {
    pub(super) fn new(kind: Kind, step: &Step) -> Self {
        let Step { prompt, step, .. } = *step;
        Self { kind, prompt, step }
    }
}

/// Counted from 1.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (prompt, token) = (self.prompt + 1, self.step + 1);
        write!(f, "{}, prompt {prompt} token {token}", self.kind)
    }
}

/// With the [`Summary`] of the steps.
impl Serialize for Run {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Whole<'a> {
            #[serde(flatten)]
            kind: Kind,
            summary: Summary,
            steps: &'a [Step],
        }
        let whole = Whole {
            kind: self.kind,
            summary: Summary::new(&self.steps),
            steps: &self.steps,
        };
        whole.serialize(serializer)
    }
}

/// A machine that steps were computed on: for readers; no figure of the native backend depends on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// The instructions used, such as `avx2`.
    pub level: String,
    /// Threads.
    pub threads: usize,
    /// The architecture, such as `x86_64`.
    pub arch: String,
    /// The operating system, such as `linux`.
    pub os: String,
    /// The processor's name, where Linux says it.
    pub cpu: Option<String>,
}

impl Machine {
    /// This machine as it runs `model` on the thread pool of the caller.
    pub fn here(model: &Model) -> Self {
        let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let mut fields = cpus.lines().filter_map(|line| line.split_once(':'));
        let name = fields.find(|(field, _)| field.trim() == "model name");
        Self {
            level: model.level().to_string(),
            threads: rayon::current_num_threads(),
            arch: std::env::consts::ARCH.into(),
            os: std::env::consts::OS.into(),
            cpu: name.map(|(_, name)| name.trim().into()),
        }
    }
}

/// A verification, whole or on its way.
#[derive(Clone, Debug, Serialize)]
pub struct Record {
    /// What it is of.
    #[serde(flatten)]
    pub setting: Setting,
    /// Where its steps were computed.
    pub machines: Vec<Machine>,
    /// One for each of the setting's kinds, in the same order.
    pub runs: Vec<Run>,
}

impl Record {
    /// A verification that has not begun.
    pub fn new(setting: Setting, machines: Vec<Machine>) -> Self {
        let kinds = setting.kinds.iter();
        let runs = kinds.map(|&kind| Run {
            kind,
            steps: Vec::new(),
        });
        Self {
            runs: runs.collect(),
            setting,
            machines,
        }
    }

    /// Takes in the steps that a file has of the same verification.
    pub(super) fn join(&mut self, other: Self, path: &Path) -> Result<()> {
        for machine in other.machines {
            if !self.machines.contains(&machine) {
                self.machines.push(machine);
            }
        }
        for (run, other) in self.runs.iter_mut().zip(other.runs) {
            run.steps.extend(other.steps);
        }
        self.settle(path)
    }

    /// Brings steps that were added at the end in order, each once.
    pub(super) fn settle(&mut self, path: &Path) -> Result<()> {
        let settled = self.runs.iter_mut().try_for_each(Run::settle);
        settled.map_err(|place| Error::StepsDisagree {
            path: path.into(),
            step: place.to_string(),
        })
    }

    /// How many steps are missing, and the first of them.
    pub fn missing(&self) -> Option<(usize, Place)> {
        let (mut count, mut first) = (0usize, None);
        let prompts = self.setting.prompts.len();
        for run in &self.runs {
            let steps = self.setting.steps(run.kind);
            count = count.saturating_add(prompts.saturating_mul(steps) - run.steps.len());
            first = first.or_else(|| {
                let gap = (0..prompts).find(|&prompt| run.done(prompt) < steps)?;
                Some(Place {
                    kind: run.kind,
                    prompt: gap,
                    step: run.done(gap),
                })
            });
        }
        first.map(|first| (count, first))
    }
}
