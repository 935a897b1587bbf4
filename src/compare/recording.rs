//! A recording: which tensors it has, checked when it is opened, and their numbers, read when asked for.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::error::{Error, Result};
use super::layout::{HeadShape, Layout, Misfit, Words};
use super::names::{Known, Names};
use super::rules::Rules;
use super::source::{Found, Source};
use super::{Aside, Point, Precision};
use crate::model::{INPUTS_EMBEDS, Model};
use crate::tensor::{Matrix, Storage, Tensor};
use crate::trace::{self, Rows};

/// Tensors that an engine recorded, under the names of [`trace::names`], each as rows `[tokens, width]`.
///
/// Every tensor has the rows of the same tokens, but behind the last layer's attention there may be
/// fewer, those of the last tokens: engines that are asked for few logits drop the other tokens there. Those of the vision part
/// have the rows of all images, one after the other.
#[derive(Debug)]
pub struct Recording {
    path: PathBuf,
    tensors: BTreeMap<String, Entry>,
    aside: Vec<Aside>,
    tokens: usize,
    /// As many as its tensors of the vision part are of.
    images: usize,
    ids: Option<Vec<u32>>,
    metadata: BTreeMap<String, String>,
}

/// A tensor and how it is read.
#[derive(Debug)]
struct Entry {
    /// Its name in the recording.
    theirs: String,
    tensor: Tensor,
    layout: Layout,
    second: bool,
}

impl Recording {
    /// Opens a safetensors file, an `.npz`, or a `.npy` file or a folder of them, of a model with `config`. `rules`
    /// say what names and layouts mean that are not known.
    ///
    /// Files are mapped: they must not change while the recording is in use.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], [`Error::RecordingFile`] and those of
    /// [`Tensors::parse`](crate::checkpoint::Tensors::parse) for files that are damaged, [`Error::RecordingNames`] where no name
    /// is known, [`Error::RecordingDtype`], [`Error::RecordingShape`], [`Error::RecordingLayout`],
    /// [`Error::RecordingTwice`], [`Error::RecordingRows`] and [`Error::RecordingLayer`] for tensors whose names are known,
    /// [`trace::Error::Ids`], and [`Error::RuleUnmatched`].
    pub fn open(path: &Path, model: &Model, rules: &Rules) -> Result<Self> {
        Self::new(path, Source::open(path)?, model, rules)
    }

    /// The same for a file with the content `data`; `path` says by its ending what it is (`.npz`, `.npy`, otherwise
    /// safetensors).
    ///
    /// # Errors
    ///
    /// Those of [`open`](Self::open).
    pub fn parse(path: &Path, data: &Bytes, model: &Model, rules: &Rules) -> Result<Self> {
        Self::new(path, Source::parse(path, data)?, model, rules)
    }

    fn new(path: &Path, source: Source, model: &Model, rules: &Rules) -> Result<Self> {
        let Source {
            tensors,
            ids,
            metadata,
        } = source;
        let names = Names::new(model);
        let of_images = tensors.keys().any(|name| names.is_of_images(name));
        let names = if of_images { names.of_images() } else { names };
        rules.check(&names)?;
        rules.check_used(path, tensors.keys().map(String::as_str))?;
        let mut recording = Self {
            path: path.into(),
            tensors: BTreeMap::new(),
            aside: Vec::new(),
            tokens: 0,
            images: 0,
            ids,
            metadata,
        };
        for (theirs, found) in tensors {
            let said = rules.matches(&theirs, &names);
            let known = if said.is_empty() {
                names
                    .recognise(&theirs)
                    .map(|known| {
                        let words = Words {
                            interleaved: known.interleaved,
                            ..Words::default()
                        };
                        (known, words)
                    })
                    .into_iter()
                    .collect()
            } else {
                said
            };
            if known.is_empty() {
                recording.aside.push(Aside::unknown(theirs, &names));
                continue;
            }
            for (known, words) in known {
                let point = recording.point(&theirs, &known, &names)?;
                let entry = recording.entry(&theirs, &found, point, &words, model);
                let entry = match entry {
                    // That what it is called here is only one thing that its name can mean.
                    Err(Error::RecordingShape {
                        found, expected, ..
                    }) if known.second => {
                        let aside = Aside::misfit(theirs.clone(), &found, &known.name, &expected);
                        recording.aside.push(aside);
                        continue;
                    }
                    entry => entry?,
                };
                recording.insert(
                    Entry {
                        second: known.second,
                        ..entry
                    },
                    known.name,
                )?;
            }
        }
        recording.check_names()?;
        recording.check_images(&names)?;
        recording.check_rows(model)?;
        Ok(recording)
    }

