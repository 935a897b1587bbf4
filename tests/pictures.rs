//! Pictures of all kinds against Pillow and transformers, to the bit, and files that are none.
//!
//! `reference/picture_golden.py` wrote the pictures and the hashes.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::collections::BTreeMap;
use std::path::Path;

use context_patch::Checkpoint;
use context_patch::checkpoint::{Access, ImageProcessorConfig, Resample};
use context_patch::vision::{
    Error, MAX_BYTES, MAX_PIXELS, PanAndScan, Picture, PixelValues, Preprocessor, half_blocks,
    thumbnail,
};

use processor::{hash, pictures};

#[path = "common/processor.rs"]
mod processor;

#[derive(serde::Deserialize)]
struct Golden {
    processors: BTreeMap<String, serde_json::Value>,
    pictures: Vec<Case>,
}

#[derive(serde::Deserialize)]
struct Case {
    file: String,
    sha256: String,
    width: usize,
    height: usize,
    /// The hashes by processor: of the whole, then of the crops.
    pixel_values: BTreeMap<String, Vec<String>>,
}

fn golden() -> Golden {
    serde_json::from_slice(&std::fs::read(pictures().join("golden.json")).unwrap()).unwrap()
}

fn open(file: &str) -> Picture {
    Picture::open(&pictures().join(file)).unwrap()
}

fn config(value: &serde_json::Value) -> ImageProcessorConfig {
    ImageProcessorConfig::parse(
        Path::new("preprocessor_config.json"),
        value.to_string().as_bytes(),
    )
    .unwrap()
}

fn preprocessor(value: &serde_json::Value) -> Preprocessor {
    let made = Preprocessor::new(config(value));
    let size = |name: &str| value[name].as_u64().unwrap() as usize;
    if value["do_pan_and_scan"].as_bool() != Some(true) {
        return made;
    }
    made.with_pan_and_scan(PanAndScan {
        min_crop_size: size("pan_and_scan_min_crop_size"),
        max_num_crops: size("pan_and_scan_max_num_crops"),
        min_ratio_to_activate: value["pan_and_scan_min_ratio_to_activate"]
            .as_f64()
            .unwrap(),
    })
}

/// What Pillow decodes of a file, for which every decoder does it its own way.
fn of_pillow(file: &str) -> Option<Picture> {
    let decoded = pictures().join("decoded").join(format!("{file}.png"));
    decoded.exists().then(|| Picture::open(&decoded).unwrap())
}

#[test]
fn pixel_values_are_those_of_transformers() {
    let golden = golden();
    let (mut exact, mut hashes) = (0, 0);
    for case in &golden.pictures {
        let picture = open(&case.file);
        assert_eq!(picture.sha256(), case.sha256, "{}", case.file);
        let size = (picture.width(), picture.height());
        assert_eq!(size, (case.width, case.height), "{}", case.file);
        let of_pillow = of_pillow(&case.file);
        exact += usize::from(of_pillow.is_none());
        let picture = of_pillow.as_ref().unwrap_or(&picture);
        for (processor, want) in &case.pixel_values {
            let made = preprocessor(&golden.processors[processor]).pixel_values(picture);
            let made: Vec<_> = made.iter().map(hash).collect();
            assert_eq!(&made, want, "{} with {processor}", case.file);
            hashes += made.len();
        }
    }
    assert!(
        exact >= 40 && hashes >= 120,
        "{exact} pictures, {hashes} hashes"
    );
}

/// By how many levels two pictures differ at most, and on average.
fn levels(ours: &[u8], theirs: &[u8]) -> (u8, f64) {
    assert_eq!(ours.len(), theirs.len());
    let apart = ours.iter().zip(theirs).map(|(a, b)| a.abs_diff(*b));
    let sum: f64 = apart.clone().map(f64::from).sum();
    (apart.max().unwrap(), sum / ours.len() as f64)
}

/// How far a file of a format with losses may be from Pillow, in levels.
///
/// Every JPEG decoder rounds in its own way in the inverse cosine transform, to ± 1 of each component, which is 1 of grey and ink, and
/// with a step of chroma, up to 1.772 levels of blue, 2 of a colour. Where chroma has fewer pixels than luma it is
/// interpolated, which rounds again, and ours takes at the last column what lies in the file beyond the picture, which libjpeg does
/// not. A picture narrower than four pixels is all last column. Of lossy WebP nothing is left to a decoder.
fn bound(file: &str) -> u8 {
    match file {
        "3x5.jpg" => 31,
        "1x1.jpg" => 0,
        "grey.jpg" | "cmyk.jpg" | "untransformed.jpg" => 1,
        "rgb-444.jpg" | "ycck.jpg" => 2,
        file if file.ends_with(".webp") => 0,
        _ => 7,
    }
}

