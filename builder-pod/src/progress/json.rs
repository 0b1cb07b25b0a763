use std::io::Write as _;

use lapstrake_handoff::{StepEvent, StepId};
use serde_json::{Value, json};

use super::Renderer;

/// One JSON object per line on standard error.
pub(super) struct Json;

impl Json {
    pub(super) fn new() -> Self {
        Self
    }
}

/// The object for an event; the keys are part of the interface.
fn object(id: StepId, event: &StepEvent) -> Value {
    match event {
        StepEvent::Started { name } => json!({"step": id, "event": "started", "name": name}),
        StepEvent::Log { at, text } => json!({"step": id, "event": "log", "atMs": millis(*at), "text": text}),
        StepEvent::Part { text, took, done } => {
            json!({"step": id, "event": "part", "text": text, "tookMs": millis(*took), "done": done})
        }
        StepEvent::Done { took } => json!({"step": id, "event": "done", "tookMs": millis(*took)}),
        StepEvent::Cached => json!({"step": id, "event": "cached"}),
        StepEvent::Failed { message } => json!({"step": id, "event": "failed", "message": message}),
        StepEvent::Canceled => json!({"step": id, "event": "canceled"}),
    }
}

fn millis(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Renderer for Json {
    fn event(&mut self, id: StepId, event: &StepEvent) {
        writeln!(std::io::stderr(), "{}", object(id, event)).ok(); // nobody reads any more: the build goes on
    }

    fn text(&mut self, text: &str) {
        writeln!(std::io::stderr(), "{}", json!({"event": "text", "text": text})).ok(); // as above
    }
}
