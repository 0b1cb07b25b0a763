//! Credentials as Docker writes them and as the kubelet matches them.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use serde::Deserialize;
use tokio::sync::Mutex;

use crate::hosts::is_docker_hub;
use crate::keeper::{Keeper, Kept};
use crate::watched::Watched;
use crate::{Error, Redacted, helper};

/// How long an answer of a credential helper is used before it is asked again.
const HELPER_CACHE: Duration = Duration::from_secs(300);

/// What a client may show to registries: any number of merged `config.json` documents.
///
/// An entry's key is matched as the kubelet matches `imagePullSecrets`: each label of the host may be
/// a glob (`*.example.com`), the port must be the same, a path is a prefix of the repository, and all
/// entries that match are tried, the most specific first.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    /// Sorted by key, last first: of keys with a common start the longer one comes first.
    entries: Vec<Arc<Credential>>,
    /// Documents that are read anew when they changed.
    files: Vec<Arc<Watched>>,
    helpers: Vec<Helpers>,
    helper_dir: Option<PathBuf>,
    /// Who is asked when nothing else is known.
    keeper: Option<Kept>,
    answers: Arc<Mutex<HelperAnswers>>,
}

type HelperAnswers = HashMap<(String, String), (Instant, Option<Arc<Credential>>)>;

/// The helpers that one document names.
#[derive(Debug, Clone)]
struct Helpers {
    by_host: BTreeMap<String, String>,
    default: Option<String>,
}

/// One way to say who is asking.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Credential {
    /// The key in the document, `host[:port][/path]`.
    pub(crate) key: String,
    pub(crate) secret: Secret,
}

