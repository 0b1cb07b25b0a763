//! The bundle that a repository comes from is a source of its own: rules about it hold wherever it is named.

use lapstrake_api::pb::SourceOp;

use super::Error;

/// The attribute that names a bundle.
const BUNDLE: &str = "git.bundle";
/// Attributes of layouts that a client has.
const SESSION: &str = "oci.session";
const STORE: &str = "oci.store";
/// What bundles are: blobs of a registry, or of a client's layout.
const BLOB: &str = "docker-image+blob";
const LAYOUT: &str = "oci-layout+blob";

/// The bundle of a repository as the source that it is; none where there is none.
pub(super) fn of(op: &SourceOp) -> Result<Option<SourceOp>, Error> {
    let bundle = match op.attrs.get(BUNDLE).map(String::as_str) {
        Some(bundle) if !bundle.is_empty() && op.identifier.starts_with("git://") => bundle,
        _ => return Ok(None),
    };
    let invalid = |why: &str| Error::Invalid(format!("git.bundle locator {bundle:?} {why}"));
    let (scheme, _) = bundle.split_once("://").ok_or_else(|| invalid("has no scheme"))?;
    if scheme != BLOB && scheme != LAYOUT {
        return Err(invalid("is not supported"));
    }
    let mut source = SourceOp { identifier: bundle.to_owned(), ..SourceOp::default() };
    if scheme == LAYOUT {
        let given = |key: &str| op.attrs.get(key).filter(|value| !value.is_empty()).cloned();
        source.attrs.extend(given(SESSION).map(|value| (SESSION.to_owned(), value)));
        let store = given(STORE).or_else(|| named_store(bundle));
        source.attrs.extend(store.map(|value| (STORE.to_owned(), value)));
    }
    Ok(Some(source))
}

/// Puts a bundle that was converted in its place.
pub(super) fn put(op: &mut SourceOp, source: SourceOp) {
    let before = op.attrs.insert(BUNDLE.to_owned(), source.identifier).unwrap_or_default();
    let unsaid = op.attrs.get(STORE).is_none_or(String::is_empty);
    let implied = named_store(&before).filter(|_| unsaid);
    for key in [SESSION, STORE] {
        op.attrs.remove(key);
        let value = source.attrs.get(key).filter(|value| key != STORE || implied.as_ref() != Some(*value));
        op.attrs.extend(value.map(|value| (key.to_owned(), value.clone())));
    }
}

/// The store that a bundle's name stands for where none is given: the name without tag and digest.
fn named_store(bundle: &str) -> Option<String> {
    let (host, path) = bundle.strip_prefix(LAYOUT)?.strip_prefix("://")?.split_once('/')?;
    let path = path.split([':', '@']).next()?;
    Some(format!("{host}/{path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repository(bundle: &str) -> SourceOp {
        let attrs = [(BUNDLE.to_owned(), bundle.to_owned())].into();
        SourceOp { identifier: "git://example.com/a.git".to_owned(), attrs }
    }

    #[test]
    fn a_bundle_is_a_source_with_its_store_named() {
        let op = repository("oci-layout+blob://local/b@sha256:1");
        let bundle = of(&op).expect("valid").expect("a bundle");
        assert_eq!(bundle.identifier, "oci-layout+blob://local/b@sha256:1");
        assert_eq!(bundle.attrs[STORE], "local/b");
        // What the name says anyway is not said again.
        let mut same = op.clone();
        put(&mut same, bundle);
        assert_eq!(same, op);
        let mut other = op;
        let attrs = [(STORE.to_owned(), "elsewhere".to_owned())].into();
        put(&mut other, SourceOp { identifier: "oci-layout+blob://c/d@sha256:2".to_owned(), attrs });
        assert_eq!(
            (other.attrs[BUNDLE].as_str(), other.attrs[STORE].as_str()),
            ("oci-layout+blob://c/d@sha256:2", "elsewhere")
        );
    }

    #[test]
    fn what_can_be_no_bundle_is_refused() {
        assert!(of(&repository("")).expect("none").is_none());
        assert!(of(&repository("https://x/y")).is_err() && of(&repository("x")).is_err());
    }
}
