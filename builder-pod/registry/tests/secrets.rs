//! Secrets stay secret. Alone in its process, since it collects the log of all threads.
#![allow(clippy::unwrap_used)]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use lapstrake_oci::Descriptor;
use lapstrake_registry::{BlobSource, Client, Config, Credentials, Limits, Progress};
use lapstrake_testkit::image::{Image, Layer, reference};
use lapstrake_testkit::registry::{Auth, Options, Registry};

const PASSWORD: &str = "correct-horse-7731";
const WRONG: &str = "battery-staple-9944";

async fn registry(auth: Auth) -> Registry {
    let registry = Registry::start(Options { auth, ..Options::default() }).await.unwrap();
    registry.put_image("app", "1", &Image::new(&[Layer::new().file("a", "b")])).unwrap();
    registry
}

/// Collects everything that is logged, at every level.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_in_any_error_log_line_or_debug_output() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let mut identity = Auth::token("user", PASSWORD);
    if let Auth::Token { identity_tokens, .. } = &mut identity {
        identity_tokens.push("refresh-5512".to_owned());
    }
    let mut text = String::new();
    for auth in [Auth::basic("user", PASSWORD), Auth::token("user", PASSWORD), identity] {
        let registry = registry(auth).await;
        let host = registry.host();
        for credentials in [
            Credentials::none().with_basic(&host, "user", PASSWORD),
            Credentials::none().with_basic(&host, "user", WRONG),
            Credentials::parse(
                format!(r#"{{"auths":{{"{host}":{{"registrytoken":"direct-3341"}}}}}}"#).as_bytes(),
                "test",
            )
            .unwrap(),
            Credentials::parse(
                format!(r#"{{"auths":{{"{host}":{{"identitytoken":"refresh-5512"}}}}}}"#).as_bytes(),
                "test",
            )
            .unwrap(),
        ] {
            text.push_str(&format!("{credentials:?}"));
            let limits = Limits { backoff_first: Duration::from_millis(1), ..Limits::default() };
            let config = Config { credentials, limits, ..Config::default() };
            text.push_str(&format!("{config:?}"));
            let (client, name) = (Client::new(config), reference(&host, "app:1"));
            text.push_str(&format!("{client:?} {:?}", client.resolve(&name).await));
            let blob = Descriptor::of("text/plain", b"bytes");
            let source = BlobSource::bytes(&b"bytes"[..]);
            let pushed = client.push_blob(&name, &blob, &source, &[], &Progress::none()).await;
            text.push_str(&format!("{pushed:?}"));
            if let Err(error) = pushed {
                text.push_str(&format!("{error} {error:#}"));
            }
        }
    }
    text.push_str(&String::from_utf8_lossy(&log.0.lock().unwrap()));
    assert!(text.contains("got a token") && text.contains("[redacted]"), "the log was collected");
    let pair = |password: &str| base64::engine::general_purpose::STANDARD.encode(format!("user:{password}"));
    for secret in
        [PASSWORD, WRONG, "refresh-5512", "direct-3341", "testkit-token-", &pair(PASSWORD), &pair(WRONG)]
    {
        assert!(!text.contains(secret), "{secret} was shown");
    }
}
