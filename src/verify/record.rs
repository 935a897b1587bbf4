//! The steps of a verification, and where they were computed.

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::{Error, Result};
use super::{Kind, Setting, Step, Summary};
use crate::model::Model;

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