    /// The model's point that a tensor is taken for.
    fn point<'a>(&self, theirs: &str, known: &Known, names: &'a Names) -> Result<&'a Point> {
        let point = names.point(&known.name);
        point.ok_or_else(|| Error::RecordingLayer {
            path: self.path.clone(),
            tensor: theirs.into(),
            layer: known.layer.unwrap_or_default(),
            layers: names.layers(&known.name),
        })
    }

    /// A tensor as that of `point`.
    fn entry(
        &self,
        theirs: &str,
        found: &Found,
        point: &Point,
        words: &Words,
        model: &Model,
    ) -> Result<Entry> {
        let (path, tensor) = (self.path.clone(), theirs.to_owned());
        let numbers = match &found.numbers {
            Ok(numbers) => numbers,
            Err(dtype) => {
                let dtype = dtype.clone();
                return Err(Error::RecordingDtype {
                    path,
                    tensor,
                    dtype,
                });
            }
        };
        let mut shape = numbers.shape().to_vec();
        let layout = Layout::new(
            &shape,
            found.reversed,
            words,
            point,
            head_shape(model, point),
        );
        if found.reversed {
            shape.reverse();
        }
        let (found, point) = (shape, point.name.clone());
        let layout = layout.map_err(|misfit| match misfit {
            Misfit::Shape(expected) => Error::RecordingShape {
                path,
                tensor,
                found,
                point,
                expected,
            },
            Misfit::Ambiguous => Error::RecordingLayout {
                path,
                tensor,
                found,
                point,
            },
        })?;
        Ok(Entry {
            theirs: theirs.into(),
            tensor: numbers.clone(),
            layout,
            second: false,
        })
    }

    /// Adds a tensor under our name, unless a name that means the point more directly is there.
    fn insert(&mut self, entry: Entry, name: String) -> Result<()> {
        let Some(first) = self.tensors.get(&name) else {
            self.tensors.insert(name, entry);
            return Ok(());
        };
        if !first.second && !entry.second {
            return Err(Error::RecordingTwice {
                path: self.path.clone(),
                first: first.theirs.clone(),
                second: entry.theirs,
                point: name,
            });
        }
        let (taken, spare) = if entry.second {
            (first.theirs.clone(), entry.theirs)
        } else {
            let (taken, spare) = (entry.theirs.clone(), first.theirs.clone());
            self.tensors.insert(name.clone(), entry);
            (taken, spare)
        };
        self.aside.push(Aside::spare(spare, &taken));
        Ok(())
    }

    /// Whether any name is known.
    fn check_names(&self) -> Result<()> {
        if !self.tensors.is_empty() {
            return Ok(());
        }
        Err(Error::RecordingNames {
            path: self.path.clone(),
            count: self.aside.len(),
            names: self
                .aside
                .iter()
                .take(3)
                .map(|aside| aside.name.clone())
                .collect(),
        })
    }

    /// Whether every tensor of the vision part has the rows of the same images.
    fn check_images(&mut self, names: &Names) -> Result<()> {
        let of_images = self.tensors.iter().filter_map(|(name, entry)| {
            let rows = names.point(name)?.rows;
            (rows != Rows::Tokens).then_some((rows, entry))
        });
        let first = of_images.clone().find_map(|(rows, entry)| match rows {
            Rows::EachImage(each) => Some((entry.layout.rows / each, entry)),
            _ => None,
        });
        let images = first.map_or(0, |(images, _)| images);
        for (rows, entry) in of_images {
            let (rows, expected) = (entry.layout.rows, rows.of(0, images));
            if rows != expected {
                return Err(Error::RecordingImages {
                    path: self.path.clone(),
                    tensor: entry.theirs.clone(),
                    rows,
                    expected,
                    other: first.map_or(entry, |(_, first)| first).theirs.clone(),
                });
            }
        }
        self.images = images;
        Ok(())
    }

    /// Whether every tensor has the rows that it should, and the ids are enough for them.
    fn check_rows(&mut self, model: &Model) -> Result<()> {
        let embeds = std::iter::once(INPUTS_EMBEDS.to_owned());
        let names: Vec<_> = embeds.chain(trace::names(model)).collect();
        let last = model
            .layers()
            .last()
            .map(|block| block.attention.out.name());
        let after = format!(
            "{}.{}.{}",
            model.config().decoder.layers,
            model.layers().len().saturating_sub(1),
            last.unwrap_or_default()
        );
        let mut first: Option<&Entry> = None;
        let mut may_be_fewer = false;
        for name in &names {
            let can_be_fewer = may_be_fewer;
            may_be_fewer |= *name == after;
            let Some(entry) = self.tensors.get(name) else {
                continue;
            };
            let (rows, most) = (entry.layout.rows, first.unwrap_or(entry));
            let expected = most.layout.rows;
            if rows > expected || (rows < expected && !can_be_fewer) {
                return Err(Error::RecordingRows {
                    path: self.path.clone(),
                    tensor: entry.theirs.clone(),
                    rows,
                    other: most.theirs.clone(),
                    expected,
                });
            }
            first = Some(most);
        }
        self.tokens = first.map_or(0, |entry| entry.layout.rows);
        let ids = self.ids.as_ref().map_or(self.tokens, Vec::len);
        if ids < self.tokens {
            return Err(Error::RecordingFile {
                path: self.path.clone(),
                reason: format!(
                    "it has {ids} ids and {} tokens; record the ids that were run",
                    self.tokens
                ),
            });
        }
        Ok(())
    }

    /// Whether there is a tensor of ours called `name`.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Our names of the tensors, sorted.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// What the recording calls our tensor `name`.
    pub fn stored_name(&self, name: &str) -> Option<&str> {
        self.tensors.get(name).map(|entry| entry.theirs.as_str())
    }

    /// The tensors that are not compared, because their names mean nothing here, or no more than another's.
    pub fn aside(&self) -> &[Aside] {
        &self.aside
    }

    /// The type in which our tensor `name` was recorded.
    pub(super) fn stored(&self, name: &str) -> Option<Precision> {
        let entry = self.tensors.get(name)?;
        Some(entry.tensor.storage().into())
    }

    /// The tensor of our name `name`, `[tokens, width]`, each number as it is stored; `None` where there is none.
    ///
    /// # Errors
    ///
    /// [`Error::RecordingValue`] for NaN, and for infinity but in F16, where it is what is too large for that type.
    pub fn read(&self, name: &str) -> Result<Option<Matrix<f64>>> {
        self.read_rows(name, 0..self.rows(name))
    }

    /// How many rows our tensor `name` has; none where it is not there.
    pub fn rows(&self, name: &str) -> usize {
        self.tensors.get(name).map_or(0, |entry| entry.layout.rows)
    }

    /// Some rows of our tensor `name`, as [`read`](Self::read) gives them all.
    ///
    /// # Errors
    ///
    /// Those of [`read`](Self::read).
    pub fn read_rows(&self, name: &str, rows: Range<usize>) -> Result<Option<Matrix<f64>>> {
        let Some(Entry {
            theirs,
            tensor,
            layout,
            ..
        }) = self.tensors.get(name)
        else {
            return Ok(None);
        };
        let first = rows.start;
        let mut matrix = Matrix::zeros(rows.len(), layout.cols);
        if layout.is_plain() {
            read_plain(tensor, first * layout.cols, matrix.as_mut_slice());
        } else {
            for (row, out) in rows.zip(matrix.iter_rows_mut()) {
                for (col, x) in out.iter_mut().enumerate() {
                    *x = tensor.number(layout.at(row, col));
                }
            }
        }
        let numbers = matrix.as_slice();
        let may_overflow = tensor.storage() == Storage::F16;
        let wrong = |x: &f64| x.is_nan() || (x.is_infinite() && !may_overflow);
        let Some(at) = numbers.iter().position(wrong) else {
            return Ok(Some(matrix));
        };
        Err(Error::RecordingValue {
            path: self.path.clone(),
            tensor: theirs.clone(),
            point: name.into(),
            row: first + at / layout.cols,
            column: at % layout.cols,
            value: numbers[at],
        })
    }

    /// How many images there are, if the metadata has `images`, and otherwise by the tensors of the vision part.
    pub fn images(&self) -> usize {
        let said = self.metadata.get("images");
        said.and_then(|images| images.parse().ok())
            .unwrap_or(self.images)
    }

    /// The tokens whose rows the tensors have.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// The ids of all tokens that were run, at least as many as [`tokens`](Self::tokens), if the recording says them: in
    /// safetensors as a JSON list in the metadata `ids`, otherwise as an array of integers `ids`.
    pub fn ids(&self) -> Option<&[u32]> {
        self.ids.as_deref()
    }

    /// The compute type, if the metadata has `dtype`.
    pub fn dtype(&self) -> Option<Precision> {
        self.metadata.get("dtype")?.parse().ok()
    }

    /// The hash of the model's weights, if the metadata has `model_hash`.
    pub fn model_hash(&self) -> Option<&str> {
        self.metadata.get("model_hash").map(String::as_str)
    }

    /// The model's name, if the metadata has `model`.
    pub fn model(&self) -> Option<&str> {
        self.metadata.get("model").map(String::as_str)
    }

    /// The file or folder it was opened from.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn head_shape(model: &Model, point: &Point) -> HeadShape {
    let dim = point
        .heads
        .map_or(model.config().head_dim, |heads| point.width / heads);
    let rope = model
        .layers()
        .first()
        .and_then(|block| block.attention.form.rope);
    HeadShape {
        dim,
        turned: rope.map_or(dim, |rope| rope.dims),
    }
}

/// Reads a tensor's numbers in their order, from number `first` on, which begins one of its rows.
fn read_plain(tensor: &Tensor, first: usize, out: &mut [f64]) {
    let cols = tensor.cols();
    for (row, out) in out.chunks_mut(cols).enumerate() {
        tensor.read_row(first / cols + row, out);
    }
}

/// The name of the model that the recording in `path` is of, where its metadata has `model`.
///
/// # Errors
///
/// Those of [`Recording::open`] for files that are damaged.
pub fn model_of(path: &Path) -> Result<Option<String>> {
    Ok(Source::open(path)?.metadata.remove("model"))
}
