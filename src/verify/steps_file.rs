//! Files of steps: a verification that may be interrupted at any moment, and done in parts.
//!
//! A file has one JSON object a line, each with one field. The first line is `setting`, a [`Setting`], the next one
//! `machine`, a [`Machine`], which comes again where the file goes on on another machine; and then each `step` as it is
//! done, a [`Kind`] and the fields of a [`Step`].
//!
//! The file appears with its first two lines, and a line is written in one piece. A process that is killed
//! leaves whole lines and at most a piece of one at their end, which is cut off when the file goes on. It is locked
//! while it is written.
//!
//! A line says what [`write()`] would write and nothing else. So what an uninterrupted run leaves is byte for byte what is
//! written of the same steps, however often they were interrupted and from however many files they are joined.

use std::borrow::Cow;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::batches::batches;
use super::error::{Error, Result};
use super::{Kind, Machine, Record, Run, Setting, Step};
use crate::message::{IoError, one_line};
use crate::output::{create_new, write_file};

/// A line of such a file.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Line<'a> {
    Setting(Cow<'a, Setting>),
    Machine(Cow<'a, Machine>),
    Step(OfKind<'a>),
}

#[derive(Serialize, Deserialize)]
struct OfKind<'a> {
    kind: Kind,
    #[serde(flatten)]
    step: Cow<'a, Step>,
}

impl<'a> Line<'a> {
    fn step(kind: Kind, step: &'a Step) -> Self {
        let step = Cow::Borrowed(step);
        Self::Step(OfKind { kind, step })
    }

    /// With its line feed, in one piece.
    fn bytes(&self) -> io::Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec(self)?;
        bytes.push(b'\n');
        Ok(bytes)
    }
}

/// A file of steps that is being written.
#[derive(Debug)]
pub struct StepsFile {
    path: PathBuf,
    /// Locked, and at its end.
    file: File,
}

impl StepsFile {
    /// The file at `path`, and what it has of a verification. Where there is none it begins with `setting` and
    /// `machine`; where there is one it is of the same setting, but for the model's name.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]; [`Error::StepsLocked`] where another process writes it; [`Error::OtherSetting`]; those of
    /// [`parse`].
    pub fn open(path: &Path, setting: Setting, machine: Machine) -> Result<(Self, Record)> {
        let begun = Record::new(setting, vec![machine.clone()]);
        let begin = |mut file: &File| {
            file.lock()?;
            write(&begun, &mut file)
        };
        if let Some(file) = create_new(path, begin)? {
            let path = path.into();
            return Ok((Self { path, file }, begun));
        }
        let file = open_locked(path)?;
        let (mut record, whole) = parse(path, BufReader::new(&file))?;
        record
            .setting
            .check_same(path, &begun.setting, "this command")?;
        file.set_len(whole).map_err(IoError::at("write", path))?;
        let path = path.into();
        let mut file = Self { path, file };
        if !record.machines.contains(&machine) {
            file.append(&Line::Machine(Cow::Borrowed(&machine)))?;
            record.machines.push(machine);
        }
        Ok((file, record))
    }

    /// Writes a step that is done.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn push(&mut self, kind: Kind, step: &Step) -> Result<()> {
        self.append(&Line::step(kind, step))
    }

    fn append(&mut self, line: &Line<'_>) -> Result<()> {
        let written = line.bytes().and_then(|line| self.file.write_all(&line));
        Ok(written.map_err(IoError::at("write", &self.path))?)
    }
}

/// A file that is there, for this process alone.
fn open_locked(path: &Path) -> Result<File> {
    let open = || {
        let file = OpenOptions::new().read(true).append(true).open(path)?;
        if file.metadata()?.is_file() {
            Ok(file)
        } else {
            let reason = "it is not a regular file";
            Err(io::Error::new(ErrorKind::InvalidInput, reason))
        }
    };
    let file = open().map_err(IoError::at("write", path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::StepsLocked { path: path.into() }),
        Err(TryLockError::Error(error)) => Err(IoError::at("lock", path)(error).into()),
    }
}

/// Writes the whole file of a verification, as far as it is done.
///
/// # Errors
///
/// Those of `out`.
pub fn write(record: &Record, out: &mut impl Write) -> io::Result<()> {
    let setting = Line::Setting(Cow::Borrowed(&record.setting));
    let machines = record.machines.iter();
    let machines = machines.map(|machine| Line::Machine(Cow::Borrowed(machine)));
    let steps = record.runs.iter().flat_map(|run| {
        let steps = in_order(&record.setting, run).into_iter();
        steps.map(|step| Line::step(run.kind, step))
    });
    let mut lines = std::iter::once(setting).chain(machines).chain(steps);
    lines.try_for_each(|line| out.write_all(&line.bytes()?))
}

