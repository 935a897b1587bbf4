//! A picture as it is shown again: in a terminal, and small in a page.

use std::fmt::Write;

use super::picture::Picture;
use super::resize::resize;
use super::rgb::Rgb;
use crate::checkpoint::Resample;

/// The picture in half blocks, two pixels in the height of a character, for a terminal with colours of 24 bits: at most `columns`
/// characters wide, and as many lines high.
pub fn half_blocks(picture: &Picture, columns: usize) -> String {
    let most = columns.max(1);
    let (width, height) = (picture.width(), picture.height());
    let (columns, lines) = if height > 2 * width {
        ((2 * most * width / height).max(1), most)
    } else {
        (most, (most * height).div_ceil(2 * width))
    };
    let small = resize(picture.pixels(), (2 * lines, columns), Resample::Box);
    let mut text = String::new();
    for line in 0..lines {
        for column in 0..columns {
            let [r, g, b] = small.pixel(column, 2 * line);
            let [below_r, below_g, below_b] = small.pixel(column, 2 * line + 1);
            // Writing to a string does not fail.
            let _ = write!(
                text,
                "\x1b[38;2;{r};{g};{b};48;2;{below_r};{below_g};{below_b}m▀"
            );
        }
        text.push_str("\x1b[0m\n");
    }
    text
}

/// A PNG file of the picture, scaled down so that its longer side has at most `longest` pixels.
///
/// # Errors
///
/// None of a picture that was decoded; they are the encoder's.
pub fn thumbnail(picture: &Picture, longest: usize) -> std::io::Result<Vec<u8>> {
    let pixels = picture.pixels();
    let long = pixels.width.max(pixels.height);
    let scaled = |side: usize| (side * longest).div_ceil(long).max(1);
    let small = if long > longest {
        resize(
            pixels,
            (scaled(pixels.height), scaled(pixels.width)),
            Resample::Box,
        )
    } else {
        pixels.clone()
    };
    Ok(png(&small)?)
}

fn png(picture: &Rgb) -> Result<Vec<u8>, png::EncodingError> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, picture.width as u32, picture.height as u32);
    encoder.set_color(png::ColorType::Rgb);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&picture.bytes)?;
    writer.finish()?;
    Ok(file)
}
