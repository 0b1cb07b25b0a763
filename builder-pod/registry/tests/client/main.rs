//! The client against a real registry on loopback: the one of testkit, and Debian's.
#![allow(clippy::unwrap_used)]

mod auth;
mod debian;
mod mirrors;
mod pull;
mod push;
mod tls;

use std::time::Duration;

use lapstrake_oci::{Descriptor, Reference};
use lapstrake_registry::{Client, Config, Credentials, Error, Limits, Progress};
use lapstrake_testkit::image::{Image, Layer, reference};
use lapstrake_testkit::registry::Registry;

/// Limits under which a test never waits for a person's patience.
fn quick() -> Limits {
    Limits {
        attempts_max: 4,
        backoff_first: Duration::from_millis(1),
        backoff_max: Duration::from_millis(4),
        ..Limits::default()
    }
}

fn config() -> Config {
    Config { limits: quick(), ..Config::default() }
}

fn client() -> Client {
    Client::new(config())
}

fn with_credentials(credentials: Credentials) -> Client {
    Client::new(Config { credentials, ..config() })
}

fn image() -> Image {
    Image::new(&[Layer::new().file("etc/hello", "hello\n"), Layer::new().dir("empty")])
}

/// A registry that has `app:1`.
async fn registry_with(image: &Image) -> Registry {
    let registry = Registry::open().await;
    registry.put_image("app", "1", image).unwrap();
    registry
}

fn app(registry: &Registry) -> Reference {
    reference(&registry.host(), "app:1")
}

/// Bytes that do not repeat, and their descriptor.
fn noise(len: usize) -> (Vec<u8>, Descriptor) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let bytes: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    })
    .take(len)
    .collect();
    let descriptor = Descriptor::of("application/octet-stream", &bytes);
    (bytes, descriptor)
}

async fn pull(client: &Client, name: &Reference, blob: &Descriptor) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    client.pull_blob(name, blob, &mut bytes, &Progress::none()).await?;
    Ok(bytes)
}