impl Credential {
    /// The user that it names.
    #[cfg(test)]
    pub(crate) fn user(&self) -> Option<&str> {
        match &self.secret {
            Secret::Basic { username, .. } => Some(username),
            _ => None,
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Secret {
    /// User name and password.
    Basic { username: String, password: Redacted },
    /// A refresh token for the token server.
    Identity { token: Redacted },
    /// A bearer token for the registry itself.
    Registry { token: Redacted },
    /// Somebody else has it.
    Kept(Kept),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(default)]
    auths: Option<BTreeMap<String, Entry>>,
    #[serde(default)]
    cred_helpers: Option<BTreeMap<String, String>>,
    #[serde(default)]
    creds_store: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    auth: Option<Redacted>,
    username: Option<String>,
    password: Option<Redacted>,
    identitytoken: Option<Redacted>,
    registrytoken: Option<Redacted>,
}

impl Credentials {
    /// No credentials: everything is asked anonymously.
    pub fn none() -> Self {
        Self::default()
    }

    /// Reads one `config.json` (also a Secret's `.dockerconfigjson`) or an old `.dockercfg`.
    /// `origin` names the document in errors, which never repeat its contents.
    pub fn parse(bytes: &[u8], origin: &str) -> Result<Self, Error> {
        let bad = |error: serde_json::Error| {
            let why = format!("not a docker config: line {} column {}", error.line(), error.column());
            Error::config(origin, why)
        };
        let value: serde_json::Value = serde_json::from_slice(bytes).map_err(bad)?;
        let Some(object) = value.as_object() else {
            return Err(Error::config(origin, "not a docker config: it is not a JSON object"));
        };
        // The old format is the map of auths alone; its keys look like hosts.
        let old = !object.is_empty()
            && object.iter().all(|(key, value)| key.contains(['.', ':']) && value.is_object());
        Self::of(value, old, origin)
    }

    /// Reads an old `.dockercfg`, which is the map of auths alone.
    pub(crate) fn parse_legacy(bytes: &[u8], origin: &str) -> Result<Self, Error> {
        let bad = |error: serde_json::Error| {
            let why = format!("not a docker config: line {} column {}", error.line(), error.column());
            Error::config(origin, why)
        };
        Self::of(serde_json::from_slice(bytes).map_err(bad)?, true, origin)
    }

    fn of(value: serde_json::Value, old: bool, origin: &str) -> Result<Self, Error> {
        let shape = |_| Error::config(origin, "not a docker config: a field has an unexpected type");
        let document = if old {
            let auths = serde_json::from_value(value).map_err(shape)?;
            Document { auths: Some(auths), cred_helpers: None, creds_store: None }
        } else {
            serde_json::from_value(value).map_err(shape)?
        };
        let mut credentials = Self::default();
        for (key, entry) in document.auths.unwrap_or_default() {
            if let Some(secret) = entry.secret().map_err(|why| {
                Error::config(origin, format!("the entry for \"{}\" {why}", without_userinfo(&key)))
            })? {
                credentials.add(&key, secret);
            }
        }
        let helpers = Helpers {
            by_host: document.cred_helpers.unwrap_or_default(),
            default: document.creds_store.filter(|name| !name.is_empty()),
        };
        for name in helpers.by_host.values().chain(&helpers.default) {
            helper::check_name(name).map_err(|why| Error::config(origin, why))?;
        }
        if helpers.default.is_some() || !helpers.by_host.is_empty() {
            credentials.helpers.push(helpers);
        }
        Ok(credentials)
    }

    /// Reads a document from disk (blocking, small).
    pub fn open(path: &Path) -> Result<Self, Error> {
        let origin = path.display().to_string();
        let bytes = std::fs::read(path)
            .map_err(|error| Error::config(&origin, format!("cannot read it: {error}")))?;
        Self::parse(&bytes, &origin)
    }

    /// What `docker login` left for this user: `$DOCKER_CONFIG/config.json`, else
    /// `~/.docker/config.json`; none where there is no such file (blocking, small).
    pub fn from_environment() -> Result<Self, Error> {
        let var = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let dir = var("DOCKER_CONFIG").or_else(|| var("HOME").map(|home| home.join(".docker")));
        match dir.map(|dir| dir.join("config.json")).filter(|path| path.exists()) {
            Some(path) => Self::open(&path),
            None => Ok(Self::none()),
        }
    }

    /// Adds a user name and password for `key` (`host[:port][/path]`).
    pub fn with_basic(mut self, key: &str, username: &str, password: &str) -> Self {
        self.add(key, Secret::Basic { username: username.to_owned(), password: Redacted::new(password) });
        self
    }

    /// Adds a document, or a folder with the keys of a Secret, that is read anew when it changed. One that
    /// is `optional` may be absent, or malformed, which is logged; another one must be right at the start.
    ///
    /// # Errors
    /// When it can't be read and is not optional.
    pub fn with_file(mut self, path: &Path, optional: bool) -> Result<Self, Error> {
        let file = Watched::new(path.to_owned(), optional);
        file.read()?;
        self.files.push(Arc::new(file));
        Ok(self)
    }

    /// Asks somebody else for what is not known here.
    pub fn with_keeper(mut self, keeper: Arc<dyn Keeper>) -> Self {
        self.keeper = Some(Kept(keeper));
        self
    }

    /// Takes credential helpers from a folder instead of the search path.
    pub fn with_helper_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.helper_dir = Some(dir.into());
        self
    }

    /// Both sets; of equal keys those of `self` are tried first.
    pub fn merge(mut self, other: Self) -> Self {
        for credential in other.entries {
            self.insert(credential);
        }
        self.files.extend(other.files);
        self.helpers.extend(other.helpers);
        self.helper_dir = self.helper_dir.or(other.helper_dir);
        self.keeper = self.keeper.or(other.keeper);
        self
    }

    /// Whether nothing could ever be found here.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.files.is_empty() && self.helpers.is_empty() && self.keeper.is_none()
    }

    /// What a document holds.
    pub(crate) fn into_entries(self) -> Vec<Arc<Credential>> {
        self.entries
    }

    fn add(&mut self, key: &str, secret: Secret) {
        self.insert(Arc::new(Credential { key: normal_key(key), secret }));
    }

    fn insert(&mut self, credential: Arc<Credential>) {
        if self.entries.contains(&credential) {
            return;
        }
        self.entries.push(credential);
        self.entries.sort_by(|a, b| b.key.cmp(&a.key));
    }

