//! Attention itself.

use std::ops::Range;

use super::Step;
use crate::compare::interval::Interval;
use crate::model::Attention;
use crate::trace::Rows;

impl Step<'_> {
    /// softmax(q kᵀ · scaling) v of one token, all heads.
    pub(super) fn mix(&self, attention: &Attention, row: usize) -> Vec<Interval> {
        let seen = self.seen(attention, row);
        let width = attention.form.head_dim;
        let q = self.row(0, row);
        let [keys, values] = [0, 1].map(|i| &self.looked_back_at[i][seen.clone()]);
        let group = q.len() / keys[0].len();
        let heads = q.chunks_exact(width).enumerate();
        heads
            .flat_map(|(head, q)| {
                let of = head / group * width..(head / group + 1) * width;
                let scores = keys
                    .iter()
                    .map(|k| self.score(attention, q, &k[of.clone()]));
                let p = self.softmax(&scores.collect::<Vec<_>>()).into_iter();
                let p: Vec<_> = p.map(|p| self.rounding.of(p)).collect();
                let values: Vec<_> = values.iter().map(|v| &v[of.clone()]).collect();
                self.average(&p, &values)
            })
            .collect()
    }

    /// The rows that attention sees from one on: in the vision part those of the same image, and in the text model what is in
    /// the window up to the token itself, or to the last that images have together.
    pub(super) fn seen(&self, attention: &Attention, row: usize) -> Range<usize> {
        if let Rows::EachImage(each) = self.operation.rows {
            let first = row / each * each;
            return first..first + each;
        }
        let together = self.run.model.seen_together(self.run.spans);
        let span = together.iter().find(|span| span.contains(&row));
        let window = attention.form.window.unwrap_or(usize::MAX);
        (row + 1).saturating_sub(window)..span.map_or(row + 1, |span| span.end)
    }

    fn score(&self, attention: &Attention, q: &[Interval], k: &[Interval]) -> Interval {
        let (mut sum, mut sizes, mut off) = (0.0, 0.0, 0.0);
        for (q, k) in q.iter().zip(k) {
            sum += q.value * k.value;
            sizes += (q.value * k.value).abs();
            off += q.times(*k).half();
        }
        let walk = self.rounding.walk(q.len()) * sizes;
        let (product, unit) = (Interval::around(sum, walk + off), self.rounding.unit());
        let scaling = Interval::exactly(attention.form.scaling);
        let scaling = scaling.off(unit * attention.form.scaling);
        let score = if attention.form.rounded_scores {
            let product = self.rounding.of(product);
            self.rounding.once(product.times(scaling))
        } else {
            let score = product.times(scaling);
            score.off(unit * score.size())
        };
        match attention.form.softcap {
            None => score,
            Some(cap) => self.capped(score, cap),
        }
    }

    /// The largest p there may be has its own score at its highest and all others at their lowest.
    pub(super) fn softmax(&self, scores: &[Interval]) -> Vec<Interval> {
        let most = scores
            .iter()
            .fold(f64::NEG_INFINITY, |most, s| most.max(s.value));
        let e: Vec<_> = scores.iter().map(|s| s.map(|s| (s - most).exp())).collect();
        let sum = |of: fn(&Interval) -> f64| e.iter().map(of).sum::<f64>();
        let (low, value, high) = (sum(|e| e.low), sum(|e| e.value), sum(|e| e.high));
        let of_each = scores.iter().zip(&e).map(|(s, e)| {
            let share = |e: f64, others: f64| {
                if e == 0.0 {
                    0.0
                } else {
                    e / (e + others.max(0.0))
                }
            };
            let p = Interval {
                low: share(e.low, high - e.high),
                value: e.value / value,
                high: share(e.high, low - e.low),
            };
            // An error of the exponent is a relative one of the power.
            let exponent = self.rounding.unit() * ((s.value - most).abs() + 8.0);
            p.off((exponent + self.rounding.walk(scores.len())) * p.high)
        });
        of_each.collect()
    }

    /// Σ pⱼ vⱼ.
    fn average(&self, p: &[Interval], values: &[&[Interval]]) -> Vec<Interval> {
        let mut sums = vec![Interval::exactly(0.0); values[0].len()];
        let mut sizes = vec![0.0; sums.len()];
        for (p, v) in p.iter().zip(values) {
            for ((sum, size), &v) in sums.iter_mut().zip(&mut sizes).zip(*v) {
                let term = p.times(v);
                *sum = sum.plus(term);
                *size += term.size();
            }
        }
        let walk = self.rounding.walk(p.len()) + self.rounding.unit();
        let sums = sums.into_iter().zip(sizes);
        sums.map(|(sum, size)| self.rounding.of(sum.off(walk * size)))
            .collect()
    }
}
