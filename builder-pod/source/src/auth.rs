//! Credentials of a source: the keys of a Secret, each a file in one folder.
//!
//! Holds: they are read anew for each use, go to the host of the source they were given for and to no other, and
//! stand in no command line and no message.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use base64::Engine as _;
use reqwest::header::HeaderValue;

use crate::error::{Class, Error, shown_url};

/// Tells the builder that git asks it for a password: the folder with the credentials.
const ASKPASS_DIR: &str = "LAPSTRAKE_ASKPASS_DIR";
/// Whom it may be told to.
const ASKPASS_ORIGIN: &str = "LAPSTRAKE_ASKPASS_ORIGIN";
/// User name beside a token, where none is said: servers that take tokens by password take any, or this one.
const TOKEN_USER: &str = "x-access-token";
/// Where a private key may lie for a moment: memory, never the disk.
const MEMORY: &str = "/dev/shm";

/// Credentials in the files of a folder: `username` and `password`, `token` or `bearerToken`, `ssh-privatekey`
/// (or `identity`) with `known_hosts`.
#[derive(Clone)]
pub struct SourceAuth {
    dir: PathBuf,
    origin: Origin,
    /// What is given in place of files.
    given: Option<Given>,
    /// The program that git asks; this one where nothing else is said.
    program: Option<PathBuf>,
}

/// Credentials that are in no folder.
#[derive(Clone)]
enum Given {
    /// The value of the header `Authorization`.
    Header(String),
    /// An SSH agent, and a file with the keys of hosts.
    Agent { socket: PathBuf, known_hosts: PathBuf },
}

impl std::fmt::Debug for SourceAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SourceAuth")
            .field("dir", &self.dir)
            .field("origin", &self.origin)
            .finish_non_exhaustive()
    }
}

/// Whom something is for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Origin {
    /// `http`, `https` or `ssh`.
    scheme: &'static str,
    host: String,
    port: u16,
}

/// What one call of git is given to get in.
#[derive(Default)]
pub(crate) struct Access {
    pub(crate) env: Vec<(OsString, OsString)>,
    /// What no message may hold.
    hide: Vec<String>,
    /// Holds a private key until the call has ended.
    _key: Option<tempfile::TempDir>,
}

/// A way to say who is asking over http.
enum Login {
    Basic { username: String, password: String },
    Bearer(String),
}

impl Origin {
    /// `None` for what has no credentials of ours: `git://`, files.
    fn of(url: &str) -> Option<Self> {
        let Some((scheme, rest)) = url.split_once("://") else {
            // `user@host:path`
            let (host, _) = url.split_once(':').filter(|(host, _)| !host.contains('/'))?;
            let host = host.rsplit('@').next()?.to_ascii_lowercase();
            return Some(Self { scheme: "ssh", host, port: 22 });
        };
        let (scheme, port) = match scheme.to_ascii_lowercase().as_str() {
            "https" => ("https", 443),
            "http" => ("http", 80),
            "ssh" => ("ssh", 22),
            _ => return None,
        };
        let host = rest.split(['/', '?', '#']).next()?.rsplit('@').next()?.to_ascii_lowercase();
        let (host, port) = match host.rsplit_once(':') {
            Some((name, own)) if !own.contains(']') => (name.to_owned(), own.parse().ok()?),
            _ => (host, port),
        };
        (!host.is_empty()).then_some(Self { scheme, host, port })
    }
}

impl SourceAuth {
    /// The credentials in `dir`, for the host of `url`.
    ///
    /// # Errors
    /// When the address has no host that credentials could be for.
    pub fn new(dir: impl Into<PathBuf>, url: &str) -> Result<Self, Error> {
        let none = || {
            let text = "credentials are for https, http and ssh only";
            Error::Invalid(format!("{}: {text}", shown_url(url)))
        };
        Ok(Self { dir: dir.into(), origin: Origin::of(url).ok_or_else(none)?, given: None, program: None })
    }