#[test]
fn formats_with_losses_are_near_to_pillow() {
    let mut largest = BTreeMap::new();
    for case in golden().pictures {
        let Some(theirs) = of_pillow(&case.file) else {
            continue;
        };
        let ours = open(&case.file);
        let (most, mean) = levels(ours.rgb(), theirs.rgb());
        println!("{:24} at most {most}, on average {mean:.4}", case.file);
        let bound = bound(&case.file);
        assert!(most <= bound, "{}: {most}", case.file);
        assert!(mean < 0.5 || ours.width() < 4, "{}: {mean}", case.file);
        let largest = largest.entry(bound).or_insert(0);
        *largest = most.max(*largest);
        // The control: the same picture, one pixel on.
        if ours.width() >= 4 {
            let shifted = levels(&ours.rgb()[3..], &theirs.rgb()[..theirs.rgb().len() - 3]);
            assert!(
                shifted.0 > bound && shifted.1 > 0.5,
                "{}: {shifted:?}",
                case.file
            );
        }
    }
    // None of the bounds is looser than needed.
    assert_eq!(
        largest,
        BTreeMap::from([0, 1, 2, 7, 31].map(|bound| (bound, bound)))
    );
}

/// A resize that is as naive as can be, bilinear: with or without the filter getting wider where the picture gets smaller, with this many
/// bits of fraction in the weights, rounding between the directions or not, and the directions in Pillow's order or in the other.
#[derive(Clone, Copy)]
struct Naive {
    antialias: bool,
    bits: i32,
    rounds_between: bool,
    pillows_order: bool,
}

impl Naive {
    /// For each place, where its levels begin and their weights.
    fn weights(self, from: usize, to: usize) -> Vec<(usize, Vec<f64>)> {
        let scale = from as f64 / to as f64;
        let reach = if self.antialias { scale.max(1.0) } else { 1.0 };
        let place = |at: usize| {
            let centre = (at as f64 + 0.5) * scale;
            let begin = (centre - reach + 0.5).max(0.0) as usize;
            let end = ((centre + reach + 0.5) as usize).min(from);
            let near =
                |x: usize| (1.0 - ((x as f64 - centre + 0.5) * (1.0 / reach)).abs()).max(0.0);
            let sum = (begin..end).map(near).fold(0.0, |sum, x| sum + x);
            let unit = 2f64.powi(self.bits);
            let weights = (begin..end).map(|x| (near(x) / sum * unit + 0.5).floor() / unit);
            (begin, weights.collect())
        };
        (0..to).map(place).collect()
    }

    /// A line at another length.
    fn line(self, levels: &[f64], to: usize, round: bool) -> Vec<f64> {
        if levels.len() == to {
            return levels.to_vec();
        }
        let sum = |(begin, weights): (usize, Vec<f64>)| {
            let products = levels[begin..].iter().zip(weights).map(|(x, w)| x * w);
            let sum: f64 = products.sum();
            if round {
                (sum + 0.5).floor().clamp(0.0, 255.0)
            } else {
                sum
            }
        };
        self.weights(levels.len(), to)
            .into_iter()
            .map(sum)
            .collect()
    }

    fn values(self, picture: &Picture, config: &ImageProcessorConfig) -> PixelValues {
        let (height, width) = config.size;
        let lost = |from: usize, to: usize| from as i64 - to as i64;
        let (rows, columns) = (lost(picture.height(), height), lost(picture.width(), width));
        let rows_first = (rows > 0 && rows > 2 * columns) == self.pillows_order;
        let mut values = Vec::new();
        for channel in 0..3 {
            let level = |x: usize, y: usize| {
                f64::from(picture.rgb()[3 * (y * picture.width() + x) + channel])
            };
            let stored: Vec<Vec<f64>> = (0..picture.height())
                .map(|y| (0..picture.width()).map(|x| level(x, y)).collect())
                .collect();
            let resized = if rows_first {
                let tall = self.lines(transposed(&stored), height, self.rounds_between);
                self.lines(transposed(&tall), width, true)
            } else {
                let wide = self.lines(stored, width, self.rounds_between);
                transposed(&self.lines(transposed(&wide), height, true))
            };
            let (mean, std) = (
                config.image_mean[channel] as f32,
                config.image_std[channel] as f32,
            );
            let rescaled = resized
                .iter()
                .flatten()
                .map(|x| (x * config.rescale_factor) as f32);
            values.extend(rescaled.map(|x| (x - mean) / std));
        }
        PixelValues {
            height,
            width,
            values,
        }
    }

    fn lines(self, lines: Vec<Vec<f64>>, to: usize, round: bool) -> Vec<Vec<f64>> {
        lines
            .iter()
            .map(|line| self.line(line, to, round))
            .collect()
    }
}

