//! Spans on their way to a collector: those that clients send, as they are, and the daemon's own of each build.
//!
//! Holds: what waits is bounded, and no build waits for a collector; what it does not take is dropped.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lapstrake_api::Timestamp;
use lapstrake_api::control::{StatusResponse, Vertex};
use prost::Message as _;
use prost::bytes::{Buf as _, BufMut as _, Bytes};
use tokio::sync::mpsc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

/// Requests that wait; each is no longer than a message.
const WAITING_MAX: usize = 16;
/// How long a collector may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Spans of a build that are sent.
const SPANS_MAX: usize = 10_000;
const EXPORT: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
/// By this a caller says of which trace its call is a part.
const TRACEPARENT: &str = "traceparent";

/// Messages as they travel: nothing of them is read.
#[derive(Clone, Copy, Default)]
pub(crate) struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let length = from.remaining();
        Ok(Some(from.copy_to_bytes(length)))
    }
}

/// A collector that is named in the environment.
#[derive(Clone)]
pub(crate) struct Collector(mpsc::Sender<Bytes>);

enum Line {
    Grpc(Channel),
    Http(reqwest::Client, String),
}

impl Collector {
    /// The collector that the variables of OpenTelemetry name, if there is one. Needs the runtime.
    ///
    /// # Errors
    /// In words, why what they name can't be used.
    pub(crate) fn of_environment() -> Result<Option<Self>, String> {
        Self::of(&|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn of(variable: &dyn Fn(&str) -> Option<String>) -> Result<Option<Self>, String> {
        let of = |name: &str| {
            let traces = format!("OTEL_EXPORTER_OTLP_TRACES_{name}");
            variable(&traces)
                .map(|value| (value, true))
                .or_else(|| variable(&format!("OTEL_EXPORTER_OTLP_{name}")).map(|value| (value, false)))
        };
        let off = variable("OTEL_SDK_DISABLED").is_some_and(|text| text.eq_ignore_ascii_case("true"))
            || variable("OTEL_TRACES_EXPORTER").is_some_and(|text| text != "otlp");
        let Some((endpoint, exact)) = of("ENDPOINT").filter(|_| !off) else { return Ok(None) };
        let protocol = of("PROTOCOL").map_or_else(|| "grpc".to_owned(), |(protocol, _)| protocol);
        let headers = headers(&of("HEADERS").map(|(text, _)| text).unwrap_or_default())?;
        let line = match protocol.as_str() {
            "grpc" => {
                if endpoint.starts_with("https://") {
                    return Err(format!(
                        "{endpoint}: TLS is spoken with http/protobuf only: set OTEL_EXPORTER_OTLP_PROTOCOL to that"
                    ));
                }
                let address = match endpoint.contains("://") {
                    true => endpoint.clone(),
                    false => format!("http://{endpoint}"),
                };
                let address = Endpoint::from_shared(address).map_err(|e| format!("{endpoint}: {e}"))?;
                Line::Grpc(address.timeout(TIMEOUT).connect_timeout(TIMEOUT).connect_lazy())
            }
            "http/protobuf" => {
                let client =
                    reqwest::Client::builder().timeout(TIMEOUT).build().map_err(|e| e.to_string())?;
                let path = if exact { "" } else { "/v1/traces" };
                Line::Http(client, format!("{}{path}", endpoint.trim_end_matches('/')))
            }
            other => return Err(format!("OTEL_EXPORTER_OTLP_PROTOCOL {other}: give grpc or http/protobuf")),
        };
        let (send, receive) = mpsc::channel(WAITING_MAX);
        tracing::info!("spans go to {endpoint}");
        tokio::spawn(forward(line, headers, receive));
        Ok(Some(Self(send)))
    }

    /// Hands a request on, unless too many wait.
    pub(crate) fn take(&self, request: Bytes) {
        if self.0.try_send(request).is_err() {
            tracing::debug!("the collector of spans is too slow: some are dropped");
        }
    }

    /// Sends the spans of a build: its own, and those of its vertices below it.
    pub(crate) fn build(
        &self,
        id: &str,
        within: Option<Parent>,
        times: [SystemTime; 2],
        error: &str,
        events: &[Arc<StatusResponse>],
    ) {
        let trace = within.as_ref().map_or_else(|| random(16), |parent| parent.trace.clone());
        let own = Span {
            trace_id: trace.clone(),
            span_id: random(8),
            parent_span_id: within.map(|parent| parent.span).unwrap_or_default(),
            name: "moby.buildkit.v1.Control/Solve".to_owned(),
            kind: SERVER,
            start_time_unix_nano: nanos(times[0]),
            end_time_unix_nano: nanos(times[1]),
            attributes: vec![attribute("ref", id)],
            status: ended(error),
        };
        let mut spans = vec![own];
        let mut seen: BTreeMap<&str, &Vertex> = BTreeMap::new();
        for vertex in
            events.iter().flat_map(|event| &event.vertexes).filter(|vertex| vertex.completed.is_some())
        {
            seen.insert(&vertex.digest, vertex);
        }
        let parent = spans.first().map(|own| own.span_id.clone()).unwrap_or_default();
        spans.extend(seen.into_values().take(SPANS_MAX).map(|vertex| Span {
            trace_id: trace.clone(),
            span_id: random(8),
            parent_span_id: parent.clone(),
            name: vertex.name.clone(),
            kind: INTERNAL,
            start_time_unix_nano: stamp(vertex.started.or(vertex.completed)),
            end_time_unix_nano: stamp(vertex.completed),
            attributes: vec![attribute("vertex", &vertex.digest)],
            status: ended(&vertex.error),
        }));
        let resource = Resource { attributes: vec![attribute("service.name", "buildkitd")] };
        let scope_spans = vec![ScopeSpans { scope: Some(Scope { name: "lapstrake".to_owned() }), spans }];
        let request =
            ExportRequest { resource_spans: vec![ResourceSpans { resource: Some(resource), scope_spans }] };
        self.take(request.encode_to_vec().into());
    }
}

async fn forward(line: Line, headers: Vec<(String, String)>, mut requests: mpsc::Receiver<Bytes>) {
    let mut fails = false;
    while let Some(request) = requests.recv().await {
        let sent = match &line {
            Line::Grpc(channel) => grpc(channel, &headers, request).await,
            Line::Http(client, address) => http(client, address, &headers, request).await,
        };
        // Told once for each time that it begins to fail.
        if let (Err(why), false) = (&sent, fails) {
            tracing::warn!("the collector of spans does not take them: {why}");
        }
        fails = sent.is_err();
    }
}

async fn grpc(channel: &Channel, headers: &[(String, String)], body: Bytes) -> Result<(), String> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.map_err(|e| e.to_string())?;
    let mut request = Request::new(body);
    for (name, value) in headers {
        let name: tonic::metadata::AsciiMetadataKey = name.parse().map_err(|_| format!("header {name}"))?;
        let value = value.parse().map_err(|_| format!("the value of header {name}"))?;
        request.metadata_mut().insert(name, value);
    }
    let sent = grpc.unary(request, PathAndQuery::from_static(EXPORT), Raw).await;
    sent.map(drop).map_err(|status| status.to_string())
}

async fn http(
    client: &reqwest::Client,
    address: &str,
    headers: &[(String, String)],
    body: Bytes,
) -> Result<(), String> {
    let mut request = client.post(address).header("content-type", "application/x-protobuf");
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let answer = request.body(body).send().await.map_err(|e| e.without_url().to_string())?;
    answer.error_for_status().map(drop).map_err(|e| e.without_url().to_string())
}

/// `name=value,…`; the error names no values: they are secrets as a rule.
fn headers(text: &str) -> Result<Vec<(String, String)>, String> {
    let pairs = text.split(',').map(str::trim).filter(|pair| !pair.is_empty());
    let pair = |pair: &str| {
        let (name, value) =
            pair.split_once('=').ok_or("OTEL_EXPORTER_OTLP_HEADERS: a header has no value")?;
        Ok((name.trim().to_ascii_lowercase(), value.trim().to_owned()))
    };
    pairs.map(pair).collect()
}

/// The span that a call is a part of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Parent {
    trace: Vec<u8>,
    span: Vec<u8>,
}

