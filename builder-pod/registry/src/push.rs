//! Pushing blobs and manifests.

use bytes::Bytes;
use lapstrake_oci::{Descriptor, Digest, Reference};
use reqwest::header::{CONTENT_TYPE, HeaderValue, LOCATION};
use reqwest::{Method, Response, Url};

use crate::client::{Client, call};
use crate::error::Kind;
use crate::hosts::Endpoint;
use crate::limits::MOUNT_CANDIDATES_MAX;
use crate::token::Scopes;
use crate::upload::Upload;
use crate::{BlobSource, Class, Error, Progress};

/// How a blob came to be in a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pushed {
    /// It was there.
    Existed,
    /// The registry took it from another of its repositories.
    Mounted {
        /// That repository.
        from: String,
    },
    /// Its bytes were sent.
    Uploaded,
}

impl Client {
    /// Whether `name`'s repository has the blob. Mirrors are not asked.
    pub async fn blob_exists(&self, name: &Reference, digest: &Digest) -> Result<bool, Error> {
        let (action, subject) = ("look for blob", format!("{}@{digest}", name.name()));
        let work = async {
            let endpoint = self.push_endpoint(name)?;
            let scopes = Scopes::pull(&endpoint.repository);
            self.head_blob(&endpoint, digest, scopes, action, &subject).await
        };
        self.run(name.registry(), action, &subject, work).await
    }

    /// Makes sure that `name`'s repository has a blob, in the cheapest way that works: it is there,
    /// it is mounted from one of the repositories `mount_from` of the same registry, it is sent.
    ///
    /// `source` is opened only when bytes must be sent, again after each broken connection, and must
    /// give exactly the descriptor's bytes; the registry checks their digest.
    pub async fn push_blob(
        &self,
        name: &Reference,
        blob: &Descriptor,
        source: &BlobSource,
        mount_from: &[String],
        progress: &Progress,
    ) -> Result<Pushed, Error> {
        let (action, subject) = ("push blob", format!("{}@{}", name.name(), blob.digest));
        let work = async {
            let endpoint = self.push_endpoint(name)?;
            let scopes = Scopes::push(&endpoint.repository);
            if self.head_blob(&endpoint, &blob.digest, scopes, action, &subject).await? {
                progress.report(blob.size, blob.size);
                return Ok(Pushed::Existed);
            }
            let mut upload = Upload {
                transport: &self.transport,
                endpoint: &endpoint,
                blob,
                source,
                progress,
                action,
                subject: &subject,
                session: None,
                from: 0,
            };
            for from in
                mount_from.iter().filter(|from| **from != endpoint.repository).take(MOUNT_CANDIDATES_MAX)
            {
                if self.mount(&endpoint, from, &mut upload).await? {
                    progress.report(blob.size, blob.size);
                    return Ok(Pushed::Mounted { from: from.clone() });
                }
            }
            upload.run().await.map(|()| Pushed::Uploaded)
        };
        self.run(name.registry(), action, &subject, work).await
    }

    /// Puts a manifest or index under `name`'s tag, or under its digest where it has only that; without
    /// both under `latest`. What it refers to must be there already.
    pub async fn push_manifest(
        &self,
        name: &Reference,
        media_type: &str,
        bytes: impl Into<Bytes>,
    ) -> Result<Digest, Error> {
        let (action, subject) = ("push manifest", name.to_string());
        let bytes = bytes.into();
        let work = async {
            let digest = Digest::of(&bytes);
            if let Some(expected) = name.digest().filter(|expected| *expected != digest) {
                let kind = Kind::Digest { expected: expected.to_string(), got: digest.to_string() };
                return Err(Error::new(kind, action, &subject));
            }
            let endpoint = self.push_endpoint(name)?;
            let target = name.tag_or_latest().map_or_else(|| digest.to_string(), str::to_owned);
            let scopes = Scopes::push(&endpoint.repository);
            let mut call =
                call(&endpoint, Method::PUT, &format!("manifests/{target}"), scopes, action, &subject)?;
            let kind = HeaderValue::from_str(media_type);
            let bad = |_| Error::config(&subject, format!("\"{media_type}\" is not a media type"));
            call.headers.insert(CONTENT_TYPE, kind.map_err(bad)?);
            call.body = bytes.clone();
            let response = self.transport.call(&call).await?;
            let announced = response.headers().get("docker-content-digest").and_then(|v| v.to_str().ok());
            match announced.and_then(|text| text.parse::<Digest>().ok()) {
                Some(got) if got != digest => {
                    let kind = Kind::Digest { expected: digest.to_string(), got: got.to_string() };
                    Err(Error::new(kind, action, &subject).with_hint("the registry changed the manifest"))
                }
                _ => Ok(digest),
            }
        };
        self.run(name.registry(), action, &subject, work).await
    }

    /// Puts the same manifest under several tags of `name`'s repository.
    pub async fn push_tags(
        &self,
        name: &Reference,
        tags: &[String],
        media_type: &str,
        bytes: impl Into<Bytes>,
    ) -> Result<Digest, Error> {
        let bytes = bytes.into();
        let digest = Digest::of(&bytes);
        for tag in tags {
            let name = name.with_tag(tag).map_err(|error| Error::config(tag, error.to_string()))?;
            self.push_manifest(&name, media_type, bytes.clone()).await?;
        }
        Ok(digest)
    }

    async fn head_blob(
        &self,
        endpoint: &Endpoint,
        digest: &Digest,
        scopes: Scopes,
        action: &str,
        subject: &str,
    ) -> Result<bool, Error> {
        let call = call(endpoint, Method::HEAD, &format!("blobs/{digest}"), scopes, action, subject)?;
        match self.transport.call(&call).await {
            Ok(_) => Ok(true),
            Err(error) if error.class() == Class::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Asks for a mount. A registry that cannot do it opens an upload instead, which `upload` goes on with.
    async fn mount(&self, endpoint: &Endpoint, from: &str, upload: &mut Upload<'_>) -> Result<bool, Error> {
        let scopes = Scopes::push(&endpoint.repository).and_pull(from);
        let mut call = call(endpoint, Method::POST, "blobs/uploads/", scopes, upload.action, upload.subject)?;
        let digest = upload.blob.digest.to_string();
        call.url.query_pairs_mut().append_pair("mount", &digest).append_pair("from", from);
        let response = match self.transport.call(&call).await {
            Ok(response) => response,
            Err(error) if error.is_retryable() => return Err(error),
            Err(error) => {
                // Typically no right to read the other repository: sending the bytes still works.
                tracing::debug!(from, "cannot mount: {error}");
                return Ok(false);
            }
        };
        if response.status().as_u16() == 201 {
            return Ok(true);
        }
        if let Some(unused) = upload.session.take() {
            upload.cancel(unused).await;
        }
        upload.session = location(&response);
        Ok(false)
    }
}

/// Where an upload goes on, as an absolute address.
pub(crate) fn location(response: &Response) -> Option<Url> {
    let text = response.headers().get(LOCATION)?.to_str().ok()?;
    response.url().join(text).ok()
}
