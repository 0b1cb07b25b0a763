use serde::Serialize;

/// A document as Go programs write it, in one line or indented: equal documents then have equal digests, whoever made them.
///
/// # Errors
/// Of values that JSON has no form for.
pub fn to_json(value: &impl Serialize, indented: bool) -> Result<Vec<u8>, serde_json::Error> {
    let text = match indented {
        true => serde_json::to_string_pretty(value)?,
        false => serde_json::to_string(value)?,
    };
    // These stand in texts alone; they are written so that a page of HTML can hold them.
    let plain = |c: char| !matches!(c, '<' | '>' | '&' | '\u{2028}' | '\u{2029}');
    if text.chars().all(plain) {
        return Ok(text.into_bytes());
    }
    let mut out = String::with_capacity(text.len() + 64);
    for c in text.chars() {
        match plain(c) {
            true => out.push(c),
            false => out.push_str(&format!("\\u{:04x}", u32::from(c))),
        }
    }
    Ok(out.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_escaped_as_go_does_and_read_back_as_they_were() {
        let value = serde_json::json!({ "a": "x > y && z <\u{2028}" });
        let bytes = to_json(&value, false).expect("it can be written");
        assert_eq!(bytes, br#"{"a":"x \u003e y \u0026\u0026 z \u003c\u2028"}"#);
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&bytes).expect("it can be read"), value);
    }
}
