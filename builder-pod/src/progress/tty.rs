use std::collections::VecDeque;
use std::time::{Duration, Instant};

use console::{Term, style, truncate_str};
use lapstrake_handoff::{StepEvent, StepId};

use super::Renderer;

/// Lines of output that are shown below each running step.
const OUTPUT_LINES: usize = 5;
/// The table is drawn at most this often.
const DRAW_INTERVAL: Duration = Duration::from_millis(80);

/// A table of the steps that run, below the steps that ended.
pub(super) struct Tty {
    term: Term,
    open: Vec<Row>,
    drawn_lines: usize,
    drawn_at: Option<Instant>,
    began: Instant,
    ended: usize,
}

struct Row {
    id: StepId,
    name: String,
    since: Instant,
    output: VecDeque<String>,
}

impl Tty {
    pub(super) fn new() -> Self {
        Self {
            term: Term::stderr(),
            open: Vec::new(),
            drawn_lines: 0,
            drawn_at: None,
            began: Instant::now(),
            ended: 0,
        }
    }

    fn width(&self) -> usize {
        usize::from(self.term.size().1).max(20)
    }

    fn clear(&mut self) {
        self.term.clear_last_lines(self.drawn_lines).ok(); // a terminal that went away shows nothing
        self.drawn_lines = 0;
    }

    fn print(&mut self, line: &str) {
        self.term.write_line(&truncate_str(line, self.width(), "…")).ok(); // as above
    }

    /// A line that stays above the table.
    fn keep(&mut self, line: &str) {
        self.clear();
        self.print(line);
    }

    fn draw(&mut self, force: bool) {
        let due = self.drawn_at.is_none_or(|at| at.elapsed() >= DRAW_INTERVAL);
        if !force && !due {
            return;
        }
        self.clear();
        self.drawn_at = Some(Instant::now());
        if self.open.is_empty() {
            return;
        }
        let head = format!(
            "[+] Building {:.1}s ({}/{})",
            self.began.elapsed().as_secs_f64(),
            self.ended,
            self.ended + self.open.len()
        );
        let mut lines = vec![style(head).cyan().to_string()];
        for row in &self.open {
            lines.push(format!(" => {}  {:.1}s", row.name, row.since.elapsed().as_secs_f64()));
            lines.extend(row.output.iter().map(|line| style(format!(" => # {line}")).dim().to_string()));
        }
        let room = usize::from(self.term.size().0).saturating_sub(2).max(4);
        lines.truncate(room);
        for line in &lines {
            self.print(line);
        }
        self.drawn_lines = lines.len();
    }

    fn end(&mut self, id: StepId, mark: &str, result: &str) {
        if let Some(at) = self.open.iter().position(|row| row.id == id) {
            let row = self.open.remove(at);
            self.ended += 1;
            let line = format!(" {mark} {}  {result}", row.name);
            self.keep(&line);
        }
        self.draw(true);
    }
}

impl Renderer for Tty {
    fn event(&mut self, id: StepId, event: &StepEvent) {
        match event {
            StepEvent::Started { name } => {
                self.open.push(Row {
                    id,
                    name: name.clone(),
                    since: Instant::now(),
                    output: VecDeque::new(),
                });
                self.draw(true);
            }
            StepEvent::Log { text, .. } | StepEvent::Part { text, .. } => {
                if let Some(row) = self.open.iter_mut().find(|row| row.id == id) {
                    row.output.push_back(console::strip_ansi_codes(text).into_owned());
                    if row.output.len() > OUTPUT_LINES {
                        row.output.pop_front();
                    }
                }
                self.draw(false);
            }
            StepEvent::Done { took } => self.end(id, "✔", &format!("{:.1}s", took.as_secs_f64())),
            StepEvent::Cached => self.end(id, "✔", "CACHED"),
            StepEvent::Failed { message } => {
                // What the step printed last is what explains it.
                let output: Vec<String> = match self.open.iter().find(|row| row.id == id) {
                    Some(row) => row.output.iter().cloned().collect(),
                    None => Vec::new(),
                };
                for line in output {
                    self.keep(&format!("   {line}"));
                }
                self.end(id, "✘", &style(format!("ERROR: {message}")).red().to_string());
            }
            StepEvent::Canceled => self.end(id, "-", "CANCELED"),
        }
    }

    fn text(&mut self, text: &str) {
        self.keep(text);
        self.draw(true);
    }

    fn finish(&mut self) {
        self.clear();
    }
}
