//! As much Markdown as the checks need: links, code spans and table rows, with their lines; fenced blocks are skipped.

/// A Markdown file.
#[derive(Debug)]
pub(crate) struct Document {
    /// Relative to the repository's root.
    pub(crate) path: String,
    text: String,
}

/// A piece of text and the line it stands on, from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Span<'d> {
    pub(crate) line: usize,
    pub(crate) text: &'d str,
}

/// A row of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row<'d> {
    pub(crate) line: usize,
    /// Trimmed; the text of the cells as written.
    pub(crate) cells: Vec<&'d str>,
}

/// A table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Table<'d> {
    pub(crate) head: Vec<&'d str>,
    pub(crate) rows: Vec<Row<'d>>,
}

impl Document {
    pub(crate) fn new(path: &str, text: String) -> Self {
        Self {
            path: path.to_owned(),
            text,
        }
    }

    /// Returns the targets of links and images, `[text](target "title")` and `[name]: target`.
    pub(crate) fn links(&self) -> Vec<Span<'_>> {
        self.lines()
            .into_iter()
            .flat_map(|line| links_of(&line))
            .collect()
    }

    /// Returns what stands in backquotes.
    pub(crate) fn code(&self) -> Vec<Span<'_>> {
        let mut found = Vec::new();
        for line in self.lines() {
            found.extend(code_of(line.text).into_iter().map(|text| Span {
                line: line.line,
                text,
            }));
        }
        found
    }

    /// Returns the tables: a row of cells, a row of dashes, and the rows that follow.
    pub(crate) fn tables(&self) -> Vec<Table<'_>> {
        let mut tables = Vec::new();
        let mut above: Option<Row<'_>> = None;
        let mut current: Option<Table<'_>> = None;
        for line in self.lines() {
            match (row_of(&line), &mut current) {
                (None, _) => {
                    tables.extend(current.take());
                    above = None;
                }
                (Some(row), Some(table)) => table.rows.push(row),
                (Some(row), None) if is_rule(&row) => {
                    current = above.take().map(|head| Table {
                        head: head.cells,
                        rows: Vec::new(),
                    });
                }
                (Some(row), None) => above = Some(row),
            }
        }
        tables.extend(current);
        tables
    }

    /// Returns the lines outside of fenced blocks.
    fn lines(&self) -> Vec<Span<'_>> {
        let mut fenced = false;
        let mut lines = Vec::new();
        for (index, text) in self.text.lines().enumerate() {
            let fence = text.trim_start().starts_with("```") || text.trim_start().starts_with("~~~");
            fenced ^= fence;
            if !fenced && !fence {
                lines.push(Span {
                    line: index + 1,
                    text,
                });
            }
        }
        lines
    }
}

/// Returns the code spans of a text.
pub(crate) fn code_of(text: &str) -> Vec<&str> {
    pieces(text)
        .into_iter()
        .filter(|(code, _)| *code)
        .map(|(_, piece)| piece)
        .collect()
}

/// Cuts a line at its backquotes; every second piece is code. An odd one is text.
fn pieces(text: &str) -> Vec<(bool, &str)> {
    let pieces: Vec<_> = text.split('`').collect();
    let closed = pieces.len() - 1 + pieces.len() % 2;
    pieces
        .into_iter()
        .enumerate()
        .map(|(index, piece)| (index % 2 == 1 && index < closed, piece))
        .collect()
}

fn links_of<'d>(line: &Span<'d>) -> Vec<Span<'d>> {
    let text = line.text;
    let mut targets: Vec<&str> = Vec::new();
    if let Some((_, target)) = text
        .trim_start()
        .strip_prefix('[')
        .and_then(|rest| rest.split_once("]: "))
    {
        targets.push(target);
    }
    for (index, _) in text.match_indices("](") {
        let in_code = text[..index].matches('`').count() % 2 == 1 && text[index..].contains('`');
        let target = text[index + 2..].split_once(')').map(|(target, _)| target);
        targets.extend(target.filter(|_| !in_code));
    }
    let first_word = |target: &'d str| target.split_whitespace().next().unwrap_or("");
    let bare = |target| first_word(target).trim_matches(['<', '>']);
    targets
        .into_iter()
        .map(|target| Span {
            line: line.line,
            text: bare(target),
        })
        .collect()
}

fn row_of<'d>(line: &Span<'d>) -> Option<Row<'d>> {
    let inner = line.text.trim().strip_prefix('|')?.strip_suffix('|')?;
    let mut cells = Vec::new();
    let mut start = 0;
    for (index, _) in inner.match_indices('|') {
        if !inner[..index].ends_with('\\') {
            cells.push(inner[start..index].trim());
            start = index + 1;
        }
    }
    cells.push(inner[start..].trim());
    Some(Row {
        line: line.line,
        cells,
    })
}

fn is_rule(row: &Row<'_>) -> bool {
    row.cells
        .iter()
        .all(|cell| !cell.is_empty() && cell.chars().all(|c| c == '-' || c == ':'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(text: &str) -> Document {
        Document::new("x.md", text.to_owned())
    }

    fn texts(spans: Vec<Span<'_>>) -> Vec<(usize, &str)> {
        spans.into_iter().map(|span| (span.line, span.text)).collect()
    }

    #[test]
    fn links_are_found_outside_of_code() {
        let text = "[a](b.md \"t\") ![c](<d.png>)\n```\n[x](y)\n```\n`[x](y)` and [e](f#g)\n[h]: i/j\n";
        assert_eq!(
            texts(document(text).links()),
            [(1, "b.md"), (1, "d.png"), (5, "f#g"), (6, "i/j")]
        );
    }

    #[test]
    fn code_spans_are_found() {
        assert_eq!(
            texts(document("`a` b `c d`\n\n`e").code()),
            [(1, "a"), (1, "c d")]
        );
    }

    #[test]
    fn tables_are_found() {
        let document = document("x\n| A | B |\n|---|:--|\n| 1 | `x \\| y` |\n| 3 | 4 |\n\n| no table |\n");
        let tables = document.tables();
        assert_eq!(tables.len(), 1);
        assert_eq!(tables[0].head, ["A", "B"]);
        assert_eq!(tables[0].rows[0].cells, ["1", "`x \\| y`"]);
        assert_eq!((tables[0].rows[1].line, tables[0].rows.len()), (5, 2));
    }
}
