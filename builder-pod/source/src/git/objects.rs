//! Commits and tags as they are kept, with what was signed of them.

use super::{Git, Resolved, check_commit, error};
use crate::error::{Class, Error, shown_url};

/// An object without its signature, and the signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// What the signature is of.
    pub data: Vec<u8>,
    /// The signature in its armor; none where the object has none.
    pub signature: Option<String>,
}

/// What stands behind a ref.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Objects {
    /// The annotated tag, where the ref is one.
    pub tag: Option<Signed>,
    /// The commit.
    pub commit: Signed,
}

impl Git {
    /// The objects that a ref stands for; the commit was fetched before.
    ///
    /// # Errors
    /// [`Error::Git`].
    pub async fn objects(&self, url: &str, resolved: &Resolved) -> Result<Objects, Error> {
        let (commit, tag) = self.raw_objects(url, resolved).await?;
        Ok(Objects { tag: tag.map(|tag| of_tag(&tag)), commit: of_commit(&commit) })
    }

    /// The same as they are kept: the commit, and the annotated tag where the ref is one.
    ///
    /// # Errors
    /// [`Error::Git`].
    pub async fn raw_objects(
        &self,
        url: &str,
        resolved: &Resolved,
    ) -> Result<(Vec<u8>, Option<Vec<u8>>), Error> {
        self.check_url(url)?;
        check_commit(&resolved.commit)?;
        let dir = self.repository(url);
        let failed = |failure| error(url, &resolved.commit, failure);
        let mut tag = resolved.tag.clone();
        let kind =
            self.runner.run(Some(&dir), &["cat-file", "-t", &resolved.commit]).await.map_err(failed)?;
        let commit = match kind.trim() {
            // A tag may be asked for by its own id.
            "tag" => {
                tag = Some(resolved.commit.clone());
                let object = format!("{}^{{commit}}", resolved.commit);
                let peeled = self.runner.run(Some(&dir), &["rev-parse", &object]).await.map_err(failed)?;
                peeled.trim().to_owned()
            }
            _ => resolved.commit.clone(),
        };
        let tag = match tag {
            Some(tag) => {
                self.fetch_tag(url, resolved, &tag).await?;
                let raw = self.runner.bytes(Some(&dir), &["cat-file", "tag", &tag], &[], None).await;
                Some(raw.map_err(failed)?)
            }
            None => None,
        };
        let raw = self.runner.bytes(Some(&dir), &["cat-file", "commit", &commit], &[], None).await;
        Ok((raw.map_err(failed)?, tag))
    }

    /// A commit may be here since before there was the tag.
    async fn fetch_tag(&self, url: &str, resolved: &Resolved, tag: &str) -> Result<(), Error> {
        check_commit(tag)?;
        let dir = self.repository(url);
        let lock = self.lock(&dir);
        let _one = lock.lock().await;
        if self.runner.run(Some(&dir), &["cat-file", "-e", tag]).await.is_ok() {
            return Ok(());
        }
        let name = resolved.reference.as_deref().unwrap_or(tag);
        let args = [
            "fetch",
            "--no-tags",
            "--no-write-fetch-head",
            "--force",
            "--quiet",
            "--depth=1",
            "--",
            url,
            name,
        ];
        let access = self.access(url)?;
        self.runner.remote(Some(&dir), &args, &access).await.map_err(|failure| error(url, name, failure))?;
        match self.runner.run(Some(&dir), &["cat-file", "-e", tag]).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::Git {
                class: Class::Unavailable,
                url: shown_url(url),
                reference: name.to_owned(),
                reason: "the tag is another one now".to_owned(),
            }),
        }
    }
}

/// A commit has its signature in a header of several lines.
fn of_commit(raw: &[u8]) -> Signed {
    let (mut data, mut signature) = (Vec::with_capacity(raw.len()), String::new());
    let (mut headers, mut inside) = (true, false);
    for line in raw.split_inclusive(|byte| *byte == b'\n') {
        if headers {
            headers = line != b"\n";
            let begun = [&b"gpgsig "[..], b"gpgsig-sha256 "].iter().find_map(|name| line.strip_prefix(*name));
            let goes_on = if inside { line.strip_prefix(b" ") } else { None };
            inside = begun.or(goes_on).is_some();
            if let Some(text) = begun.or(goes_on) {
                signature.push_str(&String::from_utf8_lossy(text));
                continue;
            }
        }
        data.extend(line);
    }
    Signed { data, signature: Some(signature).filter(|text| !text.is_empty()) }
}

/// A tag has its signature behind its message.
fn of_tag(raw: &[u8]) -> Signed {
    let begins = [&b"-----BEGIN PGP SIGNATURE-----\n"[..], b"-----BEGIN SSH SIGNATURE-----\n"];
    let (mut at, mut headers) = (0, true);
    for line in raw.split_inclusive(|byte| *byte == b'\n') {
        headers &= line != b"\n";
        if !headers && begins.contains(&line) {
            let (data, signature) = raw.split_at(at);
            return Signed {
                data: data.to_vec(),
                signature: Some(String::from_utf8_lossy(signature).into_owned()),
            };
        }
        at += line.len();
    }
    Signed { data: raw.to_vec(), signature: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_signed_is_all_but_the_signature() {
        let commit =
            b"tree 1\nauthor a\ngpgsig -----BEGIN SSH SIGNATURE-----\n abc\n -----END SSH SIGNATURE-----\n\
                       encoding x\n\ngpgsig none of it\n";
        let signed = of_commit(commit);
        assert_eq!(signed.data, b"tree 1\nauthor a\nencoding x\n\ngpgsig none of it\n");
        let text = "-----BEGIN SSH SIGNATURE-----\nabc\n-----END SSH SIGNATURE-----\n";
        assert_eq!(signed.signature.as_deref(), Some(text));
        let plain = b"tree 1\n\n message\n";
        assert_eq!(of_commit(plain), Signed { data: plain.to_vec(), signature: None });

        let tag = b"object 1\ntag v1\n\nmessage\n-----BEGIN PGP SIGNATURE-----\n\nabc\n";
        let signed = of_tag(tag);
        assert_eq!(signed.data, b"object 1\ntag v1\n\nmessage\n");
        assert_eq!(signed.signature.as_deref(), Some("-----BEGIN PGP SIGNATURE-----\n\nabc\n"));
        let plain = b"object 1\n\nmessage";
        assert_eq!(of_tag(plain), Signed { data: plain.to_vec(), signature: None });
    }
}
