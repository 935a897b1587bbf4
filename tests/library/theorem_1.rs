//! Theorem 1 on random blocks, and what each failing precondition is called.

use crate::block::{Block, Outcome};
use crate::common::numbers;

fn good() -> Block {
    Block::new(7, 11, numbers(1, 2.0, 2))
}

#[test]
fn random_blocks_are_patched_exactly() {
    for seed in 0..300 {
        let (hidden, intermediate) = (1 + seed as usize % 19, 8 + seed as usize % 23);
        let block = Block::new(hidden, intermediate, numbers(seed, 2.0, (seed % 8) as i32));
        assert_eq!(block.check(), Outcome::Equal, "seed {seed}");
    }
}

#[test]
fn the_check_can_fail() {
    // A Δm solved for another target.
    let block = good();
    let mut other = block.clone();
    other.v_ctx[0] += 1.0;
    let n = [1.0; 7];
    let solve = |b: &Block| context_patch::patch::theorem_1::outer(&b.m, &n, &b.v_ctx).unwrap();
    let difference = solve(&other)[0] - solve(&block)[0];
    assert!((difference - 1.0).abs() < 1e-12);
}

fn refused(block: &Block) -> String {
    match block.check() {
        Outcome::Refused(quantity, value) => format!("{quantity} = {value}"),
        Outcome::Equal => "equal".into(),
    }
}

#[test]
fn zero_z_is_refused() {
    let mut block = good();
    block.z = vec![0.0; 7];
    assert_eq!(refused(&block), "‖z‖ = 0");
}

#[test]
fn infinite_z_is_refused() {
    let mut block = good();
    block.z[3] = f64::INFINITY;
    assert_eq!(refused(&block), "‖z‖ = inf");
}

#[test]
fn nan_weights_are_refused() {
    let mut block = good();
    block.gate[0] = f64::NAN;
    assert_eq!(refused(&block), "(W δz/‖z‖)[0] = NaN");
}

#[test]
fn a_zero_coordinate_is_refused() {
    let mut block = good();
    block.down[..11].fill(0.0);
    assert_eq!(refused(&block), "n(d)[0] = 0");
}

#[test]
fn a_zero_coordinate_that_needs_no_change_is_not() {
    let mut block = good();
    block.down[..11].fill(0.0);
    block.v_ctx[0] = block.v[0];
    assert_eq!(block.check(), Outcome::Equal);
}

#[test]
fn a_zero_activation_is_refused() {
    let mut block = good();
    block.up.fill(0.0);
    assert_eq!(refused(&block), "n(d)[0] = 0");
}

#[test]
fn the_same_state_needs_no_patch() {
    let mut block = good();
    block.z_ctx = block.z.clone();
    block.v_ctx = block.v.clone();
    assert_eq!(block.check(), Outcome::Equal);
}
