//! The receiver of a build whose client opened no session.

use std::collections::BTreeMap;

use async_trait::async_trait;
use lapstrake_oci::{Descriptor, Digest};
use lapstrake_registry::BlobReader;

use super::values::refused;
use crate::client::{OutputFile, Receiver, Tree};
use crate::error::BuildError;

/// Nobody.
#[derive(Debug)]
pub(crate) struct NoReceiver;

fn nobody() -> BuildError {
    refused("could not access local files without session".to_owned())
}

#[async_trait]
impl Receiver for NoReceiver {
    async fn file(
        &self,
        _: usize,
        _: &BTreeMap<String, String>,
    ) -> Result<Option<Box<dyn OutputFile>>, BuildError> {
        Err(nobody())
    }

    async fn tree(&self, _: usize, _: Tree) -> Result<(), BuildError> {
        Err(nobody())
    }

    async fn blob(
        &self,
        _: &str,
        _: &Descriptor,
        _: &lapstrake_registry::BlobSource,
    ) -> Result<(), BuildError> {
        Err(nobody())
    }

    async fn content(&self, _: &str, _: Digest) -> Result<BlobReader, BuildError> {
        Err(nobody())
    }

    async fn content_bytes(&self, _: &str, _: Digest) -> Result<Option<u64>, BuildError> {
        Err(nobody())
    }
}