    /// The value of the header `Authorization`, for the host of `url`.
    ///
    /// # Errors
    /// As [`SourceAuth::new`].
    pub fn with_header(url: &str, value: impl Into<String>) -> Result<Self, Error> {
        Ok(Self { given: Some(Given::Header(value.into())), ..Self::new("", url)? })
    }

    /// An SSH agent by its socket, and a file with the keys of hosts, for the host of `url`.
    ///
    /// # Errors
    /// As [`SourceAuth::new`].
    pub fn with_agent(
        url: &str,
        socket: impl Into<PathBuf>,
        known_hosts: impl Into<PathBuf>,
    ) -> Result<Self, Error> {
        let given = Given::Agent { socket: socket.into(), known_hosts: known_hosts.into() };
        Ok(Self { given: Some(given), ..Self::new("", url)? })
    }

    /// Has git ask another program than this one, which must call [`askpass`]; for tests.
    #[doc(hidden)]
    pub fn with_program(mut self, program: impl Into<PathBuf>) -> Self {
        self.program = Some(program.into());
        self
    }

    /// Whether `url` is at the host that the credentials are for.
    pub(crate) fn is_for(&self, url: &str) -> bool {
        Origin::of(url).is_some_and(|origin| origin == self.origin)
    }

    /// What a request to that host says of who asks.
    pub(crate) fn header(&self) -> Result<Option<HeaderValue>, Error> {
        let text = match (&self.given, self.login(true)?) {
            (Some(Given::Header(text)), _) => text.clone(),
            (_, None) => return Ok(None),
            (_, Some(Login::Bearer(token))) => format!("Bearer {token}"),
            (_, Some(Login::Basic { username, password })) => format!("Basic {}", pair(&username, &password)),
        };
        let bad = |_| self.lacks("what the Secret holds cannot stand in a header: it has a line end inside");
        let mut value = HeaderValue::from_str(&text).map_err(bad)?;
        value.set_sensitive(true);
        Ok(Some(value))
    }

    /// What a call of git that speaks to `url` is given.
    pub(crate) fn access(&self, url: &str) -> Result<Access, Error> {
        if !self.is_for(url) {
            return Ok(Access::default());
        }
        match (&self.given, self.origin.scheme) {
            (Some(Given::Header(value)), "http" | "https") => Ok(Access::header(value)),
            (Some(Given::Agent { socket, known_hosts }), "ssh") => Ok(Access::agent(socket, known_hosts)),
            (Some(_), _) => Ok(Access::default()),
            (None, "ssh") => self.ssh(),
            (None, _) => self.http(url),
        }
    }

    fn http(&self, url: &str) -> Result<Access, Error> {
        let mut access = Access::default();
        let mut set = |name: &str, value: &dyn AsRef<std::ffi::OsStr>| {
            access.env.push((name.into(), value.as_ref().into()))
        };
        match self.login(false)? {
            None => return Err(self.lacks("the Secret has no username and password, token or bearerToken")),
            Some(Login::Bearer(token)) => access = Access::header(&format!("Bearer {token}")),
            Some(Login::Basic { username, password }) => {
                let own = || std::env::current_exe().map_err(Error::io("find the builder's own program"));
                let program = self.program.clone().map_or_else(own, Ok)?;
                set("GIT_ASKPASS", &program);
                set(ASKPASS_DIR, &self.dir);
                set(ASKPASS_ORIGIN, &url);
                access.hide.push(pair(&username, &password));
                access.hide.push(password);
            }
        }
        Ok(access)
    }