/// The steps in the order in which they are computed.
fn in_order<'r>(setting: &Setting, run: &'r Run) -> Vec<&'r Step> {
    let prompts: Vec<_> = (0..setting.prompts.len()).collect();
    let mut batch_of = vec![0; prompts.len()];
    for (i, batch) in batches(setting, run.kind, &prompts).iter().enumerate() {
        batch.iter().for_each(|&prompt| batch_of[prompt] = i);
    }
    let mut steps: Vec<_> = run.steps.iter().collect();
    steps.sort_by_key(|step| (batch_of[step.prompt], step.step, step.prompt));
    steps
}

/// Writes the whole file of a verification in the place of what is at `path`.
///
/// # Errors
///
/// [`Error::Io`], and [`Error::StepsLocked`] where another process writes it.
pub fn replace(path: &Path, record: &Record) -> Result<()> {
    let _locked = path.is_file().then(|| open_locked(path)).transpose()?;
    Ok(write_file(path, |out| write(record, out))?)
}

/// Reads files of steps (at least one), finished or not, and joins them. They must be of one setting, but for the model's
/// name, which is the first one's; steps that are there several times are taken once.
///
/// # Errors
///
/// [`Error::Io`], those of [`parse`], and [`Error::OtherSetting`].
pub fn read(paths: &[PathBuf]) -> Result<Record> {
    let open = |path: &Path| -> Result<_> {
        let file = File::open(path).map_err(IoError::at("read", path))?;
        Ok(parse(path, BufReader::new(file))?.0)
    };
    let mut all = open(&paths[0])?;
    for path in &paths[1..] {
        let record = open(path)?;
        let first = paths[0].display().to_string();
        record.setting.check_same(path, &all.setting, &first)?;
        all.join(record, path)?;
    }
    Ok(all)
}

/// What `lines` say, and how many of their bytes say it: all but a last line that does not end. `path` only serves the
/// messages.
///
/// # Errors
///
/// [`Error::Io`]; [`Error::NoSteps`] where the first line is no setting; [`Error::StepsLine`] for another line that
/// is damaged; [`Error::StepsDisagree`] for a step that is there twice, with other figures.
pub fn parse(path: &Path, mut lines: impl BufRead) -> Result<(Record, u64)> {
    let mut bytes = Vec::new();
    let mut next = || -> Result<_> {
        bytes.clear();
        let read = lines.read_until(b'\n', &mut bytes);
        read.map_err(IoError::at("read", path))?;
        Ok(bytes.ends_with(b"\n").then(|| bytes.clone()))
    };
    let none = |reason: &str| Error::NoSteps {
        path: path.into(),
        reason: reason.into(),
    };
    let first = next()?.ok_or_else(|| none("it has no first line"))?;
    let setting = match parse_line(&first) {
        Ok(Line::Setting(setting)) => setting.into_owned(),
        Ok(_) => return Err(none("its first line is no setting")),
        Err(reason) => return Err(none(&format!("its first line is no setting ({reason})"))),
    };
    let mut record = Record::new(setting, Vec::new());
    let (mut whole, mut number) = (first.len() as u64, 1);
    while let Some(line) = next()? {
        number += 1;
        let added = parse_line(&line).and_then(|line| add(&mut record, line));
        added.map_err(|reason| Error::StepsLine {
            path: path.into(),
            line: number,
            reason,
        })?;
        whole += line.len() as u64;
    }
    record.sort_steps(path)?;
    Ok((record, whole))
}

/// A line that is just as it would be written.
fn parse_line(bytes: &[u8]) -> Result<Line<'static>, String> {
    let line: Line = serde_json::from_slice(bytes).map_err(|error| {
        // Lines are counted by the caller.
        let reason = error.to_string();
        let reason = reason.rsplit_once(" at line ").unwrap_or((&reason, ""));
        one_line(reason.0, 200)
    })?;
    match line.bytes() {
        Ok(again) if again == bytes => Ok(line),
        _ => Err("it is not as this version writes it".into()),
    }
}

fn add(record: &mut Record, line: Line<'_>) -> Result<(), String> {
    match line {
        Line::Setting(_) => return Err("it is a second setting".into()),
        Line::Machine(machine) if record.machines.contains(&machine) => {}
        Line::Machine(machine) => record.machines.push(machine.into_owned()),
        Line::Step(OfKind { kind, step }) => {
            let asked = record.setting.prompts.len() > step.prompt
                && record.setting.steps(kind) > step.step;
            let run = record.runs.iter_mut().find(|run| run.kind == kind);
            match run.filter(|_| asked) {
                Some(run) => run.steps.push(step.into_owned()),
                None => return Err("it is of a step that the setting does not have".into()),
            }
        }
    }
    Ok(())
}