impl Parent {
    /// What a caller says, in the form of W3C's recommendation; none where it says nothing, or that nobody looks.
    pub(crate) fn of(metadata: &MetadataMap) -> Option<Self> {
        let text = metadata.get(TRACEPARENT)?.to_str().ok()?;
        let mut parts = text.split('-');
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let (trace, span, flags) = (bytes(trace)?, bytes(span)?, bytes(flags)?);
        let sound = version.len() == 2 && version != "ff" && trace.len() == 16 && span.len() == 8;
        let sampled = flags.first().is_some_and(|flags| flags & 1 == 1);
        (sound && sampled && trace.iter().any(|byte| *byte != 0)).then_some(Self { trace, span })
    }
}

fn bytes(hex: &str) -> Option<Vec<u8>> {
    let pair = |at: usize| hex.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
    (hex.len().is_multiple_of(2)).then(|| (0..hex.len()).step_by(2).map(pair).collect())?
}

fn random(length: usize) -> Vec<u8> {
    let mut id = bytes(&super::id()).unwrap_or_default();
    id.resize(length, 1);
    id
}

fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn stamp(time: Option<Timestamp>) -> u64 {
    let time = time.unwrap_or_default();
    let seconds = u64::try_from(time.seconds).unwrap_or_default();
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(time.nanos).unwrap_or_default())
}

