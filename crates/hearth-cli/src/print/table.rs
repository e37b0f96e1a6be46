//! Tables as docker prints them: a header, columns with three spaces between, one line for each row.
//!
//! On a terminal that is too narrow, columns that may be shortened are, the longest first.

use anstyle::Style;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use super::{Screen, plain};

const GAP: usize = 3;

/// A cell: text, and a colour if it matters.
#[derive(Debug, Clone)]
pub(crate) struct Cell {
    text: String,
    style: Option<Style>,
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self {
            text: plain(text.as_ref()).replace(['\n', '\t'], " "),
            style: None,
        }
    }
}

impl Cell {
    /// Gives it a colour.
    pub(crate) fn styled(mut self, style: Style) -> Self {
        self.style = Some(style);
        self
    }
}

/// A table.
#[derive(Debug)]
pub(crate) struct Table {
    /// Name, and the width that it may be shortened to, if any.
    columns: Vec<(&'static str, Option<usize>)>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// Names the columns, each with the width that it may be shortened to.
    pub(crate) fn new(columns: &[(&'static str, Option<usize>)]) -> Self {
        Self {
            columns: columns.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row.
    pub(crate) fn push<const N: usize>(&mut self, cells: [Cell; N]) {
        debug_assert_eq!(N, self.columns.len());
        self.rows.push(cells.into());
    }

    /// Returns the lines, each with its end.
    pub(crate) fn render(&self, screen: Screen) -> String {
        let widths = self.widths(screen.width);
        let header: Vec<_> = self.columns.iter().map(|(name, _)| Cell::from(name)).collect();
        let mut text = String::new();
        for row in std::iter::once(&header).chain(&self.rows) {
            for (index, (cell, &width)) in row.iter().zip(&widths).enumerate() {
                let shown = shortened(&cell.text, width);
                let padding = if index + 1 == row.len() {
                    0
                } else {
                    width + GAP - shown.width()
                };
                text.push_str(
                    &cell
                        .style
                        .map_or_else(|| shown.clone(), |style| screen.paint(style, &shown)),
                );
                text.extend(std::iter::repeat_n(' ', padding));
            }
            text.truncate(text.trim_end_matches(' ').len());
            text.push('\n');
        }
        text
    }

    fn widths(&self, available: Option<usize>) -> Vec<usize> {
        let widest = |(index, (name, _)): (usize, &(&str, _))| {
            let cells = self.rows.iter().filter_map(|row| row.get(index));
            cells.map(|cell| cell.text.width()).fold(name.width(), usize::max)
        };
        let mut widths: Vec<_> = self.columns.iter().enumerate().map(widest).collect();
        let Some(available) = available else {
            return widths;
        };
        let gaps = GAP * widths.len().saturating_sub(1);
        let mut excess = (widths.iter().sum::<usize>() + gaps).saturating_sub(available);
        while excess > 0 {
            let minimum = |index: usize| self.columns[index].1.unwrap_or(usize::MAX);
            let candidates = (0..widths.len()).filter(|&index| widths[index] > minimum(index));
            let Some(longest) = candidates.max_by_key(|&index| widths[index]) else {
                break;
            };
            widths[longest] -= 1;
            excess -= 1;
        }
        widths
    }
}

/// Cuts a text to so many columns, the last one a mark.
pub(crate) fn shortened(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut room = width.saturating_sub(1);
    let fits = |c: &char| {
        let taken = c.width().unwrap_or(0);
        let fits = taken <= room;
        room = room.saturating_sub(taken);
        fits
    };
    let mut cut: String = text.chars().take_while(fits).collect();
    cut.push('…');
    cut
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::print::WARNING;

    fn table() -> Table {
        let mut table = Table::new(&[
            ("ID", None),
            ("IMAGE", Some(8)),
            ("COMMAND", Some(8)),
            ("STATUS", None),
        ]);
        table.push([
            "0123456789ab".into(),
            "registry.example.org/team/application:2024.1".into(),
            "\"python3 -m http.ser…\"".into(),
            "Up 3 minutes".into(),
        ]);
        table.push([
            "ba9876543210".into(),
            "busybox".into(),
            "\"sh\"".into(),
            Cell::from("Exited (0) 2 hours ago").styled(WARNING),
        ]);
        table
    }

    fn rendered(width: Option<usize>) -> String {
        table().render(Screen { width, colour: false })
    }

    #[test]
    fn at_60_columns_long_ones_are_cut_to_their_minimum() {
        let expected = "\
ID             IMAGE      COMMAND    STATUS
0123456789ab   registr…   \"python…   Up 3 minutes
ba9876543210   busybox    \"sh\"       Exited (0) 2 hours ago
";
        assert_eq!(rendered(Some(57)), expected);
        assert!(rendered(Some(60)).lines().all(|line| line.width() <= 60));
    }

    #[test]
    fn at_80_columns_the_longest_is_cut_first() {
        let text = rendered(Some(80));
        assert!(text.lines().all(|line| line.width() <= 80), "{text}");
        assert!(
            text.contains("registry.example.o…   \"python3 -m http.…"),
            "{text}"
        );
    }

    #[test]
    fn at_200_columns_or_in_a_pipe_nothing_is_cut() {
        assert_eq!(rendered(Some(200)), rendered(None));
        assert!(rendered(None).contains("application:2024.1   \"python3 -m http.ser…\"   Up 3 minutes\n"));
    }

    #[test]
    fn colour_takes_no_room() {
        let coloured = table().render(Screen {
            width: Some(60),
            colour: true,
        });
        assert!(coloured.contains("\x1b[33mExited (0) 2 hours ago\x1b[0m"));
        let bare = coloured.replace("\x1b[33m", "").replace("\x1b[0m", "");
        assert_eq!(bare, rendered(Some(60)));
    }

    #[test]
    fn wide_characters_count_twice() {
        assert_eq!(shortened("日本語", 6), "日本語");
        assert_eq!(shortened("日本語", 5), "日本…");
        assert_eq!(shortened("日本語", 4), "日…");
    }
}
