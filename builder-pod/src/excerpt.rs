//! How a failed step is shown to a person: its lines of the Dockerfile, then its last output.

use lapstrake_dockerfile::Style;
use lapstrake_handoff::Failure;
use lapstrake_llb::{Graph, Location};

use crate::error::Advice;

/// Lines that are shown before and after those of the step.
const AROUND_LINES: u32 = 2;
/// Lines of the step itself that are shown at most.
const STEP_LINES_MAX: u32 = 12;
/// Longer lines are cut, characters.
const LINE_CHARS_MAX: usize = 200;

/// Lines of a file around a step.
#[derive(Debug)]
pub(crate) struct Excerpt {
    /// The step's first line, from 1.
    first: u32,
    lines: Vec<Line>,
    cut: bool,
    /// The whole file, and the step's last line.
    whole: (String, u32),
    /// The word that the failure is about.
    pointed: Option<Pointed>,
}

/// A word of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pointed {
    /// Number of the line, from 1.
    pub(crate) line: u32,
    /// Where it begins, in characters from 1.
    pub(crate) column: u32,
    chars: usize,
}

#[derive(Debug)]
struct Line {
    number: u32,
    text: String,
    /// It is one of the step's own.
    marked: bool,
}

impl Excerpt {
    /// The lines of the step that starts at `line`.
    pub(crate) fn of(graph: &Graph, line: u32) -> Option<Self> {
        let locations = graph.vertices().iter().flat_map(|vertex| &vertex.locations);
        let at: &Location = locations.filter(|l| l.first_line == line).max_by_key(|l| l.last_line)?;
        let text = &graph.files().get(at.file)?.text;
        Some(Self::from_text(text, at.first_line, at.last_line))
    }

    /// The whole file, and the last line of the step.
    pub(crate) fn whole(&self) -> (&str, u32) {
        (&self.whole.0, self.whole.1)
    }

    fn from_text(text: &str, first: u32, last: u32) -> Self {
        let shown_last = last.min(first.saturating_add(STEP_LINES_MAX - 1));
        let cut = shown_last < last;
        let from = first.saturating_sub(AROUND_LINES).max(1);
        let to = if cut { shown_last } else { last.saturating_add(AROUND_LINES) };
        let lines = (1u32..)
            .zip(text.lines())
            .skip_while(|(number, _)| *number < from)
            .take_while(|(number, _)| *number <= to)
            .map(|(number, line)| Line {
                number,
                text: printable(line),
                marked: (first..=last).contains(&number),
            });
        let mut lines: Vec<Line> = lines.collect();
        // Empty lines at the edges say nothing.
        while lines.last().is_some_and(|l| !l.marked && l.text.is_empty()) {
            lines.pop();
        }
        let empty = lines.iter().take_while(|l| !l.marked && l.text.is_empty()).count();
        lines.drain(..empty);
        Self { first, lines, cut, whole: (text.to_owned(), last), pointed: None }
    }

    /// Underlines the word that `wanted` stands for in the step's lines: itself, or the same path in another
    /// spelling. Tells where that is.
    pub(crate) fn point_at(&mut self, wanted: &str) -> Option<Pointed> {
        let wanted = plain_path(wanted);
        let found = self.lines.iter().filter(|line| line.marked).find_map(|line| {
            words(&line.text).find(|(_, word)| plain_path(word) == wanted).map(|(at, word)| Pointed {
                line: line.number,
                column: u32::try_from(line.text[..at].chars().count() + 1).unwrap_or(u32::MAX),
                chars: word.chars().count(),
            })
        });
        self.pointed = found.filter(|_| !wanted.is_empty());
        self.pointed
    }

    /// The failure with its place and output, as text without an end of line.
    pub(crate) fn render(&self, failure: &Failure, advice: Option<&Advice>, style: Style) -> String {
        let message = Advice::without(advice, &failure.message);
        let mut out = vec![paint(style, "1;31", "error") + &paint(style, "1", &format!(": {message}"))];
        let width = self.lines.last().map_or(1, |line| line.number.to_string().len());
        let frame = |text: &str| paint(style, "1;34", text);
        let file = failure.file.as_deref().unwrap_or("Dockerfile");
        let step = failure.step.as_ref().map_or(String::new(), |step| format!(" in {}", printable(step)));
        let place = match self.pointed {
            Some(at) => format!("{file}:{}:{}", at.line, at.column),
            None => format!("{file}:{}", self.first),
        };
        out.push(format!("{:width$}{} {place}{step}", "", frame("-->")));
        out.push(frame(&format!("{:width$} |", "")));
        for line in &self.lines {
            let mark = if line.marked { paint(style, "1;31", ">") } else { " ".to_owned() };
            let text = format!("{} {mark} {}", frame(&format!("{:>width$} |", line.number)), line.text);
            out.push(text.trim_end().to_owned());
            if let Some(at) = self.pointed.filter(|at| at.line == line.number) {
                let gap = " ".repeat(at.column as usize - 1);
                let under = paint(style, "1;31", &"^".repeat(at.chars));
                out.push(format!("{}   {gap}{under}", frame(&format!("{:width$} |", ""))));
            }
        }
        if self.cut {
            out.push(frame("..."));
        }
        if !failure.excerpt.is_empty() {
            out.push(frame(&format!("{:width$} |", "")));
            out.push(format!("{} the step's last output:", frame(&format!("{:width$} =", ""))));
            out.extend(
                failure
                    .excerpt
                    .lines()
                    .map(|line| format!("{:width$}   {}", "", printable(line)).trim_end().to_owned()),
            );
        }
        if let Some(advice) = advice {
            if failure.excerpt.is_empty() {
                out.push(frame(&format!("{:width$} |", "")));
            }
            out.push(format!("{} help: {}", frame(&format!("{:width$} =", "")), advice.text));
        }
        out.join("\n")
    }
}

