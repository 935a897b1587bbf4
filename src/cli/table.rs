//! Tables for people: columns as wide as their widest cell.

/// Lines of cells under a header. The first `texts` columns stand to the left, numbers after them to the right.
pub(super) fn table<H: AsRef<str>>(texts: usize, header: &[H], rows: &[Vec<String>]) -> String {
    let header = header.iter().map(|cell| cell.as_ref().to_owned()).collect();
    let lines: Vec<&Vec<String>> = std::iter::once(&header).chain(rows).collect();
    let width = |column: usize| {
        let cells = lines.iter().filter_map(|line| line.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..header.len()).map(width).collect();
    let mut text = String::new();
    for line in lines {
        let cells = line.iter().zip(&widths).enumerate();
        let cells: Vec<_> = cells
            .map(|(column, (cell, &width))| {
                if column < texts {
                    format!("{cell:<width$}")
                } else {
                    format!("{cell:>width$}")
                }
            })
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}
