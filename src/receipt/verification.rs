//! Receipts of verifications.

use std::io::Write as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::same::{hash_of_file, of_model, of_pictures, pixel_values, slices};
use super::sealed::{Sealed, as_json};
use super::{Difference, Error, Result, What, sha256};
use crate::kernels::Backend;
use crate::model::Model;
use crate::output::write_file;
use crate::verify::{Kind, Machine, Place, Record, Setting, Shard, campaign};
use crate::vision::{Picture, PixelValues};

/// What a verification was of, and a hash of every token's logits: the fields of its JSON file, which has SHA-256 of each
/// as compact JSON under `hashes`, too.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VerificationReceipt {
    /// SHA-256 of tokenizer.json.
    pub tokenizer: String,
    /// What the verification is of, with the hashes of weights and config.json.
    pub setting: Setting,
    /// For each of the setting's kinds, prompts and tokens: SHA-256 of the token before (in hexadecimal, nothing for the first) and
    /// its [`Step::logits`](crate::verify::Step::logits).
    pub steps: Vec<Vec<Vec<String>>>,
}

impl VerificationReceipt {
    /// The receipt of a verification that is done.
    ///
    /// # Errors
    ///
    /// [`Error::Backend`] for one whose bits depend on the machine, [`Error::Unfinished`] for one that is not done, and those
    /// of reading the checkpoint's files.
    pub fn new(model: &Model, record: &Record) -> Result<Self> {
        refuse_inexact(&record.setting)?;
        if let Some((missing, first)) = record.missing() {
            return Err(Error::Unfinished { missing, first });
        }
        Ok(Self {
            tokenizer: hash_of_file(model, "tokenizer.json")?,
            setting: record.setting.clone(),
            steps: chains(record),
        })
    }

    /// Writes the file.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]; a file that was there stays as it was.
    pub fn write(&self, path: &Path) -> Result<()> {
        let json = self.sealed();
        Ok(write_file(path, |out| out.write_all(json.as_bytes()))?)
    }

    /// How many tokens there are.
    pub fn tokens(&self) -> usize {
        self.steps.iter().flatten().map(Vec::len).sum()
    }

    /// Verifies again with the model, opened with the setting's embedding scale; what was computed on a device is computed on
    /// the model's backend, which gives the same bits. `on_step` is called after each token. `None` where everything is the same.
    ///
    /// # Errors
    ///
    /// [`Error::Backend`], those of [`campaign::run`] and of `on_step`.
    pub fn check(
        &self,
        model: &Model,
        pictures: &[Picture],
        mut on_step: impl FnMut(Kind) -> crate::verify::Result<()>,
    ) -> Result<Option<Difference>> {
        if !model.backend().is_exact() {
            return Err(Error::Backend(model.backend()));
        }
        refuse_inexact(&self.setting)?;
        let Setting {
            model_hash,
            config_hash,
            images,
            ..
        } = &self.setting;
        let different = of_model(model, model_hash, config_hash, &self.tokenizer)?;
        if let Some(different) = different.or_else(|| of_pictures(images, pictures)) {
            return Ok(Some(different));
        }
        let values = self.pixel_values(model, pictures)?;
        let values: Vec<_> = values.iter().map(|values| slices(values)).collect();
        let mut record = Record::new(self.here(model), vec![Machine::here(model)]);
        record.setting.check(model, &values)?;
        let unsolved = campaign::run(model, &mut record, &values, Shard::WHOLE, |kind, _| {
            on_step(kind)
        });
        if let Some(error) = unsolved? {
            return Err(error.into());
        }
        Ok(self.first_difference(&chains(&record)))
    }

    /// The setting with every backend the model's.
    fn here(&self, model: &Model) -> Setting {
        let mut setting = self.setting.clone();
        for kind in &mut setting.kinds {
            (kind.solved_on, kind.applied_on) = (model.backend(), model.backend());
        }
        setting
    }

    /// Those of each prompt's images.
    fn pixel_values(&self, model: &Model, pictures: &[Picture]) -> Result<Vec<Vec<PixelValues>>> {
        if pictures.is_empty() {
            return Ok(Vec::new());
        }
        let ids = self.setting.prompt_ids.iter();
        ids.map(|ids| pixel_values(model, ids, pictures, self.setting.pan_and_scan))
            .collect()
    }

    fn first_difference(&self, here: &[Vec<Vec<String>>]) -> Option<Difference> {
        let kinds = self.setting.kinds.iter().zip(self.steps.iter().zip(here));
        for (&kind, (theirs, here)) in kinds {
            for (prompt, (theirs, here)) in theirs.iter().zip(here).enumerate() {
                let step = theirs.iter().zip(here).position(|(a, b)| a != b);
                if let Some(step) = step {
                    let place = Place { kind, prompt, step };
                    let what = What::Verified { place };
                    return Some(Difference {
                        field: "steps",
                        what,
                    });
                }
            }
        }
        None
    }
}

impl Sealed for VerificationReceipt {
    const FORMAT: &'static str = "context-patch verification receipt 1";

    fn fields(&self) -> Vec<(&'static str, String)> {
        vec![
            ("tokenizer", as_json(&self.tokenizer)),
            ("setting", as_json(&self.setting)),
            ("steps", as_json(&self.steps)),
        ]
    }

    fn wrong(&self) -> Option<&'static str> {
        let setting = &self.setting;
        let prompts = setting.prompts.len();
        let whole = |(kind, of_kind): (&Kind, &Vec<Vec<String>>)| {
            let steps = setting.steps(*kind);
            of_kind.len() == prompts && of_kind.iter().all(|prompt| prompt.len() == steps)
        };
        let kinds = setting.kinds.len() == self.steps.len();
        let all = kinds && setting.kinds.iter().zip(&self.steps).all(whole);
        if prompts == 0 || setting.prompt_ids.len() != prompts || !all {
            return Some("it has not a hash for each token of each prompt");
        }
        None
    }
}

/// Refuses a setting with a backend whose bits depend on the machine.
fn refuse_inexact(setting: &Setting) -> Result<()> {
    let kinds = setting.kinds.iter();
    let mut backends = kinds.flat_map(|kind| [kind.solved_on, kind.applied_on]);
    match backends.find(|backend: &Backend| !backend.is_exact()) {
        Some(backend) => Err(Error::Backend(backend)),
        None => Ok(()),
    }
}

/// The hashes of all steps.
fn chains(record: &Record) -> Vec<Vec<Vec<String>>> {
    let prompts = 0..record.setting.prompts.len();
    let runs = record.runs.iter();
    runs.map(|run| {
        let each = prompts.clone().map(|prompt| {
            let steps = run.prompt(prompt).iter();
            let chain = steps.scan(String::new(), |before, step| {
                *before = sha256(format!("{before}{}", step.logits).as_bytes());
                Some(before.clone())
            });
            chain.collect()
        });
        each.collect()
    })
    .collect()
}
