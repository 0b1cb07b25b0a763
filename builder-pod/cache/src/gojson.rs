//! JSON as Go's encoder writes structs: fields in their order, empty ones left out, text escaped for HTML.
//! BuildKit's cache keys are digests over it.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

/// An object in the making.
pub(crate) struct Object(String);

impl Object {
    pub(crate) fn new() -> Self {
        Self("{".to_owned())
    }

    /// A field whatever its value; `value` is JSON.
    pub(crate) fn raw(mut self, name: &str, value: &str) -> Self {
        if self.0.len() > 1 {
            self.0.push(',');
        }
        self.0.push('"');
        self.0.push_str(name);
        self.0.push_str("\":");
        self.0.push_str(value);
        self
    }

    /// A field that is left out where there is no value.
    pub(crate) fn maybe(self, name: &str, value: Option<String>) -> Self {
        match value {
            Some(value) => self.raw(name, &value),
            None => self,
        }
    }

    pub(crate) fn text(self, name: &str, value: &str) -> Self {
        self.maybe(name, (!value.is_empty()).then(|| quoted(value)))
    }

    pub(crate) fn number(self, name: &str, value: i64) -> Self {
        self.maybe(name, (value != 0).then(|| value.to_string()))
    }

    pub(crate) fn flag(self, name: &str, value: bool) -> Self {
        self.maybe(name, value.then(|| "true".to_owned()))
    }

    pub(crate) fn bytes(self, name: &str, value: &[u8]) -> Self {
        self.maybe(name, (!value.is_empty()).then(|| base64(value)))
    }

    /// A list of JSON values.
    pub(crate) fn list(self, name: &str, values: impl IntoIterator<Item = String>) -> Self {
        let values: Vec<String> = values.into_iter().collect();
        self.maybe(name, (!values.is_empty()).then(|| array(&values)))
    }

    pub(crate) fn texts(self, name: &str, values: &[String]) -> Self {
        self.list(name, values.iter().map(|value| quoted(value)))
    }

    pub(crate) fn end(mut self) -> String {
        self.0.push('}');
        self.0
    }
}

pub(crate) fn array(values: &[String]) -> String {
    format!("[{}]", values.join(","))
}

pub(crate) fn base64(bytes: &[u8]) -> String {
    format!("\"{}\"", BASE64_STANDARD.encode(bytes))
}

pub(crate) fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => out.push_str(&format!("\\u{:04x}", c as u32)),
            c if (c as u32) < 0x20 => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped_as_go_escapes_it() {
        // What json.Marshal prints for the same text.
        let text = "a<b>&\"\\\n\r\t\u{8}\u{c}\u{1}\u{7f}é\u{2028}";
        assert_eq!(quoted(text), "\"a\\u003cb\\u003e\\u0026\\\"\\\\\\n\\r\\t\\b\\f\\u0001\u{7f}é\\u2028\"");
        let object = Object::new().text("none", "").number("n", -1).flag("f", false).texts("l", &[]).end();
        assert_eq!(object, r#"{"n":-1}"#);
    }
}