    fn ssh(&self) -> Result<Access, Error> {
        let key = ["ssh-privatekey", "identity"].into_iter().map(|name| self.dir.join(name));
        let Some(key) = key.into_iter().find(|path| path.is_file()) else {
            return Err(self.lacks("the Secret has no key ssh-privatekey"));
        };
        let known_hosts = self.dir.join("known_hosts");
        if !known_hosts.is_file() {
            return Err(self.lacks(
                "the Secret has no key known_hosts, without which nobody can tell the server from another: \
                 `ssh-keyscan HOST` prints it, compare it with what the server's owner says",
            ));
        }
        let (key, kept) = usable_key(&key).map_err(Error::io("read the private key of a source"))?;
        let command = [
            "ssh -F /dev/null -o BatchMode=yes -o IdentitiesOnly=yes -o IdentityAgent=none".to_owned(),
            "-o StrictHostKeyChecking=yes -o GlobalKnownHostsFile=/dev/null -o UpdateHostKeys=no".to_owned(),
            "-o ConnectTimeout=30 -o ServerAliveInterval=20".to_owned(),
            format!("-o UserKnownHostsFile={}", quoted(&known_hosts)),
            format!("-i {}", quoted(&key)),
        ];
        let env = vec![("GIT_SSH_COMMAND".into(), command.join(" ").into())];
        Ok(Access { env, hide: Vec::new(), _key: kept })
    }

    /// What the files say; for git, a bare token is a password.
    fn login(&self, download: bool) -> Result<Option<Login>, Error> {
        if let Some(token) = self.word("bearerToken")? {
            return Ok(Some(Login::Bearer(token)));
        }
        let username = self.word("username")?;
        if let Some(token) = self.word("token")? {
            return Ok(Some(match (username, download) {
                (None, true) => Login::Bearer(token),
                (username, _) => Login::Basic {
                    username: username.unwrap_or_else(|| TOKEN_USER.to_owned()),
                    password: token,
                },
            }));
        }
        Ok(match (username, self.word("password")?) {
            (None, None) => None,
            (username, password) => Some(Login::Basic {
                username: username.unwrap_or_else(|| TOKEN_USER.to_owned()),
                password: password.unwrap_or_default(),
            }),
        })
    }

    /// A file's text without the line end that many a tool puts behind it.
    fn word(&self, name: &str) -> Result<Option<String>, Error> {
        if self.given.is_some() {
            return Ok(None);
        }
        match std::fs::read_to_string(self.dir.join(name)) {
            Ok(text) => {
                Ok(Some(text.trim_end_matches(['\n', '\r']).to_owned()).filter(|text| !text.is_empty()))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io(format!("read the key {name} of a source's Secret"))(error)),
        }
    }

    fn lacks(&self, reason: &str) -> Error {
        let url = format!("{}://{}", self.origin.scheme, self.origin.host);
        let (reference, reason) = (String::new(), reason.to_owned());
        Error::Git { class: Class::Denied, url, reference, reason }
    }
}

impl Access {
    /// In the environment of git alone. A header of one's own would follow a redirect to wherever.
    fn header(value: &str) -> Self {
        let env = [
            ("GIT_CONFIG_COUNT", "2".to_owned()),
            ("GIT_CONFIG_KEY_0", "http.extraHeader".to_owned()),
            ("GIT_CONFIG_VALUE_0", format!("Authorization: {value}")),
            ("GIT_CONFIG_KEY_1", "http.followRedirects".to_owned()),
            ("GIT_CONFIG_VALUE_1", "false".to_owned()),
        ];
        let token = value.split_whitespace().last().unwrap_or_default().to_owned();
        let env = env.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        Self { env, hide: vec![value.to_owned(), token], _key: None }
    }

    fn agent(socket: &Path, known_hosts: &Path) -> Self {
        let command = [
            "ssh -F /dev/null -o BatchMode=yes -o IdentityFile=/dev/null".to_owned(),
            "-o StrictHostKeyChecking=yes -o GlobalKnownHostsFile=/dev/null -o UpdateHostKeys=no".to_owned(),
            "-o ConnectTimeout=30 -o ServerAliveInterval=20".to_owned(),
            format!("-o UserKnownHostsFile={}", quoted(known_hosts)),
            format!("-o IdentityAgent={}", quoted(socket)),
        ];
        let env = vec![("GIT_SSH_COMMAND".into(), command.join(" ").into())];
        Self { env, hide: Vec::new(), _key: None }
    }