fn transposed(lines: &[Vec<f64>]) -> Vec<Vec<f64>> {
    (0..lines[0].len())
        .map(|x| lines.iter().map(|line| line[x]).collect())
        .collect()
}

#[test]
fn another_resize_is_found() {
    let golden = golden();
    let config = config(&golden.processors["small"]);
    let right = Naive {
        antialias: true,
        bits: 22,
        rounds_between: true,
        pillows_order: true,
    };
    let wrong = [
        Naive {
            antialias: false,
            ..right
        },
        Naive { bits: 8, ..right },
        Naive { bits: 50, ..right },
        Naive {
            rounds_between: false,
            ..right
        },
        Naive {
            pillows_order: false,
            ..right
        },
    ];
    let mut found = [0; 5];
    for case in &golden.pictures {
        let picture = open(&case.file);
        if of_pillow(&case.file).is_some() || picture.rgb().len() > 100_000 {
            continue;
        }
        let want = &case.pixel_values["small"][0];
        assert_eq!(
            &hash(&right.values(&picture, &config)),
            want,
            "{}",
            case.file
        );
        for (found, wrong) in found.iter_mut().zip(wrong) {
            *found += usize::from(&hash(&wrong.values(&picture, &config)) != want);
        }
    }
    assert!(found.iter().all(|found| *found > 0), "{found:?}");
}

#[test]
fn other_filters_and_settings_are_found() {
    let picture = open("rgb-8.png");
    let config = ImageProcessorConfig {
        size: (31, 29),
        ..ImageProcessorConfig::default()
    };
    let values =
        |config: ImageProcessorConfig| hash(&Preprocessor::new(config).pixel_values(&picture)[0]);
    let mut hashes: Vec<String> = Resample::ALL
        .map(|resample| {
            values(ImageProcessorConfig {
                resample,
                ..config.clone()
            })
        })
        .into();
    let mut changed = config.clone();
    changed.rescale_factor = 1.0 / 255.5;
    hashes.push(values(changed));
    let mut changed = config;
    changed.image_std[2] = 0.5 + 1e-7;
    hashes.push(values(changed));
    hashes.sort();
    hashes.dedup();
    assert_eq!(hashes.len(), 8);
}

/// What is wrong with some bytes, in one line.
fn refused(bytes: &[u8]) -> String {
    let error = Picture::decode(Path::new("a.picture"), bytes)
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("a.picture ") && error.lines().count() == 1,
        "{error}"
    );
    error
}

/// A picture with some of its bytes replaced.
fn with(file: &str, at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut data = std::fs::read(pictures().join(file)).unwrap();
    data[at..at + bytes.len()].copy_from_slice(bytes);
    data
}

#[test]
fn what_is_no_picture_is_said() {
    for bytes in [
        &b""[..],
        b"BM6",
        b"<svg/>",
        b"\x89PNG\r\n",
        b"%PDF-1.7",
        b"RIFF\0\0\0\0WAVE",
        b"GIF88a",
    ] {
        assert_eq!(
            refused(bytes),
            "a.picture is no picture that can be read; give a PNG, JPEG, WebP or GIF file"
        );
    }
    let missing = Picture::open(Path::new("no/such.png")).unwrap_err();
    assert!(matches!(missing, Error::Io(_)), "{missing}");
}

/// The IHDR chunk of a picture of this size, with its checksum.
fn header(width: u32, height: u32) -> Vec<u8> {
    let mut chunk = [
        &b"IHDR"[..],
        &width.to_be_bytes(),
        &height.to_be_bytes(),
        b"\x08\x02\0\0\0",
    ]
    .concat();
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 == 1 {
                crc >> 1 ^ 0xedb8_8320
            } else {
                crc >> 1
            }
        })
    };
    let crc = !chunk.iter().fold(!0, step);
    chunk.extend(crc.to_be_bytes());
    chunk
}

