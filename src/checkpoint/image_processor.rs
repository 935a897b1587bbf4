//! preprocessor_config.json, or `image_processor` in processor_config.json: what becomes of a picture before the model reads it.

use std::path::Path;

use serde_json::{Map, Value};

use super::error::Result;
use super::fields::{Fields, parse_object, whole};
use super::files::Files;
use super::json;

/// The settings of transformers' `Gemma3ImageProcessor`, with its defaults where a file leaves them out.
///
/// `do_convert_rgb` is none of them: a picture from a file is RGB. Nor is `do_pan_and_scan` with its settings: `Gemma3Processor`
/// has its own in their place, whatever the file says.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageProcessorConfig {
    /// Whether a picture is resized.
    pub do_resize: bool,
    /// Height and width to resize to.
    pub size: (usize, usize),
    /// The filter to resize with.
    pub resample: Resample,
    /// Whether levels are multiplied by `rescale_factor`.
    pub do_rescale: bool,
    /// What levels are multiplied by.
    pub rescale_factor: f64,
    /// Whether the mean is subtracted and the rest divided by the standard deviation.
    pub do_normalize: bool,
    /// The mean of each channel.
    pub image_mean: [f64; 3],
    /// The standard deviation of each channel.
    pub image_std: [f64; 3],
}

/// Pillow's filters, under their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resample {
    /// 0: the nearest pixel, no filter.
    Nearest,
    /// 1
    Lanczos,
    /// 2
    Bilinear,
    /// 3
    Bicubic,
    /// 4
    Box,
    /// 5
    Hamming,
}

impl Resample {
    /// All of them, at their numbers.
    pub const ALL: [Self; 6] = [
        Self::Nearest,
        Self::Lanczos,
        Self::Bilinear,
        Self::Bicubic,
        Self::Box,
        Self::Hamming,
    ];
}

impl Default for ImageProcessorConfig {
    fn default() -> Self {
        Self {
            do_resize: true,
            size: (224, 224),
            resample: Resample::Bilinear,
            do_rescale: true,
            rescale_factor: 1.0 / 255.0,
            do_normalize: true,
            image_mean: [0.5; 3],
            image_std: [0.5; 3],
        }
    }
}

/// The file that has the settings, or `None` where there is none.
pub(super) fn read(files: &Files) -> Result<Option<ImageProcessorConfig>> {
    const PROCESSOR: &str = "processor_config.json";
    const OLDER: &str = "preprocessor_config.json";
    if let Some(json) = files.read(PROCESSOR)? {
        let path = files.path(PROCESSOR);
        let map = parse_object(&path, &json)?;
        if let Some(inner) = Fields::new(&path, "", &map).object("image_processor")? {
            return ImageProcessorConfig::of_fields(&Fields::new(&path, "image_processor.", inner))
                .map(Some);
        }
    }
    let Some(json) = files.read(OLDER)? else {
        return Ok(None);
    };
    ImageProcessorConfig::parse(&files.path(OLDER), &json).map(Some)
}

impl ImageProcessorConfig {
    /// Parses the bytes of a preprocessor_config.json. `path` only serves the messages.
    ///
    /// # Errors
    ///
    /// Those of reading JSON files, and [`Error::UnsupportedOption`](super::Error::UnsupportedOption) for another class,
    /// another way to give a size, and an unknown filter.
    pub fn parse(path: &Path, json: &[u8]) -> Result<Self> {
        Self::of_fields(&Fields::new(path, "", &parse_object(path, json)?))
    }

    fn of_fields(fields: &Fields<'_>) -> Result<Self> {
        const TYPE: &str = "image_processor_type";
        if let Some(class) = fields.string(TYPE)? {
            // In its variants "Fast" and "Pil".
            if !class.starts_with("Gemma3ImageProcessor") {
                return Err(fields.unsupported(TYPE, class, "Gemma3ImageProcessor"));
            }
        }
        let default = Self::default();
        Ok(Self {
            do_resize: flag(fields, "do_resize")?,
            size: size(fields)?.unwrap_or(default.size),
            resample: resample(fields)?.unwrap_or(default.resample),
            do_rescale: flag(fields, "do_rescale")?,
            rescale_factor: match fields.get("rescale_factor") {
                Some(_) => fields
                    .number("rescale_factor", -1e6..=1e6)?
                    .unwrap_or_default(),
                None => default.rescale_factor,
            },
            do_normalize: flag(fields, "do_normalize")?,
            image_mean: channels(fields, "image_mean", default.image_mean, -1e6..=1e6)?,
            image_std: channels(fields, "image_std", default.image_std, 1e-6..=1e6)?,
        })
    }
}

/// True where it is left out or null.
fn flag(fields: &Fields<'_>, name: &str) -> Result<bool> {
    let found = fields.typed(name, "true, false or null", Value::as_bool)?;
    Ok(found.unwrap_or(true))
}

/// `{"height": …, "width": …}`, or one number for both.
fn size(fields: &Fields<'_>) -> Result<Option<(usize, usize)>> {
    const MOST: usize = 4096;
    const NAME: &str = "size";
    let Some(value) = fields.get(NAME) else {
        return Ok(None);
    };
    if whole(value).is_some() {
        let side = fields.size(NAME, 0, 1..=MOST)?;
        return Ok(Some((side, side)));
    }
    let empty = Map::new();
    let prefix = fields.full("size.");
    let inner = fields.inner(&prefix, fields.object(NAME)?.unwrap_or(&empty));
    if !inner.has("height") || !inner.has("width") {
        return Err(fields.unsupported(NAME, value, "height and width"));
    }
    let side = |name| inner.size(name, 0, 1..=MOST);
    Ok(Some((side("height")?, side("width")?)))
}

