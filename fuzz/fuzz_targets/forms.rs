//! Theorem 5 on random blocks of every form, in f64 and f32: equality within the derived bound, or a typed
//! error.
#![no_main]

mod block_form;

use arbitrary::Unstructured;
use block_form::check;
use context_patch::forms::{Form, Sizes};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut u = Unstructured::new(bytes);
    let Some(form) = form(&mut u) else {
        return;
    };
    let f64 = u.arbitrary().unwrap_or(true);
    let mut numbers = Numbers::new(u, form.sizes.heads * form.sizes.head_dim);
    let mut number = || numbers.next();
    // A refusal is as good as a patch.
    let _ = match f64 {
        true => check::<f64>(&form, &mut number),
        false => check::<f32>(&form, &mut number),
    };
});

/// One of the forms with other sizes, which its family must take.
fn form(u: &mut Unstructured<'_>) -> Option<Form> {
    let forms = Form::all().expect("the families take their forms");
    let sizes = sizes(u).unwrap_or_default();
    let form = u.choose(&forms).ok()?;
    Some(form.resized(sizes).expect("the family takes these sizes"))
}

fn sizes(u: &mut Unstructured<'_>) -> arbitrary::Result<Sizes> {
    let kv_heads = u.int_in_range(1..=2)?;
    let context = u.int_in_range(0..=5)?;
    let experts = u.int_in_range(1..=4)?;
    Ok(Sizes {
        heads: kv_heads * u.int_in_range(1..=2)?,
        kv_heads,
        head_dim: 4,
        intermediate: u.int_in_range(1..=20)?,
        experts,
        top_k: u.int_in_range(1..=experts)?,
        context,
        kept: u.int_in_range(0..=context)?,
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