#[test]
fn sizes_are_bounded_before_anything_is_decoded() {
    let png = |width, height| with("rgb-8.png", 12, &header(width, height));
    assert_eq!(
        refused(&png(100_000, 100_000)),
        format!(
            "a.picture is 100000 × 100000 pixels, more than the {MAX_PIXELS} that are decoded; scale it down"
        )
    );
    assert_eq!(
        refused(&png(9000, 9000)),
        "a.picture says it is 9000 × 9000 pixels, which 7776 bytes of PNG cannot hold; it is cut short or damaged"
    );
    assert!(
        refused(&png(0, 7)).contains("its header says 0 × 7 pixels")
            || refused(&png(0, 7)).contains("PNG")
    );
    // One row more than there is, and one less.
    assert!(refused(&png(43, 62)).contains("decoded as PNG"));
    assert!(
        Picture::decode(Path::new("a"), &png(43, 60)).is_ok(),
        "Pillow, too, leaves out what is left"
    );
    let jpeg = std::fs::read(pictures().join("grey.jpg")).unwrap();
    let frame = jpeg
        .windows(2)
        .position(|pair| pair == [0xff, 0xc0])
        .unwrap();
    let jpeg = |size: [u8; 4]| refused(&with("grey.jpg", frame + 5, &size));
    assert!(jpeg([0xff, 0xff, 0xff, 0xff]).contains("more than the 89478485 that are decoded"));
    assert!(jpeg([0x20, 0, 0x20, 0]).contains("bytes of JPEG cannot hold"));
    assert!(jpeg([0, 0, 0, 45]).contains("JPEG"));
    // What is 1 less than its size, in 14 bits each.
    let webp = refused(&with("lossless.webp", 21, &[0xfe, 0xbf, 0xff, 0x0f]));
    assert!(webp.contains("16383 × 16383 pixels, more than"), "{webp}");
    let gif = refused(&with("plain.gif", 6, &[0xff, 0xff, 0xff, 0xff]));
    assert!(gif.contains("65535 × 65535 pixels, more than"), "{gif}");
}

#[test]
fn long_files_are_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("long.png");
    std::fs::copy(pictures().join("rgb-8.png"), &path).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(MAX_BYTES).unwrap();
    assert!(Picture::open(&path).is_ok());
    file.set_len(MAX_BYTES + 1).unwrap();
    let error = Picture::open(&path).unwrap_err().to_string();
    assert!(error.contains("more than the 67108864"), "{error}");
}

#[test]
fn pictures_that_are_cut_short_are_refused() {
    for case in golden().pictures {
        let data = std::fs::read(pictures().join(&case.file)).unwrap();
        if data.len() > 3000 {
            continue;
        }
        // A PNG's last chunk and a GIF's end may be missing, as far as Pillow is concerned.
        let needed = match case.file.rsplit('.').next().unwrap() {
            "png" => data.len() - 24,
            "gif" => data.len() - 5,
            _ => data.len() - 1,
        };
        for length in (0..needed).step_by(7) {
            refused(&data[..length]);
        }
    }
}

#[test]
fn changed_bytes_do_no_harm() {
    let mut state = 1u64;
    let mut random = || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 33) as usize
    };
    let small = [
        "palette-4.png",
        "exif-6.jpg",
        "progressive.jpg",
        "lossless-xmp-3.webp",
        "lossy.webp",
        "local.gif",
    ];
    for file in small {
        let data = std::fs::read(pictures().join(file)).unwrap();
        for _ in 0..200 {
            let mut changed = data.clone();
            for _ in 0..1 + random() % 3 {
                let at = random() % changed.len();
                changed[at] = random() as u8;
            }
            match Picture::decode(Path::new(file), &changed) {
                Ok(picture) => {
                    assert_eq!(picture.rgb().len(), 3 * picture.width() * picture.height())
                }
                Err(error) => assert_eq!(error.to_string().lines().count(), 1, "{error}"),
            }
        }
    }
}

#[test]
fn terminals_and_pages_show_it() {
    let picture = open("rgb-2x2.png");
    let rgb = |at: usize| {
        let [r, g, b] = picture.rgb()[3 * at..][..3] else {
            unreachable!()
        };
        format!("{r};{g};{b}")
    };
    let shown = half_blocks(&picture, 2);
    let characters = [0, 1].map(|x| format!("\x1b[38;2;{};48;2;{}m▀", rgb(x), rgb(x + 2)));
    assert_eq!(
        shown,
        format!("{}{}\x1b[0m\n", characters[0], characters[1])
    );
    for (file, columns, lines) in [
        ("palette-640x427.png", 40, 14),
        ("rgb-1x4000.png", 1, 40),
        ("rgb-4000x1.png", 40, 1),
    ] {
        let shown = half_blocks(&open(file), 40);
        assert_eq!(shown.lines().count(), lines, "{file}");
        let is_full = |line: &str| line.matches('▀').count() == columns;
        assert!(shown.lines().all(is_full), "{file}");
    }
    let size = |file: &str, longest| {
        let small = thumbnail(&open(file), longest).unwrap();
        let small = Picture::decode(Path::new("small.png"), &small).unwrap();
        (small.width(), small.height())
    };
    assert_eq!(size("palette-640x427.png", 160), (160, 107));
    assert_eq!(size("rgb-4000x1.png", 160), (160, 1));
    let whole = thumbnail(&picture, 160).unwrap();
    assert_eq!(
        Picture::decode(Path::new("whole.png"), &whole)
            .unwrap()
            .rgb(),
        picture.rgb()
    );
}

#[test]
fn prompts_are_those_of_transformers() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("reference/tiny-vision");
    let checkpoint = Checkpoint::open(folder.to_str().unwrap(), Access::Mapped).unwrap();
    processor::check("tiny-vision", &checkpoint);
}
