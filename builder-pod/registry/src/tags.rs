//! Listing tags.

use lapstrake_oci::Reference;
use reqwest::Method;
use reqwest::header::LINK;
use serde::Deserialize;

use crate::Error;
use crate::client::{Client, call};
use crate::error::Kind;
use crate::limits::{MANIFEST_BYTES_MAX, TAG_PAGES_MAX};
use crate::token::Scopes;
use crate::transport::read_some;

impl Client {
    /// All tags of `name`'s repository, as the registry orders them. Mirrors are not asked.
    pub async fn tags(&self, name: &Reference) -> Result<Vec<String>, Error> {
        let (action, subject) = ("list tags of", name.name());
        let work = async {
            let endpoint = self.push_endpoint(name)?;
            let scopes = Scopes::pull(&endpoint.repository);
            let mut call = call(&endpoint, Method::GET, "tags/list", scopes, action, &subject)?;
            let mut tags = Vec::new();
            for _ in 0..TAG_PAGES_MAX {
                let mut response = self.transport.call(&call).await?;
                let next = response.headers().get(LINK).and_then(|v| v.to_str().ok()).and_then(next_page);
                let next = next.map(|link| response.url().join(link));
                tags.extend(page(&read_some(&mut response, MANIFEST_BYTES_MAX as usize).await).map_err(
                    |error| Error::new(Kind::Protocol(format!("tag list: {error}")), action, &subject),
                )?);
                match next {
                    Some(Ok(url)) => call.url = url,
                    _ => break,
                }
            }
            Ok(tags)
        };
        self.run(name.registry(), action, &subject, work).await
    }
}

fn page(body: &[u8]) -> Result<Vec<String>, serde_json::Error> {
    #[derive(Deserialize)]
    struct Page {
        tags: Option<Vec<String>>,
    }
    Ok(serde_json::from_slice::<Page>(body)?.tags.unwrap_or_default())
}

/// The target of `<…>; rel="next"`.
fn next_page(link: &str) -> Option<&str> {
    let (target, params) = link.trim().strip_prefix('<')?.split_once('>')?;
    params.contains("next").then_some(target)
}
