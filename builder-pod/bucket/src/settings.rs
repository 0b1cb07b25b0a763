//! Attributes of `type=s3`, `type=azblob` and `type=gha`, with BuildKit's defaults and refusals.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use lapstrake_registry::Redacted;

use crate::Error;

/// Attributes as clients give them.
pub type Attributes = BTreeMap<String, String>;

/// Attributes whose values nobody must see.
pub const SECRETS: [&str; 7] =
    ["access_key_id", "secret_access_key", "session_token", "token", "ghtoken", "url", "url_v2"];

/// Where a cache is and how it is called there.
#[derive(Debug, Clone)]
pub struct Settings {
    pub(crate) kind: Kind,
    pub(crate) prefix: String,
    pub(crate) manifests: String,
    pub(crate) blobs: String,
    pub(crate) names: Vec<String>,
    pub(crate) touch_refresh: Duration,
    pub(crate) parallelism: usize,
}

/// The kind of a store, with what reaches it.
#[derive(Debug, Clone)]
pub enum Kind {
    /// `type=s3`.
    S3(S3),
    /// `type=azblob`.
    Azure(Azure),
    /// `type=gha`.
    Actions(Actions),
}

/// How S3 is reached.
#[derive(Debug, Clone)]
pub struct S3 {
    pub(crate) bucket: String,
    pub(crate) region: String,
    pub(crate) endpoint: Option<String>,
    pub(crate) path_style: bool,
    /// Key, secret, token; what the environment has where they are not given.
    pub(crate) credentials: Option<(Redacted, Redacted, Option<Redacted>)>,
    /// How often a request is tried.
    pub(crate) attempts: usize,
}

/// How Azure is reached.
#[derive(Debug, Clone)]
pub struct Azure {
    pub(crate) url: String,
    pub(crate) account: String,
    pub(crate) container: String,
    pub(crate) key: Option<Redacted>,
}

/// How the cache of GitHub Actions is reached.
#[derive(Debug, Clone)]
pub struct Actions {
    /// Some servers have a secret in their address.
    pub(crate) url: Redacted,
    pub(crate) token: Redacted,
    pub(crate) is_v2: bool,
    pub(crate) scope: String,
    pub(crate) timeout: Duration,
}

/// Attempts where `retry_max_attempts` does not say how many.
const ATTEMPTS: usize = 3;

