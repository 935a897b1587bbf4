//! The rows of maps that GGUF has in another order than Hugging Face. An order has, for each row of one, its place in the other.

use crate::tensor::Tensor;

/// Of the rows of q or k, where neighbours rotate together in GGUF and here the first numbers of all rotations of a head come
/// before the second ones: for each row here its place in GGUF, or `None` where they are not pairs of so many heads.
pub(super) fn halves(rows: usize, heads: usize) -> Option<Vec<usize>> {
    if !rows.is_multiple_of(2 * heads) {
        return None;
    }
    let head = rows / heads;
    let place = |row| {
        let (first, within) = (row / head * head, row % head);
        first + 2 * (within % (head / 2)) + within / (head / 2)
    };
    Some((0..rows).map(place).collect())
}

/// Of the rows of queries, keys and values, of which GGUF has all of a kind after one another and Hugging Face for each key head
/// its queries, its key and its value: for each row here its place in GGUF, or `None` where they are not so many heads.
pub(super) fn grouped(rows: usize, [heads, kv_heads]: [usize; 2]) -> Option<Vec<usize>> {
    let all = heads + 2 * kv_heads;
    if !rows.is_multiple_of(all) || !heads.is_multiple_of(kv_heads) {
        return None;
    }
    let (head, queries) = (rows / all, heads / kv_heads);
    let place = |row: usize| {
        let (group, within) = (row / head / (queries + 2), row / head % (queries + 2));
        let place = match within.checked_sub(queries) {
            None => group * queries + within,
            Some(which) => heads + which * kv_heads + group,
        };
        place * head + row % head
    };
    Some((0..rows).map(place).collect())
}

/// The order in the other direction.
pub(super) fn inverse(order: &[usize]) -> Vec<usize> {
    let mut inverse = vec![0; order.len()];
    for (row, &place) in order.iter().enumerate() {
        inverse[place] = row;
    }
    inverse
}

/// How many rows a tensor has, or numbers where it is a vector.
pub(super) fn extent(tensor: &Tensor) -> usize {
    tensor.shape().first().copied().unwrap_or(1)
}

/// A copy with the rows (the numbers of a vector) that have these places.
pub(super) fn reordered(tensor: &Tensor, order: &[usize]) -> Tensor {
    let stride = tensor.bytes().len() / extent(tensor);
    let mut bytes = Vec::with_capacity(tensor.bytes().len());
    for &row in order {
        bytes.extend(&tensor.bytes()[row * stride..(row + 1) * stride]);
    }
    let copy = Tensor::new(tensor.storage(), tensor.shape().into(), bytes.into());
    copy.unwrap_or_else(|| tensor.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_come_from_neighbours() {
        // Two heads of four numbers, which rotate as 0 with 1, 2 with 3, …
        assert_eq!(halves(8, 2), Some(vec![0, 2, 1, 3, 4, 6, 5, 7]));
        assert_eq!(halves(6, 2), None);
    }

    #[test]
    fn groups_come_from_kinds() {
        // Queries a b c d, keys e f, values g h, a row each.
        assert_eq!(grouped(8, [4, 2]), Some(vec![0, 1, 4, 6, 2, 3, 5, 7]));
        assert_eq!(grouped(9, [4, 2]), None);
    }

    #[test]
    fn an_order_and_its_inverse_change_nothing() {
        for order in [halves(24, 3), grouped(24, [4, 2])].into_iter().flatten() {
            let there: Vec<_> = inverse(&order).into_iter().map(|row| order[row]).collect();
            assert_eq!(there, (0..24).collect::<Vec<_>>());
            assert_ne!(order, there, "an order that is none");
        }
    }
}