    /// A message without what it may not hold.
    pub(crate) fn scrubbed(&self, mut text: String) -> String {
        for secret in self.hide.iter().filter(|secret| !secret.is_empty()) {
            text = text.replace(secret, "***");
        }
        text
    }
}

fn pair(username: &str, password: &str) -> String {
    base64::engine::general_purpose::STANDARD.encode(format!("{username}:{password}"))
}

/// A word for the shell that git starts ssh by.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

/// A file that ssh takes as a key: nobody else's to read, and with a line end, which Secrets made by hand lack.
fn usable_key(path: &Path) -> io::Result<(PathBuf, Option<tempfile::TempDir>)> {
    let meta = path.metadata()?;
    let bytes = std::fs::read(path)?;
    let own = meta.mode() & 0o077 == 0 && meta.uid() == rustix::process::geteuid().as_raw();
    if own && bytes.ends_with(b"\n") && !bytes.contains(&b'\r') {
        return Ok((path.to_owned(), None));
    }
    let dir = tempfile::Builder::new().prefix(".lapstrake-").tempdir_in(MEMORY)?;
    let copy = dir.path().join("key");
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&copy)?;
    let plain: Vec<u8> = bytes.into_iter().filter(|byte| *byte != b'\r').collect();
    file.write_all(plain.trim_ascii_end())?;
    file.write_all(b"\n")?;
    Ok((copy, Some(dir)))
}

/// Answers git's question for a user name or a password, if this process was started for that; then its exit code.
///
/// The first call in `main`. It answers only what is asked for the host that the credentials are for: a server may
/// send git elsewhere.
pub fn askpass() -> Option<ExitCode> {
    let dir = std::env::var_os(ASKPASS_DIR)?;
    let origin = std::env::var(ASKPASS_ORIGIN).unwrap_or_default();
    let question = std::env::args().nth(1).unwrap_or_default();
    let answered = SourceAuth::new(dir, &origin).ok().and_then(|auth| answer(&auth, &question));
    Some(match answered {
        Some(text) => {
            writeln!(io::stdout(), "{text}").ok(); // git has gone
            ExitCode::SUCCESS
        }
        None => ExitCode::FAILURE,
    })
}

