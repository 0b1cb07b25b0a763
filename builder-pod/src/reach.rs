//! How a build reaches the world outside, and what else a pod's request says by places of files: credentials,
//! authorities, proxies, arguments. Files are read when they are needed, and never shown.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use lapstrake_handoff::{Reason, Request, Source};
use lapstrake_registry::{Config, Credentials, HostsConfig, Proxy, Redacted};
use lapstrake_source::{Git, Http, SourceAuth};
use lapstrake_store::Store;

use crate::error::{BuildError, chain};

/// Redirects of a download at most.
const REDIRECTS_MAX: usize = 10;
/// Where distributions keep the authorities that they trust, in one file.
const BUNDLES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// The way to sources and registries.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reach {
    /// PEM text of authorities that are trusted beside the machine's.
    pub(crate) authorities: String,
    /// Proxies; those of the environment where there is none.
    pub(crate) proxy: Option<Proxy>,
    /// Folder with the credentials of the build's source.
    pub(crate) credentials: Option<PathBuf>,
    /// Folders with the credentials of named contexts, by their names.
    pub(crate) of_contexts: BTreeMap<String, PathBuf>,
    /// Credentials from the build's secrets, where there is no folder.
    pub(crate) access: Option<SourceAuth>,
}

fn invalid(message: impl Into<String>) -> BuildError {
    BuildError::new(Reason::RequestInvalid, message)
}

impl Reach {
    /// As the request says. Blocking, small.
    pub(crate) fn of(request: &Request) -> Result<Self, BuildError> {
        let files: Vec<PathBuf> = request.certificates.files.iter().map(PathBuf::from).collect();
        let credentials = match &request.source {
            Source::Git(git) => &git.credentials,
            Source::Http(http) => &http.credentials,
            Source::Inline(_) => &None,
        };
        Ok(Self {
            authorities: lapstrake_registry::read_authorities(&files).map_err(|e| invalid(e.full()))?,
            proxy: proxy(request)?,
            credentials: credentials.as_ref().map(PathBuf::from),
            of_contexts: crate::asked::credentials(request),
            access: None,
        })
    }

    /// The way to a named context: by its own credentials alone.
    pub(crate) fn for_context(&self, name: &str) -> Self {
        Self { credentials: self.of_contexts.get(name).cloned(), ..self.clone() }
    }

    /// Puts in what the request's own words left to a folder.
    pub(crate) fn complete(&self, said: &mut lapstrake_handoff::Proxy) {
        let Some(proxy) = &self.proxy else { return };
        let text = |address: &Option<Redacted>| address.as_ref().map(|address| address.reveal().to_owned());
        said.http = text(&proxy.http);
        said.https = text(&proxy.https);
        said.no = Some(proxy.no.clone()).filter(|no| !no.is_empty());
    }

    /// Git with its repositories in the state directory.
    pub(crate) fn git(&self, store: &Store, url: &str) -> Result<Git, BuildError> {
        let dir = store.side_dir("git")?;
        let environment = self.git_environment(&dir)?;
        Ok(Git::new(dir).with_environment(environment).with_auth(self.auth(url)?))
    }

    /// Downloads.
    pub(crate) fn http(&self, url: &str) -> Result<Http, BuildError> {
        Ok(Http::new(self.http_client()?).with_auth(self.auth(url)?))
    }

    fn auth(&self, url: &str) -> Result<Option<SourceAuth>, BuildError> {
        match &self.credentials {
            Some(dir) => Ok(Some(SourceAuth::new(dir, url)?)),
            None => Ok(self.access.clone()),
        }
    }

    fn http_client(&self) -> Result<reqwest::Client, BuildError> {
        let roots = lapstrake_registry::certificates(&self.authorities).map_err(|e| invalid(e.full()))?;
        let builder = || {
            let builder = reqwest::Client::builder()
                .user_agent(concat!("lapstrake/", env!("CARGO_PKG_VERSION")))
                .redirect(reqwest::redirect::Policy::custom(redirect));
            match &self.proxy {
                None => Ok(builder),
                Some(proxy) => proxy.apply(builder).map_err(|e| invalid(e.full())),
            }
        };
        // A machine without any CA certificates can still reach what it needs none of its own for.
        let client = builder()?.tls_certs_merge(roots.clone()).build();
        let client =
            client.or_else(|_| builder()?.tls_certs_only(roots).build().map_err(|e| invalid(chain(&e))));
        client.map_err(BuildError::internal)
    }