/// Words of a line with where they begin in it, without quotes and what separates list entries and keys.
fn words(line: &str) -> impl Iterator<Item = (usize, &str)> {
    let separates = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | ',' | '=' | '[' | ']');
    let starts = line.char_indices().scan(true, move |before, (at, c)| {
        let starts = *before && !separates(c);
        *before = separates(c);
        Some((at, starts))
    });
    starts.filter(|(_, starts)| *starts).map(move |(at, _)| {
        let rest = &line[at..];
        (at, &rest[..rest.find(separates).unwrap_or(rest.len())])
    })
}

/// A path as it would be the same in other spellings.
fn plain_path(path: &str) -> &str {
    let path = path.trim_end_matches('/');
    path.strip_prefix("./").unwrap_or(path).trim_start_matches('/')
}

fn paint(style: Style, code: &str, text: &str) -> String {
    match style {
        Style::Plain => text.to_owned(),
        Style::Color => format!("\u{1b}[{code}m{text}\u{1b}[0m"),
    }
}

/// A line without what could steer a terminal, and of bounded length.
fn printable(line: &str) -> String {
    let plain = console::strip_ansi_codes(line);
    let mut out = String::with_capacity(plain.len());
    for (at, c) in plain.trim_end().chars().enumerate() {
        if at == LINE_CHARS_MAX {
            out.push('…');
            break;
        }
        match c {
            '\t' => out.push_str("    "),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapstrake_handoff::Reason;

    #[test]
    fn a_failed_step_is_shown_with_its_lines_and_its_output() {
        let text = "FROM a\n\nRUN make &&\\\n\ttest\n\nCMD x\n";
        let mut failure = Failure::new(Reason::StepFailed, "\"make\" failed with exit code 2");
        failure.step = Some("[2/2] RUN make".to_owned());
        failure.excerpt = "cc x.c\n\u{1b}[31mx.c:1: no\u{1b}[0m\u{7}\n".to_owned();
        let expected = "\
error: \"make\" failed with exit code 2
 --> Dockerfile:3 in [2/2] RUN make
  |
1 |   FROM a
2 |
3 | > RUN make &&\\
4 | >     test
5 |
6 |   CMD x
  |
  = the step's last output:
    cc x.c
    x.c:1: no\u{fffd}";
        assert_eq!(Excerpt::from_text(text, 3, 4).render(&failure, None, Style::Plain), expected);
    }

    #[test]
    fn the_word_that_is_wrong_is_underlined_with_the_way_out_below() {
        let mut shown =
            Excerpt::from_text("FROM a\nCOPY --from=b \"x\" \\\n  ./lib/requrements.txt /\n", 2, 3);
        let at = shown.point_at("/lib/requrements.txt").expect("it is there");
        assert_eq!((at.line, at.column), (3, 3));
        let advice = Advice { text: "did you mean lib/requirements.txt?".to_owned(), word: None };
        let message = format!("not found ({})", advice.text);
        let failure = Failure::new(Reason::StepFailed, message);
        let expected = "\
error: not found
 --> Dockerfile:3:3
  |
1 |   FROM a
2 | > COPY --from=b \"x\" \\
3 | >   ./lib/requrements.txt /
  |     ^^^^^^^^^^^^^^^^^^^^^
  |
  = help: did you mean lib/requirements.txt?";
        assert_eq!(shown.render(&failure, Some(&advice), Style::Plain), expected);
        assert_eq!(shown.point_at("/requrements.txt"), None, "a part of a path is another path");
        assert!(!shown.render(&failure, None, Style::Plain).contains('^'));
    }

    #[test]
    fn a_long_step_is_cut() {
        let text = "RUN a\n".repeat(100);
        let shown = Excerpt::from_text(&text, 5, 90).render(
            &Failure::new(Reason::StepFailed, "m"),
            None,
            Style::Plain,
        );
        assert!(shown.ends_with("16 | > RUN a\n..."), "{shown}");
        assert!(Excerpt::from_text("", 3, 4).lines.is_empty());
    }
}