    /// All that may be tried for a repository, in order.
    pub(crate) async fn candidates(&self, registry: &str, repository: &str) -> Vec<Arc<Credential>> {
        let mut found = Vec::new();
        for helpers in &self.helpers {
            let Some((name, server)) = helpers.pick(registry) else { continue };
            found.extend(self.ask(name, server).await);
        }
        found.extend(self.matching(registry, repository));
        found.extend(self.keeper.iter().map(|keeper| {
            let key = format!("{registry} of the client");
            Arc::new(Credential { key, secret: Secret::Kept(keeper.clone()) })
        }));
        found
    }

    fn matching(&self, registry: &str, repository: &str) -> Vec<Arc<Credential>> {
        let matches = |key: &str| match is_docker_hub(registry) {
            true => ["docker.io", "index.docker.io", "registry-1.docker.io"]
                .iter()
                .any(|alias| key_matches(key, alias, repository)),
            false => key_matches(key, registry, repository),
        };
        let mut found: Vec<_> =
            self.entries.iter().filter(|credential| matches(&credential.key)).cloned().collect();
        for entry in self.files.iter().flat_map(|file| file.entries()) {
            if matches(&entry.key) && !found.contains(&entry) {
                found.push(entry);
            }
        }
        found.sort_by(|a, b| b.key.cmp(&a.key));
        found
    }

    /// Asks a helper, or remembers what it said; a broken helper counts as knowing nothing.
    async fn ask(&self, name: &str, server: String) -> Option<Arc<Credential>> {
        let mut answers = self.answers.lock().await;
        let question = (name.to_owned(), server);
        if let Some((when, answer)) = answers.get(&question)
            && when.elapsed() < HELPER_CACHE
        {
            return answer.clone();
        }
        let answer = match helper::get(self.helper_dir.as_deref(), name, &question.1).await {
            Ok(secret) => secret.map(|secret| {
                Arc::new(Credential { key: format!("{} by helper {name}", question.1), secret })
            }),
            Err(why) => {
                tracing::warn!(helper = name, registry = question.1, "credential helper failed: {why}");
                None
            }
        };
        answers.insert(question, (Instant::now(), answer.clone()));
        answer
    }
}

impl Helpers {
    /// The helper for a registry and the name that it knows it by.
    fn pick(&self, registry: &str) -> Option<(&str, String)> {
        let hub = is_docker_hub(registry);
        let exact = self.by_host.iter().find(|(host, _)| {
            let host = normal_key(host);
            host == registry || (hub && is_docker_hub(&host))
        });
        if let Some((host, name)) = exact {
            return Some((name, host.clone()));
        }
        let server = if hub { "https://index.docker.io/v1/".to_owned() } else { registry.to_owned() };
        self.default.as_deref().map(|name| (name, server))
    }
}

impl Entry {
    /// The best that the entry offers; `None` for an entry that only marks a login in a helper.
    fn secret(self) -> Result<Option<Secret>, &'static str> {
        let given = |secret: Option<Redacted>| secret.filter(|s| !s.reveal().is_empty());
        if let Some(token) = given(self.registrytoken) {
            return Ok(Some(Secret::Registry { token }));
        }
        if let Some(token) = given(self.identitytoken) {
            return Ok(Some(Secret::Identity { token }));
        }
        if let Some(auth) = given(self.auth) {
            let lenient = base64::engine::GeneralPurpose::new(
                &base64::alphabet::STANDARD,
                base64::engine::GeneralPurposeConfig::new()
                    .with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent),
            );
            let bytes =
                lenient.decode(auth.reveal().trim()).map_err(|_| "has an \"auth\" that is not base64")?;
            let text = String::from_utf8(bytes).map_err(|_| "has an \"auth\" that is not text")?;
            let (username, password) =
                text.split_once(':').ok_or("has an \"auth\" without a colon between user and password")?;
            // Old clients padded the password with zero bytes.
            let password = Redacted::new(password.trim_end_matches('\0'));
            return Ok(Some(Secret::Basic { username: username.to_owned(), password }));
        }
        match (self.username.filter(|name| !name.is_empty()), given(self.password)) {
            (Some(username), Some(password)) => Ok(Some(Secret::Basic { username, password })),
            (None, None) => Ok(None),
            (Some(_), None) => Err("has a \"username\" without a \"password\""),
            (None, Some(_)) => Err("has a \"password\" without a \"username\""),
        }
    }
}

