//! `/metrics`, `/healthz` and `/readyz`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// What the endpoints show.
#[derive(Clone)]
pub struct Shown {
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Whether the API server was reached, and no shutdown has begun.
    pub ready: Arc<AtomicBool>,
}

/// Serves on each address until `stop`.
pub async fn serve(addresses: Vec<SocketAddr>, shown: Shown, stop: CancellationToken) -> std::io::Result<()> {
    let mut listeners = Vec::new();
    for address in addresses {
        listeners.push(tokio::net::TcpListener::bind(address).await?);
    }
    let servers = listeners.into_iter().map(|listener| {
        let stop = stop.clone();
        let server = axum::serve(listener, router(shown.clone()));
        async move { server.with_graceful_shutdown(async move { stop.cancelled().await }).await }
    });
    futures::future::try_join_all(servers).await.map(|_| ())
}

fn router(shown: Shown) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok" }))
        .route("/readyz", get(ready))
        .with_state(shown)
}

async fn metrics(State(shown): State<Shown>) -> impl IntoResponse {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], shown.metrics.text())
}

async fn ready(State(shown): State<Shown>) -> impl IntoResponse {
    if shown.ready.load(Ordering::Relaxed) {
        (StatusCode::OK, "ok")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready")
    }
}