impl Settings {
    /// Reads attributes; `variable` tells what the environment has. As in BuildKit, those that it does not know are passed over.
    ///
    /// # Errors
    /// [`Error::Settings`] in BuildKit's words.
    pub fn read(
        kind: &str,
        attributes: &Attributes,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, Error> {
        match kind {
            "s3" => Self::s3(attributes, variable),
            "azblob" => Self::azure(attributes, variable),
            "gha" => Self::actions(attributes),
            other => Err(refused(format!("there is no object store of type {other}"))),
        }
    }

    fn s3(attributes: &Attributes, variable: impl Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let get = |key: &str| attributes.get(key).cloned();
        let filled = |key: &str| get(key).filter(|value| !value.is_empty());
        let needed = |key: &str, name: &str| {
            let value = get(key).or_else(|| variable(name)).filter(|value| !value.is_empty());
            value.ok_or_else(|| refused(format!("{key} (${name}) not set for s3 cache")))
        };
        let bucket = needed("bucket", "AWS_BUCKET")?;
        let region = needed("region", "AWS_REGION")?;
        let positive = |key: &str| match get(key) {
            None => Ok(None),
            Some(text) => match text.parse::<usize>() {
                Ok(number) if number > 0 => Ok(Some(number)),
                _ => Err(refused(format!("{key} must be a positive integer"))),
            },
        };
        let parallelism = positive("upload_parallelism")?.unwrap_or(4);
        if get("retry_mode").is_some_and(|mode| mode != "standard" && mode != "adaptive") {
            return Err(refused("retry_mode must be \"standard\" or \"adaptive\"".to_owned()));
        }
        let attempts = positive("retry_max_attempts")?.unwrap_or(ATTEMPTS);
        let credentials = filled("access_key_id").zip(filled("secret_access_key"));
        let token = filled("session_token").map(Redacted::new);
        let endpoint = filled("endpoint_url");
        if endpoint.as_deref().is_some_and(|url| !url.starts_with("http://") && !url.starts_with("https://"))
        {
            return Err(refused("endpoint_url must begin with http:// or https://".to_owned()));
        }
        let s3 = S3 {
            bucket,
            region,
            endpoint,
            path_style: get("use_path_style").is_some_and(|text| is_true(&text)),
            credentials: credentials.map(|(key, secret)| (Redacted::new(key), Redacted::new(secret), token)),
            attempts,
        };
        Ok(Self {
            kind: Kind::S3(s3),
            prefix: get("prefix").unwrap_or_default(),
            manifests: get("manifests_prefix").unwrap_or_else(|| "manifests/".to_owned()),
            blobs: get("blobs_prefix").unwrap_or_else(|| "blobs/".to_owned()),
            names: names(get("name")),
            touch_refresh: get("touch_refresh").and_then(|text| duration(&text)).unwrap_or(DAY),
            parallelism,
        })
    }

    fn azure(attributes: &Attributes, variable: impl Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let failed = |why: &str| refused(format!("failed to create azblob config: {why}"));
        let get = |key: &str, name: &str| attributes.get(key).cloned().or_else(|| variable(name));
        let url = get("account_url", "BUILDKIT_AZURE_STORAGE_ACCOUNT_URL").ok_or_else(|| {
            failed("either ${BUILDKIT_AZURE_STORAGE_ACCOUNT_URL} or account_url attribute is required for azblob cache")
        })?;
        let host = url.split_once("://").map_or("", |(_, rest)| rest);
        let host = host.split(['/', ':', '?']).next().unwrap_or_default();
        // A name and password, or a signature, would be shown wherever the address is.
        if host.is_empty() || url.contains(['?', '@']) {
            return Err(failed("azure storage account url provided is not a valid url"));
        }
        let account = get("account_name", "BUILDKIT_AZURE_STORAGE_ACCOUNT_NAME");
        let account = account.unwrap_or_else(|| host.split('.').next().unwrap_or_default().to_owned());
        if account.is_empty() {
            return Err(failed(
                "unable to retrieve account name from account url or ${BUILDKIT_AZURE_STORAGE_ACCOUNT_NAME} or account_name attribute for azblob cache",
            ));
        }
        let plain = |key: &str| attributes.get(key).cloned();
        let container = get("container", "BUILDKIT_AZURE_STORAGE_CONTAINER");
        let azure = Azure {
            url,
            account,
            container: container.unwrap_or_else(|| "buildkit-cache".to_owned()),
            key: plain("secret_access_key").filter(|key| !key.is_empty()).map(Redacted::new),
        };
        Ok(Self {
            kind: Kind::Azure(azure),
            prefix: folder(&get("prefix", "BUILDKIT_AZURE_STORAGE_PREFIX").unwrap_or_default()),
            manifests: folder(&plain("manifests_prefix").unwrap_or_else(|| "manifests".to_owned())),
            blobs: folder(&plain("blobs_prefix").unwrap_or_else(|| "blobs".to_owned())),
            names: names(plain("name")),
            touch_refresh: DAY,
            parallelism: 4,
        })
    }

    fn actions(attributes: &Attributes) -> Result<Self, Error> {
        let get = |key: &str| attributes.get(key).cloned();
        let token =
            get("token").ok_or_else(|| refused("token not set for github actions cache".to_owned()))?;
        let asked = match get("version") {
            Some(text) => text.parse::<i64>().map_err(|_| {
                refused(format!("failed to parse api version {text:?}, expected positive integer"))
            })?,
            None => 0,
        };
        let newer = get("url_v2").filter(|url| asked != 1 && !url.is_empty());
        let is_v2 = newer.is_some();
        let url = newer.or_else(|| get("url")).filter(|url| !url.is_empty());
        let url = url.ok_or_else(|| refused("url not set for github actions cache".to_owned()))?;
        // As BuildKit: for clients that know one address only.
        let is_v2 = is_v2
            || asked > 1
            || (asked == 0 && url.contains("results-receiver.actions.githubusercontent.com"));
        let timeout = match get("timeout") {
            Some(text) => duration(&text)
                .ok_or_else(|| refused("failed to parse timeout for github actions cache".to_owned()))?,
            None => Duration::from_secs(600),
        };
        let scope = get("scope").unwrap_or_else(|| "buildkit".to_owned());
        Ok(Self {
            names: vec![scope.clone()],
            kind: Kind::Actions(Actions {
                url: Redacted::new(url),
                token: Redacted::new(token),
                is_v2,
                scope,
                timeout,
            }),
            prefix: String::new(),
            manifests: String::new(),
            blobs: String::new(),
            touch_refresh: DAY,
            parallelism: 4,
        })
    }

    /// The name of a blob.
    pub(crate) fn blob(&self, digest: &str) -> String {
        format!("{}{}{digest}", self.prefix, self.blobs)
    }

    /// The name of a document.
    pub(crate) fn manifest(&self, name: &str) -> String {
        format!("{}{}{name}", self.prefix, self.manifests)
    }

    /// As BuildKit: of several names S3 reads the first, Azure all.
    pub(crate) fn names_read(&self) -> &[String] {
        match self.kind {
            Kind::S3(_) => self.names.get(..1).unwrap_or_default(),
            Kind::Azure(_) | Kind::Actions(_) => &self.names,
        }
    }

    /// An error of the store, without what it says of credentials.
    pub(crate) fn failed(&self, what: &str, error: &dyn std::error::Error) -> Error {
        let mut told = error.to_string();
        let mut source = error.source();
        while let Some(error) = source {
            let text = error.to_string();
            if !told.contains(&text) {
                told += &format!(": {text}");
            }
            source = error.source();
        }
        // Only the text tells which host was asked.
        let host = told.split_once("://").and_then(|(_, rest)| rest.split(['/', ':', ' ']).next());
        let host = host.unwrap_or_default().to_owned();
        let mut told = brief(&lapstrake_registry::told_as_go(told, &host));
        let secrets: Vec<&Redacted> = match &self.kind {
            Kind::S3(S3 { credentials: Some((key, secret, token)), .. }) => {
                [key, secret].into_iter().chain(token).collect()
            }
            Kind::Azure(Azure { key: Some(key), .. }) => vec![key],
            Kind::Actions(actions) => vec![&actions.url, &actions.token],
            _ => Vec::new(),
        };
        for secret in secrets {
            told = told.replace(secret.reveal(), "[redacted]");
        }
        Error::Store { what: what.to_owned(), store: self.to_string(), told }
    }
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.names.first().map_or("", String::as_str);
        match &self.kind {
            Kind::S3(s3) => write!(f, "s3://{}/{}", s3.bucket, self.manifest(name)),
            Kind::Actions(actions) => write!(f, "gha://{}", actions.scope),
            Kind::Azure(azure) => {
                write!(f, "azblob://{}/{}/{}", azure.account, azure.container, self.manifest(name))
            }
        }
    }
}