fn resample(fields: &Fields<'_>) -> Result<Option<Resample>> {
    const NAME: &str = "resample";
    let Some(number) = fields.typed(NAME, "a whole number", whole)? else {
        return Ok(None);
    };
    let at = number.as_u64().and_then(|n| usize::try_from(n).ok());
    match at.and_then(|at| Resample::ALL.get(at)) {
        Some(resample) => Ok(Some(*resample)),
        None => Err(fields.unsupported(NAME, number, "Pillow's filters 0 to 5")),
    }
}

/// Three numbers, or one for all channels.
fn channels(
    fields: &Fields<'_>,
    name: &str,
    default: [f64; 3],
    range: std::ops::RangeInclusive<f64>,
) -> Result<[f64; 3]> {
    let found = fields.typed(name, "three numbers, or one", |value| match value {
        Value::Array(list) => {
            let numbers: Option<Vec<f64>> = list.iter().map(json::number).collect();
            numbers?.try_into().ok()
        }
        one => json::number(one).map(|number| [number; 3]),
    })?;
    let found: [f64; 3] = found.unwrap_or(default);
    match found.iter().find(|number| !range.contains(number)) {
        None => Ok(found),
        Some(number) => Err(fields.value(
            name,
            number,
            format!("from {} to {}", range.start(), range.end()),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<ImageProcessorConfig> {
        ImageProcessorConfig::parse(Path::new("preprocessor_config.json"), json.as_bytes())
    }

    #[test]
    fn what_is_left_out_or_null_is_the_class_default() {
        let default = ImageProcessorConfig::default();
        assert_eq!(parse("{}").unwrap(), default);
        let null = r#"{"do_resize": null, "size": null, "resample": null, "rescale_factor": null, "image_mean": null}"#;
        assert_eq!(parse(null).unwrap(), default);
    }

    #[test]
    fn fields_are_read() {
        let config = parse(
            r#"{"image_processor_type": "Gemma3ImageProcessorFast", "size": {"height": 30, "width": 40}, "resample": 3, "do_rescale": false,
                "rescale_factor": 2, "do_normalize": false, "image_mean": 0.25, "image_std": [1, 2.5, 3]}"#,
        );
        let want = ImageProcessorConfig {
            do_resize: true,
            size: (30, 40),
            resample: Resample::Bicubic,
            do_rescale: false,
            rescale_factor: 2.0,
            do_normalize: false,
            image_mean: [0.25; 3],
            image_std: [1.0, 2.5, 3.0],
        };
        assert_eq!(config.unwrap(), want);
        assert_eq!(parse(r#"{"size": 56}"#).unwrap().size, (56, 56));
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (json, message) in [
            (
                r#"{"image_processor_type": "SiglipImageProcessor"}"#,
                "image_processor_type is SiglipImageProcessor; this crate computes only Gemma3ImageProcessor",
            ),
            (
                r#"{"size": {"shortest_edge": 224}}"#,
                "size is {\"shortest_edge\":224}; this crate computes only height and width",
            ),
            (
                r#"{"size": {"height": 0, "width": 5}}"#,
                "size.height is 0, but must be from 1 to 4096",
            ),
            (
                r#"{"resample": 6}"#,
                "resample is 6; this crate computes only Pillow's filters 0 to 5",
            ),
            (
                r#"{"resample": "bilinear"}"#,
                "resample must be a whole number, not \"bilinear\"",
            ),
            (
                r#"{"image_std": [0.5, 0, 0.5]}"#,
                "image_std is 0, but must be from 0.000001 to 1000000",
            ),
            (
                r#"{"image_mean": [0.5, 0.5]}"#,
                "image_mean must be three numbers, or one, not a list",
            ),
            (
                r#"{"do_resize": 1}"#,
                "do_resize must be true, false or null, not 1",
            ),
        ] {
            let error = parse(json).unwrap_err().to_string();
            assert_eq!(error, format!("preprocessor_config.json: {message}"));
        }
    }

    #[test]
    fn the_newer_file_is_read_before_the_older() {
        let files = |names: &[(&str, &str)]| Files::Memory {
            name: "m".into(),
            files: names
                .iter()
                .map(|(name, json)| ((*name).to_owned(), json.to_string().into()))
                .collect(),
        };
        let older = ("preprocessor_config.json", r#"{"size": 5}"#);
        let newer = (
            "processor_config.json",
            r#"{"image_processor": {"size": 6}}"#,
        );
        // Before transformers 5 it had no image processor.
        let other = ("processor_config.json", r#"{"image_seq_length": 256}"#);
        let size = |names: &[(&str, &str)]| read(&files(names)).unwrap().map(|found| found.size);
        assert_eq!(size(&[]), None);
        assert_eq!(size(&[older]), Some((5, 5)));
        assert_eq!(size(&[older, newer]), Some((6, 6)));
        assert_eq!(size(&[older, other]), Some((5, 5)));
        let wrong = (
            "processor_config.json",
            r#"{"image_processor": {"size": 0}}"#,
        );
        let error = read(&files(&[wrong])).unwrap_err().to_string();
        assert!(error.contains("image_processor.size is 0"), "{error}");
    }
}
