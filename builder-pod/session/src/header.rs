//! What is said in gRPC headers, which hold visible ASCII only.

use std::collections::HashSet;
use std::time::Duration;

use tonic::Status;
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue, MetadataMap};

use crate::health::Schedule;

const ID: &str = "x-docker-expose-session-uuid";
const NAME: &str = "x-docker-expose-session-name";
const SHARED_KEY: &str = "x-docker-expose-session-sharedkey";
const METHOD: &str = "x-docker-expose-session-grpc-method";
const HEALTH_MS: &str = "x-buildkit-session-health-custom-timeout";

/// Methods that a client may name; there are some twenty.
const METHODS_MAX: usize = 1000;

/// How a client introduces itself.
#[derive(Debug)]
pub(crate) struct Introduction {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) shared_key: String,
    /// In lower case.
    pub(crate) methods: HashSet<String>,
    pub(crate) health: Schedule,
}

impl Introduction {
    pub(crate) fn read(metadata: &MetadataMap) -> Result<Self, Status> {
        let id = text(metadata, ID);
        if id.is_empty() {
            return Err(Status::invalid_argument(format!("a session needs an id in the header {ID}")));
        }
        let methods = metadata.get_all(METHOD).iter().take(METHODS_MAX);
        let health_ms: Option<u64> = text(metadata, HEALTH_MS).parse().ok().filter(|ms| *ms > 0);
        Ok(Self {
            id,
            name: decoded(metadata, NAME),
            shared_key: decoded(metadata, SHARED_KEY),
            methods: methods.filter_map(|value| Some(value.to_str().ok()?.to_ascii_lowercase())).collect(),
            health: health_ms.map_or_else(Schedule::default, |ms| Schedule::every(Duration::from_millis(ms))),
        })
    }
}

fn text(metadata: &MetadataMap, key: &str) -> String {
    metadata.get(key).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}

/// A value that a companion header `…-encoded` may say is query-escaped.
fn decoded(metadata: &MetadataMap, key: &str) -> String {
    let value = text(metadata, key);
    let encoded = matches!(
        text(metadata, &format!("{key}-encoded")).as_str(),
        "1" | "t" | "T" | "true" | "TRUE" | "True"
    );
    if encoded { unescape(&value).unwrap_or(value) } else { value }
}

/// Adds a value as it is, which a client looks up unread: one that would have to be escaped is refused, in the words of Go's gRPC.
pub(crate) fn put_plain(metadata: &mut MetadataMap, key: &str, value: &str) -> Result<(), Status> {
    if value.bytes().any(|byte| !(0x20..0x7f).contains(&byte)) {
        let why = format!("header key {key:?} contains value with non-printable ASCII characters");
        return Err(Status::internal(why));
    }
    put(metadata, key, &[value.to_owned()])
}

/// Adds `values` under `key`, all escaped when one of them needs it, which a companion header then says.
pub(crate) fn put(metadata: &mut MetadataMap, key: &str, values: &[String]) -> Result<(), Status> {
    let invalid = |_| Status::invalid_argument(format!("{key:?} cannot be a header"));
    let escape_all = values.iter().any(|value| value.bytes().any(|byte| !(0x20..0x7f).contains(&byte)));
    let name: AsciiMetadataKey = key.parse().map_err(invalid)?;
    for value in values {
        let value = if escape_all { escape(value) } else { value.clone() };
        let value = AsciiMetadataValue::try_from(value)
            .map_err(|_| Status::invalid_argument(format!("a value of header {key:?} is malformed")))?;
        metadata.append(name.clone(), value);
    }
    if escape_all {
        let name: AsciiMetadataKey = format!("{key}-encoded").parse().map_err(invalid)?;
        metadata.append(name, AsciiMetadataValue::from_static("1"));
    }
    Ok(())
}

/// As in the query of a URL: a space is `+`.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => escaped.push(byte.into()),
            b' ' => escaped.push('+'),
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

/// The inverse; `None` for what is malformed.
pub(crate) fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        match first {
            b'+' => bytes.push(b' '),
            b'%' => {
                let (digits, tail) = rest.split_at_checked(2)?;
                bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
                rest = tail;
            }
            other => bytes.push(*other),
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_with_one_outside_of_ascii_are_all_escaped_and_it_is_said() {
        let mut metadata = MetadataMap::new();
        put(&mut metadata, "include-patterns", &["a b".into(), "ü%".into()]).expect("put");
        let values: Vec<_> =
            metadata.get_all("include-patterns").iter().map(|v| v.to_str().expect("ascii")).collect();
        assert_eq!(values, ["a+b", "%C3%BC%25"]);
        assert_eq!(metadata.get("include-patterns-encoded").expect("said"), "1");
        assert_eq!(unescape("%C3%BC%25+").as_deref(), Some("ü% "));
        assert_eq!(unescape("%C"), None);
    }

    #[test]
    fn a_name_that_is_looked_up_unread_is_never_escaped() {
        let mut metadata = MetadataMap::new();
        put_plain(&mut metadata, "store", "local:/a b").expect("put");
        assert_eq!(metadata.get("store").expect("value"), "local:/a b");
        let refused = put_plain(&mut metadata, "store", "local:é").expect_err("it is not ASCII");
        assert_eq!(
            refused.message(),
            "header key \"store\" contains value with non-printable ASCII characters"
        );
    }

    #[test]
    fn plain_values_are_sent_as_they_are() {
        let mut metadata = MetadataMap::new();
        put(&mut metadata, "followpaths", &["a b+c%".into()]).expect("put");
        assert_eq!(metadata.get("followpaths").expect("value"), "a b+c%");
        assert!(metadata.get("followpaths-encoded").is_none());
    }

    #[test]
    fn a_shared_key_that_is_said_to_be_escaped_is_read_so() {
        let mut metadata = MetadataMap::new();
        metadata.insert(ID, AsciiMetadataValue::from_static("one"));
        metadata.insert(SHARED_KEY, AsciiMetadataValue::from_static("caf%C3%A9"));
        metadata.insert("x-docker-expose-session-sharedkey-encoded", AsciiMetadataValue::from_static("true"));
        metadata.append(METHOD, AsciiMetadataValue::from_static("/a.B/C"));
        metadata.append(METHOD, AsciiMetadataValue::from_static("/d.E/F"));
        let read = Introduction::read(&metadata).expect("introduction");
        assert_eq!((read.id.as_str(), read.shared_key.as_str()), ("one", "café"));
        assert!(read.methods.contains("/a.b/c") && read.methods.contains("/d.e/f"));
    }
}
