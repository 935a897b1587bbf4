//! The pictures that the prompts have, small.

use super::escaped::escaped;
use crate::message::IoError;
use crate::verify::Setting;
use crate::vision::{Picture, thumbnail};

/// Pixels of a thumbnail's longer side.
const SIDE: usize = 240;

/// What the prompts have of pictures: what they are, and those of `pictures`, which are theirs in order, themselves. Nothing for
/// prompts of text.
///
/// # Errors
///
/// [`IoError`] where one cannot be made small.
pub(super) fn thumbnails(setting: &Setting, pictures: &[Picture]) -> Result<String, IoError> {
    if setting.images.is_empty() {
        return Ok(String::new());
    }
    let mut shown = String::new();
    for (i, record) in setting.images.iter().enumerate() {
        let picture = pictures
            .get(i)
            .filter(|picture| picture.sha256() == record.sha256);
        let image = match picture {
            None => String::new(),
            Some(picture) => {
                let png = thumbnail(picture, SIDE).map_err(IoError::at("draw", picture.path()))?;
                format!(
                    "<img alt=\"{}\" src=\"data:image/png;base64,{}\">",
                    escaped(&record.file),
                    base64(&png)
                )
            }
        };
        shown += &format!(
            "<figure>{image}<figcaption>{}, SHA-256 <code>{}</code></figcaption></figure>\n",
            escaped(&record.to_string()),
            escaped(&record.sha256),
        );
    }
    Ok(format!(
        "<h2>Pictures</h2>\n<p>What every prompt begins with, or has where it says so; the patched model sees none of it.</p>\n{shown}"
    ))
}

/// Bytes as a page holds them.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(4 * bytes.len().div_ceil(3));
    for chunk in bytes.chunks(3) {
        let mut three = [0; 3];
        three[..chunk.len()].copy_from_slice(chunk);
        let bits = u32::from_be_bytes([0, three[0], three[1], three[2]]);
        for digit in 0..4 {
            let at = (bits >> (18 - 6 * digit)) & 63;
            let is_there = digit <= chunk.len();
            text.push(if is_there {
                DIGITS[at as usize] as char
            } else {
                '='
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::base64;

    #[test]
    fn base64_is_that_of_rfc_4648() {
        let texts = ["", "f", "fo", "foo", "foob", "fooba", "foobar"];
        let want = [
            "", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy",
        ];
        assert_eq!(texts.map(|text| base64(text.as_bytes())), want);
        assert_eq!(base64(&[0xfb, 0xff, 0xbf]), "+/+/");
    }
}
