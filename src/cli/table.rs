//! Rows for people and for pipes.

use std::io::{self, Write};

/// Rows of as many columns as the header has. On a terminal they are aligned under it; in a pipe they are separated by
/// tabs and have no header, so that `cut` and `awk` read them.
pub struct Table {
    header: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// No rows yet.
    pub fn new(header: impl Into<Vec<&'static str>>) -> Self {
        Self { header: header.into(), rows: Vec::new() }
    }

    /// Adds a row.
    pub fn row(&mut self, row: impl Into<Vec<String>>) {
        self.rows.push(row.into());
    }

    /// Writes all rows.
    ///
    /// # Errors
    /// Those of the output.
    pub fn write(&self, out: &mut impl Write, terminal: bool) -> io::Result<()> {
        if !terminal {
            return self.rows.iter().try_for_each(|row| writeln!(out, "{}", row.join("\t")));
        }
        let header: Vec<String> = self.header.iter().map(ToString::to_string).collect();
        let all = || std::iter::once(&header).chain(&self.rows);
        let widest = |column: usize| all().map(|row| row[column].chars().count()).max().unwrap_or_default();
        let widths: Vec<usize> = (0..header.len()).map(widest).collect();
        for row in all() {
            let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            writeln!(out, "{}", cells.join("  ").trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligned_for_people_and_tabs_for_pipes() {
        let mut table = Table::new(["NAME", "SIZE"]);
        table.row(["é".to_owned(), "1".to_owned()]);
        table.row(["longer".to_owned(), "22".to_owned()]);
        let written = |terminal| {
            let mut out = Vec::new();
            table.write(&mut out, terminal).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(written(true), "NAME    SIZE\né       1\nlonger  22\n");
        assert_eq!(written(false), "é\t1\nlonger\t22\n");
    }
}
