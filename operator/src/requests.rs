//! Requests to the API server, by what they ask for.

use std::sync::Arc;

use axum::http::{Method, Request, Uri};
use tower::util::MapRequestLayer;

use crate::metrics::Metrics;

/// What a request asks for, in the words of a role: never the name of an object, so that there are few of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete` or `deletecollection`.
    pub verb: &'static str,
    /// Such as `pods` or `imagebuilds/status`; `nonresource` for what is no object.
    pub resource: String,
}

/// Counts each request that a client sends.
pub fn counted<B>(metrics: Arc<Metrics>) -> MapRequestLayer<impl Fn(Request<B>) -> Request<B> + Clone> {
    MapRequestLayer::new(move |request: Request<B>| {
        metrics.asked(&asked(request.method(), request.uri()));
        request
    })
}

fn asked(method: &Method, uri: &Uri) -> Asked {
    let parts: Vec<&str> = uri.path().split('/').filter(|part| !part.is_empty()).collect();
    let rest = match parts.as_slice() {
        ["api", _, rest @ ..] | ["apis", _, _, rest @ ..] => rest,
        _ => &[],
    };
    let rest = match rest {
        ["namespaces", _, rest @ ..] if !rest.is_empty() => rest,
        rest => rest,
    };
    let (resource, one) = match rest {
        [] => ("nonresource".to_owned(), true),
        [resource] => ((*resource).to_owned(), false),
        [resource, _] => ((*resource).to_owned(), true),
        [resource, _, part, ..] => (format!("{resource}/{part}"), true),
    };
    let watches = || uri.query().is_some_and(|query| query.split('&').any(|pair| pair == "watch=true"));
    let verb = match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE if one => "delete",
        Method::DELETE => "deletecollection",
        _ if one => "get",
        _ if watches() => "watch",
        _ => "list",
    };
    Asked { verb, resource }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(method: Method, uri: &str) -> (&'static str, String) {
        let Asked { verb, resource } = asked(&method, &uri.parse().unwrap());
        (verb, resource)
    }

    #[test]
    fn a_request_is_told_in_the_words_of_a_role_without_names() {
        let builds = "/apis/lapstrake.dev/v1alpha1/namespaces/shop/imagebuilds";
        for (method, uri, verb, resource) in [
            (Method::GET, "/api/v1/pods?limit=500", "list", "pods"),
            (Method::GET, "/api/v1/pods?watch=true&resourceVersion=1", "watch", "pods"),
            (Method::GET, "/api/v1/namespaces/shop", "get", "namespaces"),
            (Method::GET, "/api/v1/namespaces/shop/pods/web/log?follow=true", "get", "pods/log"),
            (Method::POST, "/api/v1/namespaces/shop/pods", "create", "pods"),
            (Method::PATCH, &format!("{builds}/web/status"), "patch", "imagebuilds/status"),
            (Method::DELETE, &format!("{builds}/web"), "delete", "imagebuilds"),
            (Method::DELETE, builds, "deletecollection", "imagebuilds"),
            (Method::PUT, "/apis/coordination.k8s.io/v1/namespaces/a/leases/b", "update", "leases"),
            (Method::GET, "/version", "get", "nonresource"),
            (Method::GET, "/apis/lapstrake.dev/v1alpha1", "get", "nonresource"),
        ] {
            assert_eq!(of(method, uri), (verb, resource.to_owned()), "{uri}");
        }
    }
}