fn ended(error: &str) -> Option<SpanStatus> {
    (!error.is_empty()).then(|| SpanStatus { message: error.to_owned(), code: FAILED })
}

fn attribute(key: &str, value: &str) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { string_value: Some(value.to_owned()) }) }
}

const INTERNAL: i32 = 1;
const SERVER: i32 = 2;
const FAILED: i32 = 2;

#[derive(Clone, PartialEq, prost::Message)]
struct ExportRequest {
    #[prost(message, repeated, tag = "1")]
    resource_spans: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scope_spans: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ScopeSpans {
    #[prost(message, optional, tag = "1")]
    scope: Option<Scope>,
    #[prost(message, repeated, tag = "2")]
    spans: Vec<Span>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Scope {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Span {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    span_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(int32, tag = "6")]
    kind: i32,
    #[prost(fixed64, tag = "7")]
    start_time_unix_nano: u64,
    #[prost(fixed64, tag = "8")]
    end_time_unix_nano: u64,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<KeyValue>,
    #[prost(message, optional, tag = "15")]
    status: Option<SpanStatus>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SpanStatus {
    #[prost(string, tag = "2")]
    message: String,
    #[prost(int32, tag = "3")]
    code: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct AnyValue {
    #[prost(string, optional, tag = "1")]
    string_value: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_s_trace_is_read_as_w3c_has_it() {
        let of = |text: &'static str| {
            let mut metadata = MetadataMap::new();
            metadata.insert(TRACEPARENT, tonic::metadata::MetadataValue::from_static(text));
            Parent::of(&metadata)
        };
        let parent = of("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01").expect("sound");
        assert_eq!((parent.trace[0], parent.span[7]), (0x0a, 0x31));
        for other in [
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7-b7ad6b7169203331-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "é",
            "",
        ] {
            if other.is_ascii() {
                assert_eq!(of(other), None, "{other}");
            }
        }
        assert_eq!(Parent::of(&MetadataMap::new()), None);
    }

    #[tokio::test]
    async fn a_collector_is_what_the_variables_name() {
        let of = |set: &[(&str, &str)]| {
            let set: BTreeMap<_, _> = set.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            Collector::of(&|name| set.get(name).cloned()).map(|found| found.is_some())
        };
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1");
        assert_eq!(of(&[]), Ok(false));
        assert_eq!(of(&[endpoint]), Ok(true));
        assert_eq!(of(&[endpoint, ("OTEL_TRACES_EXPORTER", "none")]), Ok(false));
        assert_eq!(of(&[endpoint, ("OTEL_SDK_DISABLED", "true")]), Ok(false));
        assert_eq!(of(&[endpoint, ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")]), Ok(true));
        assert!(of(&[endpoint, ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json")]).is_err());
        let wrong = of(&[endpoint, ("OTEL_EXPORTER_OTLP_HEADERS", "secretvalue")]).expect_err("no value");
        assert!(!wrong.contains("secretvalue"), "{wrong}");
    }
}
