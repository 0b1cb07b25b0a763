use lapstrake_handoff::{StepEvent, StepId, Writer};

use super::Renderer;

/// BuildKit's plain progress on standard error.
pub(super) struct Plain(Writer<std::io::Stderr>);

impl Plain {
    pub(super) fn new() -> Self {
        Self(Writer::new(std::io::stderr()))
    }
}

impl Renderer for Plain {
    fn event(&mut self, id: StepId, event: &StepEvent) {
        self.0.event(id, event).ok(); // nobody reads any more: the build goes on
    }

    fn text(&mut self, text: &str) {
        self.0.text(text).ok(); // as above
    }
}