/// To "Username for 'https://host': " and "Password for 'https://user@host': ".
fn answer(auth: &SourceAuth, question: &str) -> Option<String> {
    let url = question.split_once('\'')?.1.rsplit_once('\'')?.0;
    if !auth.is_for(url) {
        return None;
    }
    match (auth.login(false).ok()??, question.starts_with("Username")) {
        (Login::Basic { username, .. }, true) => Some(username),
        (Login::Basic { password, .. }, false) => Some(password),
        (Login::Bearer(_), _) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    #[test]
    fn credentials_are_for_one_host_by_one_way() {
        for (of, url, same) in [
            ("https://h.example/a.git", "https://H.example:443/b", true),
            ("https://h.example/a.git", "https://me@h.example", true),
            ("https://h.example/a.git", "http://h.example/a.git", false),
            ("https://h.example/a.git", "https://h.example:8443/a.git", false),
            ("https://h.example/a.git", "https://h.example.evil/a.git", false),
            ("https://h.example/a.git", "https://h.example@evil/a.git", false),
            ("git@h.example:a/b", "ssh://git@h.example/a/b", true),
            ("git@h.example:a/b", "ssh://git@h.example:2222/a/b", false),
            ("git@h.example:a/b", "git@other.example:a/b", false),
            ("http://[::1]:80/a", "http://[::1]/b", true),
        ] {
            assert_eq!(SourceAuth::new("/x", of).unwrap().is_for(url), same, "{of} {url}");
        }
        assert!(SourceAuth::new("/x", "git://h/a").is_err());
    }

    #[test]
    fn a_question_for_another_host_has_no_answer() {
        let dir = folder(&[("username", "me\n"), ("password", "s3cret\n")]);
        let auth = SourceAuth::new(dir.path(), "https://h.example/a.git").unwrap();
        let ask = |question: &str| answer(&auth, question);
        assert_eq!(ask("Username for 'https://h.example': ").as_deref(), Some("me"));
        assert_eq!(ask("Password for 'https://me@h.example': ").as_deref(), Some("s3cret"));
        for question in [
            "Password for 'https://me@evil.example': ",
            "Password for 'http://me@h.example': ",
            "Password for 'https://h.example@evil.example': ",
            "Password: ",
            "",
        ] {
            assert_eq!(ask(question), None, "{question}");
        }
    }

    #[test]
    fn each_kind_of_secret_becomes_what_the_server_expects() {
        let header = |files: &[(&str, &str)]| {
            let dir = folder(files);
            let auth = SourceAuth::new(dir.path(), "https://h.example/a").unwrap();
            auth.header().unwrap().map(|value| value.to_str().unwrap().to_owned())
        };
        assert_eq!(header(&[]), None);
        assert_eq!(header(&[("token", "t\n")]).as_deref(), Some("Bearer t"));
        assert_eq!(header(&[("bearerToken", "t")]).as_deref(), Some("Bearer t"));
        assert_eq!(header(&[("username", "u"), ("password", "p")]).as_deref(), Some("Basic dTpw"));
        assert_eq!(header(&[("username", "u"), ("token", "p")]).as_deref(), Some("Basic dTpw"));
    }

    #[test]
    fn what_is_given_is_for_its_host_and_shown_nowhere() {
        let auth = SourceAuth::with_header("https://h.example:8443/a.git", "basic c2VjcmV0").unwrap();
        assert!(!format!("{auth:?}").contains("c2VjcmV0"));
        assert_eq!(auth.header().unwrap().unwrap(), "basic c2VjcmV0");
        let access = auth.access("https://h.example:8443/b.git").unwrap();
        assert!(access.env.iter().any(|(_, value)| value == "Authorization: basic c2VjcmV0"));
        assert_eq!(access.scrubbed("x basic c2VjcmV0 y c2VjcmV0".to_owned()), "x *** y ***");
        assert!(auth.access("https://h.example/b.git").unwrap().env.is_empty());

        let auth = SourceAuth::with_agent("git@h:a", "/s o", "/hosts").unwrap();
        let access = auth.access("ssh://git@h/b").unwrap();
        assert!(access.env[0].1.to_str().unwrap().ends_with("-o IdentityAgent='/s o'"), "{:?}", access.env);
        assert!(auth.access("git@other:a").unwrap().env.is_empty());
    }

    #[test]
    fn a_key_is_made_usable_in_memory_and_goes_away() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = folder(&[
            ("ssh-privatekey", "-----BEGIN KEY-----\r\nabc\r\n-----END KEY-----"),
            ("known_hosts", "h k"),
        ]);
        let auth = SourceAuth::new(dir.path(), "git@h:a").unwrap();
        let access = auth.access("git@h:b").unwrap();
        let command = access.env[0].1.to_str().unwrap().to_owned();
        let path = command.rsplit_once("-i '").unwrap().1.trim_end_matches('\'').to_owned();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "-----BEGIN KEY-----\nabc\n-----END KEY-----\n");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        drop(access);
        assert!(!Path::new(&path).exists());
        assert!(auth.access("git@other:b").unwrap().env.is_empty());
        std::fs::remove_file(dir.path().join("known_hosts")).unwrap();
        let error = auth.access("git@h:b").err().unwrap().to_string();
        assert!(error.contains("known_hosts") && error.contains("ssh-keyscan"), "{error}");
    }
}