fn without_userinfo(key: &str) -> &str {
    key.rsplit_once('@').map_or(key, |(_, host)| host)
}

/// `host[:port][/path]` of a key: without scheme, user, trailing slash and Docker's `/v1/` and `/v2/`.
fn normal_key(key: &str) -> String {
    let key = key.trim();
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let (host, path) = key.split_once('/').unwrap_or((key, ""));
    let path = match path {
        "v1" | "v2" => "",
        path => path.strip_prefix("v1/").or_else(|| path.strip_prefix("v2/")).unwrap_or(path),
    };
    let host = without_userinfo(host).to_ascii_lowercase();
    match path.trim_end_matches('/') {
        "" => host,
        path => format!("{host}/{path}"),
    }
}

/// The kubelet's rule: same port, same number of labels that match one by one, path is a prefix.
fn key_matches(key: &str, registry: &str, repository: &str) -> bool {
    let (host, path) = key.split_once('/').unwrap_or((key, ""));
    let (key_name, key_port) = split_port(host);
    let registry = registry.to_ascii_lowercase();
    let (name, port) = split_port(&registry);
    let (globs, labels): (Vec<_>, Vec<_>) = (key_name.split('.').collect(), name.split('.').collect());
    key_port == port
        && globs.len() == labels.len()
        && repository.starts_with(path)
        && globs.iter().zip(&labels).all(|(glob, label)| glob_matches(glob.as_bytes(), label.as_bytes()))
}

fn split_port(host: &str) -> (&str, Option<&str>) {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, Some(port)),
        _ => (host, None),
    }
}