/// What a server says in a document, in its two words: the rest repeats the request.
fn brief(told: &str) -> String {
    let Some((before, document)) =
        told.find("<?xml").or_else(|| told.find("<Error>")).map(|at| told.split_at(at))
    else {
        return told.to_owned();
    };
    let between = |open: &str, close: &str| {
        let rest = document.split_once(open)?.1;
        Some(rest.split_once(close)?.0.lines().next().unwrap_or_default())
    };
    let code = between("<Code>", "</Code>").unwrap_or("an answer that is no error of a store");
    match between("<Message>", "</Message>") {
        Some(message) => format!("{before}{code}: {message}"),
        None => format!("{before}{code}"),
    }
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn refused(why: String) -> Error {
    Error::Settings(why)
}

fn names(list: Option<String>) -> Vec<String> {
    list.unwrap_or_else(|| "buildkit".to_owned()).split(';').map(str::to_owned).collect()
}

/// As Go's `filepath.Join` has it, with the slash that follows.
fn folder(path: &str) -> String {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    parts.iter().map(|part| format!("{part}/")).collect()
}

/// As Go's `strconv.ParseBool`, where what it does not know is false.
fn is_true(text: &str) -> bool {
    ["1", "t", "T", "TRUE", "true", "True"].contains(&text)
}

/// A duration as Go writes it: `24h`, `1h30m`, `1.5h`. `None` where it is none.
fn duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(digits);
        let unit = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(unit);
        let number: f64 = number.parse().ok()?;
        seconds += number
            * match unit {
                "ns" => 1e-9,
                "us" | "µs" | "μs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return None,
            };
        rest = after;
    }
    (!text.is_empty()).then(|| Duration::try_from_secs_f64(seconds).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(kind: &str, pairs: &[(&str, &str)]) -> Result<Settings, Error> {
        let attributes = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Settings::read(kind, &attributes, |_| None)
    }

    const S3: [(&str, &str); 4] = [
        ("bucket", "b"),
        ("region", "r"),
        ("access_key_id", "AKIASHOWN"),
        ("secret_access_key", "hush+hush"),
    ];

    #[test]
    fn objects_are_where_buildkit_has_them() {
        let settings = read("s3", &S3).unwrap();
        assert_eq!(settings.blob("sha256:0"), "blobs/sha256:0");
        assert_eq!(settings.manifest("buildkit"), "manifests/buildkit");
        let more = [("prefix", "p-"), ("blobs_prefix", "B"), ("manifests_prefix", "m/"), ("name", "x;y")];
        let settings = read("s3", &[&S3[..], &more].concat()).unwrap();
        assert_eq!(settings.blob("d"), "p-Bd", "S3's prefixes are no folders");
        assert_eq!(
            (settings.names_read(), settings.manifest("x")),
            (&["x".to_owned()][..], "p-m/x".to_owned())
        );
        let azure = [("account_url", "https://acc.blob.example"), ("prefix", "/a//b/"), ("name", "x;y")];
        let settings = read("azblob", &azure).unwrap();
        assert_eq!(settings.blob("d"), "a/b/blobs/d");
        assert_eq!(settings.names_read().len(), 2);
        assert_eq!(settings.to_string(), "azblob://acc/buildkit-cache/a/b/manifests/x");
    }

    #[test]
    fn what_is_missing_or_wrong_is_told_as_buildkit_tells_it() {
        for (kind, pairs, told) in [
            ("s3", &[][..], "bucket ($AWS_BUCKET) not set for s3 cache"),
            ("s3", &[("bucket", "b")], "region ($AWS_REGION) not set for s3 cache"),
            (
                "s3",
                &[("bucket", "b"), ("region", "r"), ("upload_parallelism", "0")],
                "upload_parallelism must be a positive integer",
            ),
            ("s3", &[("bucket", "b"), ("region", "r"), ("retry_mode", "x")], "retry_mode must be"),
            ("azblob", &[], "account_url attribute is required"),
            ("azblob", &[("account_url", "https://a.example/?sig=1")], "not a valid url"),
        ] {
            let error = read(kind, pairs).unwrap_err().to_string();
            assert!(error.contains(told), "{error}");
        }
        let attributes = Attributes::from([("region".to_owned(), "r".to_owned())]);
        let from_environment =
            Settings::read("s3", &attributes, |name| (name == "AWS_BUCKET").then(|| "env".into()));
        assert_eq!(from_environment.unwrap().to_string(), "s3://env/manifests/buildkit");
    }

    #[test]
    fn no_credential_is_shown() {
        let settings = read("s3", &[&S3[..], &[("session_token", "tok")]].concat()).unwrap();
        let error = settings.failed("read", &std::io::Error::other("<Key>AKIASHOWN</Key> tok hush+hush"));
        for shown in [format!("{settings:?}"), settings.to_string(), error.to_string(), format!("{error:?}")]
        {
            assert!(
                !shown.contains("AKIASHOWN") && !shown.contains("hush+hush") && !shown.contains("tok "),
                "{shown}"
            );
        }
    }

    #[test]
    fn of_a_document_only_what_it_means_is_told() {
        let text = "403 Forbidden: <?xml version=\"1.0\"?> <Error><Code>SignatureDoesNotMatch</Code><Message>The \
                    signature is wrong.\nTime: now</Message><StringToSign>AWS4</StringToSign></Error>";
        assert_eq!(brief(text), "403 Forbidden: SignatureDoesNotMatch: The signature is wrong.");
        assert_eq!(brief("connection refused"), "connection refused");
    }

    #[test]
    fn durations_are_those_of_go() {
        assert_eq!(duration("1h30m"), Some(Duration::from_secs(5400)));
        assert_eq!(duration("1.5s"), Some(Duration::from_millis(1500)));
        assert_eq!(duration("0"), Some(Duration::ZERO));
        assert_eq!((duration("soon"), duration("5"), duration("")), (None, None, None));
    }
}
