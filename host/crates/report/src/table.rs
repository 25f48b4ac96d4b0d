//! Tables of plain text.

/// Aligns columns with two spaces between them: numeric columns to the right, all others and the
/// first one to the left.
pub fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let cells = |column: usize| rows.iter().filter_map(move |row| row.get(column));
    let width = |column: usize| cells(column).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let numeric = |column: usize| {
        column > 0
            && cells(column)
                .skip(1)
                .all(|cell| cell.starts_with(|c: char| "-+<>0123456789".contains(c)))
    };
    let shape: Vec<(usize, bool)> =
        (0..columns).map(|column| (width(column), numeric(column))).collect();
    let mut text = String::new();
    for row in rows {
        let padded = row.iter().zip(&shape).map(|(cell, (width, right))| {
            if *right { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        text.push_str(padded.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// Replaces control characters, so that text from a file cannot send commands to the terminal.
pub fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
