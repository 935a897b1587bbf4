//! Any bytes as a picture, up to what the model reads of it; or an error of one line.
#![no_main]

use std::path::Path;

use context_patch::checkpoint::{ImageProcessorConfig, Resample};
use context_patch::vision::{
    MAX_PIXELS, PanAndScan, Picture, Preprocessor, half_blocks, thumbnail,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    let picture = match Picture::decode(Path::new("picture"), file) {
        Ok(picture) => picture,
        Err(error) => {
            assert_eq!(error.to_string().lines().count(), 1, "{error}");
            return;
        }
    };
    let pixels = picture.width() * picture.height();
    assert!(pixels as u64 <= MAX_PIXELS);
    assert_eq!(picture.rgb().len(), 3 * pixels);
    // Large pictures take too long to try many.
    if pixels > 1 << 20 {
        return;
    }
    let config = ImageProcessorConfig {
        size: (5, 7),
        resample: Resample::ALL[file.len() % Resample::ALL.len()],
        ..ImageProcessorConfig::default()
    };
    let settings = PanAndScan {
        min_crop_size: 1 + file.len() % 3,
        ..PanAndScan::default()
    };
    let preprocessor = Preprocessor::new(config).with_pan_and_scan(settings);
    let values = preprocessor.pixel_values(&picture);
    assert_eq!(values.len(), 1 + preprocessor.crops(&picture));
    for image in values {
        assert_eq!(image.values.len(), 3 * 5 * 7);
        assert!(image.values.iter().all(|x| (-1.0..=1.0).contains(x)));
    }
    assert!(half_blocks(&picture, 8).contains('▀'));
    let small = thumbnail(&picture, 16).expect("a picture can be written");
    let small = Picture::decode(Path::new("small"), &small).expect("a thumbnail is a picture");
    assert!(small.width() <= 16 && small.height() <= 16);
});