    fn git_environment(&self, dir: &Path) -> Result<Vec<(String, OsString)>, BuildError> {
        let mut environment = Vec::new();
        if let Some(proxy) = &self.proxy {
            let addresses = [("http_proxy", &proxy.http), ("https_proxy", &proxy.https)];
            for (name, address) in addresses {
                if let Some(address) = address {
                    environment.push((name.to_owned(), address.reveal().into()));
                }
            }
            environment.push(("no_proxy".to_owned(), proxy.no.clone().into()));
        }
        if !self.authorities.is_empty() {
            // Git takes one file, in place of the machine's.
            let own = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
            let mut bundle = own.into_iter().chain(BUNDLES.map(PathBuf::from));
            let mut text = bundle.find_map(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
            text.push('\n');
            text.push_str(&self.authorities);
            let path = dir.join("authorities.pem");
            let failed = |e: std::io::Error| BuildError::internal(format!("{}: {e}", path.display()));
            std::fs::write(&path, text).map_err(failed)?;
            environment.push(("GIT_SSL_CAINFO".to_owned(), path.into()));
        }
        Ok(environment)
    }
}

/// Follows redirects, but not from TLS to where everybody can listen.
fn redirect(attempt: reqwest::redirect::Attempt<'_>) -> reqwest::redirect::Action {
    let from_tls = attempt.previous().last().is_some_and(|from| from.scheme() == "https");
    if from_tls && attempt.url().scheme() != "https" {
        return attempt.error("it redirects from https to plain http");
    }
    if attempt.previous().len() > REDIRECTS_MAX {
        return attempt.error("it redirects too often");
    }
    attempt.follow()
}

/// The proxies of the request, with what its folder adds; none where nothing is set.
pub(crate) fn proxy(request: &Request) -> Result<Option<Proxy>, BuildError> {
    let said = &request.proxy;
    let of = |own: &Option<String>, name: &str| match (own, &said.folder) {
        (Some(text), _) => Ok(Some(text.clone())),
        (None, None) => Ok(None),
        (None, Some(folder)) => word(&Path::new(folder).join(name)),
    };
    let proxy = Proxy {
        http: of(&said.http, "http")?.map(Redacted::new),
        https: of(&said.https, "https")?.map(Redacted::new),
        no: of(&said.no, "noProxy")?.unwrap_or_default(),
    };
    Ok((!proxy.is_empty()).then_some(proxy))
}

/// A file's text without a line end; none where there is no such file.
fn word(path: &Path) -> Result<Option<String>, BuildError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim().to_owned()).filter(|text| !text.is_empty())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(invalid(format!("{}: {error}", path.display()))),
    }
}

/// What the registry client is made of.
pub(crate) fn registry(request: &Request, hosts: HostsConfig, reach: &Reach) -> Result<Config, BuildError> {
    let mut credentials = Credentials::none();
    let all = [(&request.docker_configs, false), (&request.docker_configs_optional, true)];
    for (paths, optional) in all {
        for path in paths {
            let added = credentials.with_file(Path::new(path), optional);
            credentials = added.map_err(|e| BuildError::new(Reason::PullDenied, e.full()))?;
        }
    }
    let (authorities, proxy) = (reach.authorities.clone(), reach.proxy.clone());
    Ok(Config { hosts, credentials, authorities, proxy, ..Config::default() })
}

/// Build arguments whose values are in files, and what there is to warn of.
pub(crate) fn args(request: &Request) -> Result<(BTreeMap<String, String>, Vec<String>), BuildError> {
    let (mut args, mut warnings) = (BTreeMap::new(), Vec::new());
    for arg in &request.args_from {
        let name = &arg.name;
        match std::fs::read(&arg.path) {
            Ok(bytes) => {
                let text = String::from_utf8(bytes)
                    .map_err(|_| invalid(format!("the value of build argument {name} is not text")))?;
                args.insert(name.clone(), text);
            }
            Err(error) if arg.optional && error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(invalid(format!("the value of build argument {name}: {error}"))),
        }
        if arg.secret {
            warnings.push(format!(
                "build argument {name} comes from a Secret, but arguments end up in the image's history and in the \
                 cache: give secrets by spec.secrets and RUN --mount=type=secret,id=…"
            ));
        }
    }
    Ok((args, warnings))
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapstrake_handoff::inputs::ArgInput;

    fn request() -> Request {
        let text = r#"{"apiVersion":"handoff.lapstrake.dev/v1","build":{"name":"a","namespace":"b","uid":"c"},
            "run":"r","source":{"git":{"url":"https://h/a.git"}},"output":{"names":["r.example/a:1"]},
            "stateDir":"/s","sandbox":"Baseline"}"#;
        Request::parse(text.as_bytes()).expect("a request")
    }

    #[test]
    fn arguments_come_from_files_byte_for_byte_and_secrets_are_warned_of() {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::write(dir.path().join("version"), "1.2\n").expect("write");
        let arg = |name: &str, file: &str, optional, secret| ArgInput {
            name: name.to_owned(),
            path: dir.path().join(file).display().to_string(),
            optional,
            secret,
        };
        let mut request = request();
        request.args_from = vec![arg("A", "version", false, false), arg("B", "version", false, true)];
        request.args_from.push(arg("C", "absent", true, true));
        let (args, warnings) = args(&request).expect("read");
        assert_eq!(args, BTreeMap::from(["A", "B"].map(|name| (name.to_owned(), "1.2\n".to_owned()))));
        assert!(matches!(&warnings[..], [one] if one.contains("build argument B comes from a Secret")));
        request.args_from.push(arg("D", "absent", false, false));
        assert!(super::args(&request).expect_err("absent").to_string().contains("build argument D"));
    }

    #[test]
    fn a_proxy_is_what_the_request_says_and_then_what_the_folder_says() {
        let mut request = request();
        assert_eq!(proxy(&request).expect("none"), None);
        let dir = tempfile::tempdir().expect("a folder");
        for (name, text) in
            [("http", "http://me:s3cret@folder:1\n"), ("https", "http://folder:2"), ("noProxy", ".svc\n")]
        {
            std::fs::write(dir.path().join(name), text).expect("write");
        }
        request.proxy.folder = Some(dir.path().display().to_string());
        request.proxy.https = Some("http://said:3".to_owned());
        let found = proxy(&request).expect("read").expect("some");
        assert!(!format!("{found:?}").contains("s3cret"));
        assert_eq!(found.http.as_ref().map(Redacted::reveal), Some("http://me:s3cret@folder:1"));
        assert_eq!(found.https.as_ref().map(Redacted::reveal), Some("http://said:3"));
        assert_eq!(found.no, ".svc");
    }
}
