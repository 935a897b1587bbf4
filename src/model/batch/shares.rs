//! Which sequence takes in how much in a step.

/// How many tokens each sequence takes in, of the `left` ones that it has to: one where that is all; of the others, which are
/// prompts, `most` together, and of none more than `most_of_one`.
///
/// Half of it goes to the prompt that has waited longest, the rest to the shortest ones: so none keeps the others waiting.
pub(super) fn shares(left: &[usize], most: usize, most_of_one: usize) -> Vec<usize> {
    let mut shares: Vec<_> = left.iter().map(|&left| left.min(1)).collect();
    let mut prompts: Vec<_> = (0..left.len()).filter(|&i| left[i] > 1).collect();
    let Some(&oldest) = prompts.first() else {
        return shares;
    };
    prompts.iter().for_each(|&i| shares[i] = 0);
    let mut rest = most.max(1);
    let mut give = |i: usize, most: usize| {
        let more = (left[i].min(most_of_one) - shares[i]).min(most).min(rest);
        shares[i] += more;
        rest -= more;
    };
    give(oldest, most.div_ceil(2).max(1));
    prompts.sort_by_key(|&i| left[i]);
    prompts.iter().for_each(|&i| give(i, most.max(1)));
    shares
}

#[cfg(test)]
mod tests {
    use super::shares;

    #[test]
    fn prompts_share_what_is_left_beside_single_tokens() {
        assert_eq!(shares(&[], 8, 256), [0; 0]);
        assert_eq!(shares(&[1, 0, 1], 8, 256), [1, 0, 1]);
        assert_eq!(shares(&[1, 100, 1], 8, 256), [1, 8, 1]);
        // Half for the first, the rest for the shortest.
        assert_eq!(shares(&[100, 50, 3, 1], 8, 256), [4, 1, 3, 1]);
        assert_eq!(shares(&[2, 50, 3], 8, 256), [2, 3, 3]);
        // What the others do not need goes to the first.
        assert_eq!(shares(&[100, 2], 8, 256), [6, 2]);
        assert_eq!(shares(&[1000, 2], 600, 256), [256, 2]);
        // There is no standing still.
        assert_eq!(shares(&[5, 5], 0, 256), [1, 0]);
        assert_eq!(shares(&[5, 5], 1, 256), [1, 0]);
    }
}