/// `*` is any run of characters, `?` any one; the kubelet's `[a-z]` classes do not occur in host names.
fn glob_matches(glob: &[u8], text: &[u8]) -> bool {
    match (glob.first(), text.first()) {
        (None, None) => true,
        (Some(b'*'), _) => {
            glob_matches(&glob[1..], text) || (!text.is_empty() && glob_matches(glob, &text[1..]))
        }
        (Some(b'?'), Some(_)) => glob_matches(&glob[1..], &text[1..]),
        (Some(a), Some(b)) if a == b => glob_matches(&glob[1..], &text[1..]),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Credentials {
        Credentials::parse(text.as_bytes(), "test").expect("valid")
    }

    fn users(credentials: &Credentials, registry: &str, repository: &str) -> Vec<String> {
        let user = |c: &Arc<Credential>| match &c.secret {
            Secret::Basic { username, password } => format!("{username}:{}", password.reveal()),
            Secret::Identity { token } => format!("identity {}", token.reveal()),
            Secret::Registry { token } => format!("registry {}", token.reveal()),
            Secret::Kept(_) => "kept".to_owned(),
        };
        credentials.matching(registry, repository).iter().map(user).collect()
    }

    #[test]
    fn every_form_of_an_entry_is_read() {
        let credentials = parse(
            r#"{"auths":{"a.example":{"auth":"dTpwOnc="},"b.example":{"username":"u","password":"p"},
            "c.example":{"auth":"dTpw","identitytoken":"it"},"d.example":{"registrytoken":"rt"},
            "e.example":{},"f.example":{"auth":"dTpwAAA="},"g.example":{"auth":null,"email":"x"}}}"#,
        );
        for (host, wanted) in [
            ("a.example", &["u:p:w"][..]),
            ("b.example", &["u:p"]),
            ("c.example", &["identity it"]),
            ("d.example", &["registry rt"]),
            ("e.example", &[]),
            ("f.example", &["u:p"]),
            ("g.example", &[]),
        ] {
            assert_eq!(users(&credentials, host, "x"), wanted, "{host}");
        }
        let old = parse(r#"{"https://a.example":{"auth":"dTpw","email":"e"}}"#);
        assert_eq!(users(&old, "a.example", "x"), ["u:p"]);
    }

    #[test]
    fn keys_match_as_the_kubelet_matches_them() {
        for (key, registry, repository, wanted) in [
            ("r.example", "r.example", "a", true),
            ("https://r.example/v2/", "r.example", "a", true),
            ("R.Example", "r.example", "a", true),
            ("r.example", "r.example:5000", "a", false),
            ("r.example:5000", "r.example:5000", "a", true),
            ("*.example", "r.example", "a", true),
            ("*.example", "x.r.example", "a", false),
            ("r*.example", "reg.example", "a", true),
            ("*.*.example", "x.r.example", "a", true),
            ("r.example/team", "r.example", "team/app", true),
            ("r.example/team", "r.example", "other/app", false),
            ("r.example/team/app", "r.example", "team/app", true),
            ("r.example/v1/team", "r.example", "team/app", true),
            ("https://index.docker.io/v1/", "docker.io", "library/debian", true),
            ("docker.io", "docker.io", "library/debian", true),
            ("registry-1.docker.io/me", "docker.io", "me/app", true),
            ("[::1]:5000", "[::1]:5000", "a", true),
            ("localhost", "localhost:5000", "a", false),
        ] {
            let credentials = Credentials::none().with_basic(key, "u", "p");
            assert_eq!(!users(&credentials, registry, repository).is_empty(), wanted, "{key} {registry}");
        }
    }

    #[test]
    fn the_most_specific_comes_first_and_all_are_tried() {
        let credentials = Credentials::none()
            .with_basic("*.example", "glob", "p")
            .with_basic("r.example", "host", "p")
            .merge(Credentials::none().with_basic("r.example/team/app", "app", "p"))
            .merge(Credentials::none().with_basic("r.example/team", "team", "p"))
            .merge(Credentials::none().with_basic("r.example", "second", "p"))
            .merge(Credentials::none().with_basic("r.example", "host", "p"));
        assert_eq!(
            users(&credentials, "r.example", "team/app"),
            ["app:p", "team:p", "host:p", "second:p", "glob:p"]
        );
    }

    #[test]
    fn a_malformed_document_is_named_without_its_contents() {
        for text in [
            r#"{"auths":{"a.example":{"auth":"s3cret!"}}}"#,
            r#"{"auths":{"a.example":{"auth":"czNjcmV0"}}}"#,
            r#"{"auths":{"s3cret@a.example":{"password":"s3cret"}}}"#,
            r#"{"auths":{"a.example":{"password":["s3cret"]}}}"#,
            r#"{"auths":"s3cret"}"#,
            r#"["s3cret"]"#,
            r#"{"auths":{"a.example":{"auth":"s3cret"#,
            r#"{"credsStore":"../s3cret"}"#,
        ] {
            let error = Credentials::parse(text.as_bytes(), "the file").expect_err(text);
            let text = format!("{error:#} {error:?}");
            assert!(text.contains("the file"), "{text}");
            assert!(!text.contains("s3cret!") && !text.contains("\"s3cret\""), "{text}");
        }
    }

    #[test]
    fn debug_output_has_no_secret() {
        let text = format!("{:?}", parse(r#"{"auths":{"a.example":{"auth":"dTpodW50ZXIy"}}}"#));
        assert!(text.contains("a.example") && !text.contains("hunter2"), "{text}");
    }

    #[test]
    fn a_helper_for_the_host_goes_before_the_general_one() {
        let helpers = &parse(r#"{"credHelpers":{"r.example":"one"},"credsStore":"all"}"#).helpers[0];
        assert_eq!(helpers.pick("r.example"), Some(("one", "r.example".to_owned())));
        assert_eq!(helpers.pick("x.example"), Some(("all", "x.example".to_owned())));
        assert_eq!(helpers.pick("docker.io"), Some(("all", "https://index.docker.io/v1/".to_owned())));
    }
}
