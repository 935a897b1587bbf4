//! Theorem 5 on random blocks of every form, in f64 and f32: equality within the derived bound, or a typed
//! error.
#![no_main]

mod block_form;

use arbitrary::Unstructured;
use block_form::check;
use context_patch::forms::{BlockForm, Control, FORMS, NormKind, Sizes};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut u = Unstructured::new(bytes);
    let form = form(&mut u).unwrap_or(FORMS[0]);
    let f64 = u.arbitrary().unwrap_or(true);
    let mut numbers = Numbers::new(u, form.sizes.hidden);
    let mut number = || numbers.next();
    // A refusal is as good as a patch.
    let _ = match f64 {
        true => check::<f64>(&form, &mut number),
        false => check::<f32>(&form, &mut number),
    };
});

/// One of the forms with other sizes, and perhaps without its norms.
fn form(u: &mut Unstructured<'_>) -> arbitrary::Result<BlockForm> {
    let form = *u.choose(&FORMS)?;
    let context = u.int_in_range(0..=5)?;
    Ok(BlockForm {
        norm: if u.ratio(1, 4)? {
            NormKind::None
        } else {
            form.norm
        },
        transposed: u.arbitrary()?,
        control: match form.control {
            Control::Experts { .. } => Control::Experts {
                count: u.int_in_range(1..=4)?,
                active: u.int_in_range(0..=3)?,
            },
            control => control,
        },
        sizes: Sizes {
            hidden: u.int_in_range(1..=12)?,
            intermediate: u.int_in_range(1..=20)?,
            context,
            kept: u.int_in_range(0..=context)?,
        },
        ..form
    })
}

/// Numbers times a scale that changes now and then, zeros of both signs, and rows again.
struct Numbers<'a> {
    bytes: Unstructured<'a>,
    /// What goes on where the bytes run out.
    state: u64,
    scale: f64,
    row: usize,
    given: Vec<f64>,
    repeats: usize,
}

impl<'a> Numbers<'a> {
    fn new(mut bytes: Unstructured<'a>, row: usize) -> Self {
        Self {
            state: bytes.arbitrary().unwrap_or(0),
            bytes,
            scale: 1.0,
            row,
            given: Vec::new(),
            repeats: 0,
        }
    }

    fn next(&mut self) -> f64 {
        let number = self.draw();
        self.given.push(number);
        number
    }

    fn draw(&mut self) -> f64 {
        if self.repeats == 0 {
            match self.byte() {
                0..=11 => return 0.0,
                12..=15 => return -0.0,
                16..=17 => self.scale = 10f64.powi(i32::from(self.byte()) % 61 - 30),
                18 => self.scale = 1.0,
                19..=22 if self.given.len() >= self.row => self.repeats = self.row,
                _ => {}
            }
        }
        if self.repeats > 0 {
            self.repeats -= 1;
            return self.given[self.given.len() - self.row];
        }
        (f64::from(self.byte()) / 128.0 - 1.0 + f64::from(self.byte()) / 32768.0) * self.scale
    }

    fn byte(&mut self) -> u8 {
        if !self.bytes.is_empty() {
            return self.bytes.arbitrary().unwrap_or(0);
        }
        self.state = self
            .state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.state >> 56) as u8
    }
}
