//! From a picture to the numbers that the model reads.

use super::picture::Picture;
use super::resize::resize;
use super::rgb::Rgb;
use crate::checkpoint::ImageProcessorConfig;

/// What one run of the vision tower reads: `[3, height, width]`, row by row.
#[derive(Clone, PartialEq)]
pub struct PixelValues {
    /// In pixels.
    pub height: usize,
    /// In pixels.
    pub width: usize,
    /// Red, green and blue.
    pub values: Vec<f32>,
}

impl std::fmt::Debug for PixelValues {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PixelValues([3, {}, {}])", self.height, self.width)
    }
}

/// Pan and scan: crops of a long picture that the model reads beside the whole. The settings are those of Gemma 3's report,
/// and by default those that `Gemma3Processor` has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PanAndScan {
    /// The fewest pixels that either side of a crop has.
    pub min_crop_size: usize,
    /// The most crops.
    pub max_num_crops: usize,
    /// The ratio of sides from which on there are crops.
    pub min_ratio_to_activate: f64,
}

impl Default for PanAndScan {
    fn default() -> Self {
        Self {
            min_crop_size: 256,
            max_num_crops: 4,
            min_ratio_to_activate: 1.2,
        }
    }
}

impl PanAndScan {
    /// How many crops stand beside one another and below one another, or `None` where there are none.
    fn grid(&self, width: usize, height: usize) -> Option<(usize, usize)> {
        let (long, short) = (width.max(height), width.min(height));
        let ratio = long as f64 / short as f64;
        if ratio < self.min_ratio_to_activate {
            return None;
        }
        let crops = ((ratio + 0.5) as usize).min(long / self.min_crop_size.max(1));
        let crops = crops.max(2).min(self.max_num_crops.max(1));
        if long.div_ceil(crops).min(short) < self.min_crop_size {
            return None;
        }
        Some(if width >= height {
            (crops, 1)
        } else {
            (1, crops)
        })
    }
}

/// What transformers' `Gemma3ImageProcessor` on Pillow does, to the bit.
///
/// A picture is resized in whole numbers. A level v then becomes f32(v · `rescale_factor`), the product in f64, and that x the
/// f32 quotient (x − f32(mean)) / f32(std).
#[derive(Clone, Debug)]
pub struct Preprocessor {
    config: ImageProcessorConfig,
    pan_and_scan: Option<PanAndScan>,
    /// What becomes of each level of each channel.
    levels: [[f32; 256]; 3],
}

impl Preprocessor {
    /// One with these settings, and without pan and scan.
    pub fn new(config: ImageProcessorConfig) -> Self {
        let level = |channel: usize, level: usize| {
            let mut x = level as f32;
            if config.do_rescale {
                x = (level as f64 * config.rescale_factor) as f32;
            }
            if config.do_normalize {
                x = (x - config.image_mean[channel] as f32) / config.image_std[channel] as f32;
            }
            x
        };
        Self {
            levels: std::array::from_fn(|channel| std::array::from_fn(|v| level(channel, v))),
            config,
            pan_and_scan: None,
        }
    }

    /// With crops of long pictures.
    pub fn with_pan_and_scan(self, settings: PanAndScan) -> Self {
        Self {
            pan_and_scan: Some(settings),
            ..self
        }
    }

    /// How many crops of a picture the model reads beside the whole.
    pub fn crops(&self, picture: &Picture) -> usize {
        crops(picture.pixels(), self.pan_and_scan).len()
    }

    /// What the model reads of a picture: of the whole, then of its crops, in rows from the upper left.
    pub fn pixel_values(&self, picture: &Picture) -> Vec<PixelValues> {
        let whole = picture.pixels();
        let crops = crops(whole, self.pan_and_scan);
        std::iter::once(self.values(whole))
            .chain(crops.iter().map(|crop| self.values(&crop.of(whole))))
            .collect()
    }

    fn values(&self, picture: &Rgb) -> PixelValues {
        let resized;
        let picture = if self.config.do_resize {
            resized = resize(picture, self.config.size, self.config.resample);
            &resized
        } else {
            picture
        };
        let channel = |channel: usize| {
            let levels = picture.bytes[channel..].iter().step_by(3);
            levels.map(move |level| self.levels[channel][usize::from(*level)])
        };
        PixelValues {
            height: picture.height,
            width: picture.width,
            values: (0..3).flat_map(channel).collect(),
        }
    }
}

/// A part of a picture.
struct Crop {
    left: usize,
    top: usize,
    width: usize,
    height: usize,
}

/// The crops of a picture; the last of them are smaller where it does not divide.
fn crops(picture: &Rgb, settings: Option<PanAndScan>) -> Vec<Crop> {
    let grid = settings.and_then(|settings| settings.grid(picture.width, picture.height));
    let Some((across, down)) = grid else {
        return Vec::new();
    };
    let (width, height) = (
        picture.width.div_ceil(across),
        picture.height.div_ceil(down),
    );
    let tops = (0..picture.height).step_by(height);
    let crop = |left, top| Crop {
        left,
        top,
        width: width.min(picture.width - left),
        height: height.min(picture.height - top),
    };
    let lefts = || (0..picture.width).step_by(width);
    tops.flat_map(|top| lefts().map(move |left| crop(left, top)))
        .collect()
}

impl Crop {
    fn of(&self, picture: &Rgb) -> Rgb {
        let rows = (self.top..self.top + self.height).flat_map(|y| {
            let at = 3 * (y * picture.width + self.left);
            &picture.bytes[at..at + 3 * self.width]
        });
        Rgb {
            width: self.width,
            height: self.height,
            bytes: rows.copied().collect(),
        }
    }
}
