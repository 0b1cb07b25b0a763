//! How a failed step is shown to a person: its lines of the Dockerfile, then its last output.

use lapstrake_dockerfile::Style;
use lapstrake_handoff::Failure;
use lapstrake_llb::{Graph, Location};

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
        Self { first, lines, cut }
    }

    /// The failure with its place and output, as text without an end of line.
    pub(crate) fn render(&self, failure: &Failure, style: Style) -> String {
        let mut out =
            vec![paint(style, "1;31", "error") + &paint(style, "1", &format!(": {}", failure.message))];
        let width = self.lines.last().map_or(1, |line| line.number.to_string().len());
        let frame = |text: &str| paint(style, "1;34", text);
        let file = failure.file.as_deref().unwrap_or("Dockerfile");
        let step = failure.step.as_ref().map_or(String::new(), |step| format!(" in {}", printable(step)));
        out.push(format!("{:width$}{} {file}:{}{step}", "", frame("-->"), self.first));
        out.push(frame(&format!("{:width$} |", "")));
        for line in &self.lines {
            let mark = if line.marked { paint(style, "1;31", ">") } else { " ".to_owned() };
            let text = format!("{} {mark} {}", frame(&format!("{:>width$} |", line.number)), line.text);
            out.push(text.trim_end().to_owned());
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
        out.join("\n")
    }
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
        assert_eq!(Excerpt::from_text(text, 3, 4).render(&failure, Style::Plain), expected);
    }

    #[test]
    fn a_long_step_is_cut() {
        let text = "RUN a\n".repeat(100);
        let shown =
            Excerpt::from_text(&text, 5, 90).render(&Failure::new(Reason::StepFailed, "m"), Style::Plain);
        assert!(shown.ends_with("16 | > RUN a\n..."), "{shown}");
        assert!(Excerpt::from_text("", 3, 4).lines.is_empty());
    }
}
