//! What went into a result: its sources with what they were found to be, and what its steps were lent.

use lapstrake_llb::{Vertex, pb};
use lapstrake_oci::{Digest, Platform, Reference};
use serde::Serialize;

use super::request::{Lent, Parameters};

/// An image that was built from or copied of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ImageSource {
    pub(crate) reference: Reference,
    pub(crate) platform: Option<Platform>,
    pub(crate) digest: Option<Digest>,
    /// The client lent it.
    pub(crate) local: bool,
    /// It is one blob, not an image.
    pub(crate) blob: bool,
}

/// A commit of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GitSource {
    /// Address and ref: `https://…#ref`.
    pub(crate) url: String,
    pub(crate) commit: String,
    /// The bundle that it came from.
    pub(crate) bundle: Option<String>,
}

/// A file that was downloaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HttpSource {
    pub(crate) url: String,
    pub(crate) digest: Digest,
}

/// A directory of the client.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct LocalSource {
    pub(crate) name: String,
}

/// Sources of a result.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Sources {
    pub(crate) images: Vec<ImageSource>,
    pub(crate) git: Vec<GitSource>,
    pub(crate) http: Vec<HttpSource>,
    pub(crate) locals: Vec<LocalSource>,
}

/// What a source was found to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Pin {
    Digest(Digest),
    Commit(String),
}

/// What went into a result.
#[derive(Debug, Clone, Default)]
pub(crate) struct Capture {
    /// What was asked of the frontend that made it.
    pub(crate) request: Parameters,
    pub(crate) sources: Sources,
    pub(crate) secrets: Vec<Lent>,
    pub(crate) ssh: Vec<Lent>,
    /// Steps may have used the network.
    pub(crate) network: bool,
    /// There is something of which not everything is known.
    pub(crate) incomplete: bool,
    /// The platform that the result is for.
    pub(crate) target_platform: Option<String>,
    /// Directories that stand for something else, which is told.
    stand_ins: Vec<String>,
}

impl Capture {
    /// Adds an operation, and what it was found to be if it is a source.
    pub(crate) fn add(&mut self, vertex: &Vertex, platform: &Platform, pin: Option<Pin>) {
        match &vertex.op {
            pb::op::Op::Source(source) => self.add_source(source, platform, pin),
            pb::op::Op::Exec(exec) => self.add_exec(exec),
            pb::op::Op::Build(_) => self.incomplete = true,
            _ => {}
        }
    }

    fn add_source(&mut self, source: &pb::SourceOp, platform: &Platform, pin: Option<Pin>) {
        let (scheme, rest) = source.identifier.split_once("://").unwrap_or(("", &source.identifier));
        match (scheme, pin) {
            ("local", _) => self.add_local(rest),
            ("docker-image" | "oci-layout" | "docker-image+blob" | "oci-layout+blob", pin) => {
                let Ok(reference) = rest.parse::<Reference>() else {
                    self.incomplete = true;
                    return;
                };
                let digest = match pin {
                    Some(Pin::Digest(digest)) => Some(digest),
                    _ => reference.digest(),
                };
                let blob = scheme.ends_with("+blob");
                let platform = (!blob).then(|| platform.clone());
                let local = scheme.starts_with("oci-layout");
                self.add_image(ImageSource { reference, platform, digest, local, blob });
            }
            ("git", Some(Pin::Commit(commit))) => {
                let remote = source.attrs.get("git.fullurl").map_or(rest, String::as_str);
                let remote = remote.split('#').next().unwrap_or_default();
                let fragment = source.identifier.split_once('#').map_or("", |(_, fragment)| fragment);
                let reference = fragment.split(':').next().unwrap_or_default();
                let bundle = source.attrs.get("git.bundle").filter(|bundle| !bundle.is_empty());
                self.add_git(remote, reference, &commit, bundle.map(String::as_str));
                for name in ["git.authtokensecret", "git.authheadersecret"] {
                    if let Some(id) = source.attrs.get(name).filter(|id| !id.is_empty()) {
                        lend(&mut self.secrets, id, true);
                    }
                }
                if let Some(id) = source.attrs.get("git.mountsshsock").filter(|id| !id.is_empty()) {
                    lend(&mut self.ssh, id, true);
                }
            }
            ("http" | "https", Some(Pin::Digest(digest))) => self.add_http(&source.identifier, digest),
            // What it was is not known.
            _ => self.incomplete = true,
        }
    }

    fn add_exec(&mut self, exec: &pb::ExecOp) {
        for mount in &exec.mounts {
            let kind = pb::MountType::try_from(mount.mount_type);
            if let (Ok(pb::MountType::Secret), Some(secret)) = (kind, &mount.secret_opt) {
                lend(&mut self.secrets, &secret.id, secret.optional);
            }
            if let (Ok(pb::MountType::Ssh), Some(ssh)) = (kind, &mount.ssh_opt) {
                lend(&mut self.ssh, if ssh.id.is_empty() { "default" } else { &ssh.id }, ssh.optional);
            }
        }
        for secret in &exec.secretenv {
            lend(&mut self.secrets, &secret.id, secret.optional);
        }
        self.network |= exec.network != i32::from(pb::NetMode::None);
    }

    /// Adds a directory of the client.
    pub(crate) fn add_local(&mut self, name: &str) {
        let local = LocalSource { name: name.to_owned() };
        if !self.sources.locals.contains(&local) {
            self.sources.locals.push(local);
        }
    }

    /// What a graph has as a directory of this name is told as something else.
    pub(crate) fn instead_of(&mut self, name: &str) {
        self.stand_ins.push(name.to_owned());
    }

    /// Adds a commit; the address is kept without credentials.
    pub(crate) fn add_git(&mut self, remote: &str, reference: &str, commit: &str, bundle: Option<&str>) {
        let mut url = redacted(remote);
        if !reference.is_empty() {
            url = format!("{url}#{reference}");
        }
        let same = |known: &GitSource| known.url == url && known.bundle.as_deref() == bundle;
        if !self.sources.git.iter().any(same) {
            let (commit, bundle) = (commit.to_owned(), bundle.map(str::to_owned));
            self.sources.git.push(GitSource { url, commit, bundle });
        }
    }

    /// Adds a file; the address is kept without credentials.
    pub(crate) fn add_http(&mut self, url: &str, digest: Digest) {
        let url = redacted(url);
        if !self.sources.http.iter().any(|known| known.url == url) {
            self.sources.http.push(HttpSource { url, digest });
        }
    }

    /// Adds an image, unless it is known for that platform.
    pub(crate) fn add_image(&mut self, image: ImageSource) {
        let same = |known: &ImageSource| {
            known.reference == image.reference
                && (known.local, known.blob) == (image.local, image.blob)
                && known.platform == image.platform
        };
        if !self.sources.images.iter().any(same) {
            self.sources.images.push(image);
        }
    }

    /// Adds all of another result.
    pub(crate) fn merge(&mut self, other: &Self) {
        other.sources.images.iter().for_each(|image| self.add_image(image.clone()));
        other.sources.locals.iter().for_each(|local| self.add_local(&local.name));
        for git in &other.sources.git {
            let (remote, reference) = git.url.split_once('#').unwrap_or((&git.url, ""));
            self.add_git(remote, reference, &git.commit, git.bundle.as_deref());
        }
        other.sources.http.iter().for_each(|http| self.add_http(&http.url, http.digest));
        other.secrets.iter().for_each(|lent| lend(&mut self.secrets, &lent.id, lent.optional));
        other.ssh.iter().for_each(|lent| lend(&mut self.ssh, &lent.id, lent.optional));
        self.stand_ins.extend(other.stand_ins.iter().cloned());
        self.network |= other.network;
        self.incomplete |= other.incomplete;
    }

    /// Leaves images out that are named by their digest and also by their tag; sorts all.
    pub(crate) fn settle(&mut self) {
        let tag = |image: &ImageSource| {
            (image.reference.name(), image.reference.tag().unwrap_or("latest").to_owned())
        };
        let tagged: Vec<_> =
            self.sources.images.iter().filter(|image| image.reference.digest().is_none()).map(tag).collect();
        let stays = |image: &ImageSource| {
            image.blob || image.reference.digest().is_none() || !tagged.contains(&tag(image))
        };
        self.sources.images.retain(stays);
        self.sources.images.sort_by_key(|image| {
            let platform = image.platform.as_ref().map(ToString::to_string);
            (image.blob, image.reference.to_string(), platform)
        });
        self.sources.locals.retain(|local| !self.stand_ins.contains(&local.name));
        self.sources.git.sort_by(|a, b| (&a.url, &a.bundle).cmp(&(&b.url, &b.bundle)));
        self.sources.http.sort_by(|a, b| a.url.cmp(&b.url));
        self.sources.locals.sort();
        self.secrets.sort_by(|a, b| a.id.cmp(&b.id));
        self.ssh.sort_by(|a, b| a.id.cmp(&b.id));
    }
}

/// What is lent once as necessary is necessary.
fn lend(all: &mut Vec<Lent>, id: &str, optional: bool) {
    match all.iter_mut().find(|lent| lent.id == id) {
        Some(known) => known.optional &= optional,
        None => all.push(Lent { id: id.to_owned(), optional }),
    }
}

/// An address with `xxxxx` in place of user and password, as BuildKit has it.
pub(crate) fn redacted(url: &str) -> String {
    const MASK: &str = "xxxxx";
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let Some((user, host)) = authority.rsplit_once('@') else { return url.to_owned() };
    let shown = match user.split_once(':') {
        Some(("", _)) => format!(":{MASK}"),
        Some(_) => format!("{MASK}:{MASK}"),
        None if user.is_empty() => String::new(),
        None => MASK.to_owned(),
    };
    format!("{scheme}://{shown}@{host}{path}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(name: &str) -> ImageSource {
        let reference = name.parse().expect("a name");
        ImageSource { reference, platform: None, digest: None, local: false, blob: false }
    }

    #[test]
    fn an_image_that_is_known_by_its_tag_is_not_told_by_its_digest_too() {
        let digest = format!("sha256:{}", "1".repeat(64));
        let mut capture = Capture::default();
        for name in [&format!("busybox:latest@{digest}"), "busybox", &format!("alpine@{digest}")] {
            capture.add_image(image(name));
        }
        capture.settle();
        let names: Vec<_> = capture.sources.images.iter().map(|i| i.reference.to_string()).collect();
        assert_eq!(names.len(), 2, "{names:?}");
        assert!(names.iter().any(|name| name.contains("alpine@")));
    }

    #[test]
    fn what_is_needed_once_is_needed() {
        let mut all = Vec::new();
        lend(&mut all, "a", true);
        lend(&mut all, "a", false);
        lend(&mut all, "a", true);
        assert_eq!(all, [Lent { id: "a".to_owned(), optional: false }]);
    }

    #[test]
    fn addresses_are_told_without_users_and_passwords() {
        for (url, shown) in [
            ("https://me:secret@h.example/a.git#main", "https://xxxxx:xxxxx@h.example/a.git#main"),
            ("https://token@h.example/a", "https://xxxxx@h.example/a"),
            ("https://h.example/a@b", "https://h.example/a@b"),
            ("git@h.example:a.git", "git@h.example:a.git"),
        ] {
            assert_eq!(redacted(url), shown, "{url}");
        }
    }

    #[test]
    fn a_step_tells_what_it_is_lent_and_whether_it_has_a_network() {
        let mut capture = Capture::default();
        let secret = pb::SecretOpt { id: "tok".into(), optional: true, ..Default::default() };
        let mounts = vec![
            pb::Mount {
                mount_type: pb::MountType::Secret.into(),
                secret_opt: Some(secret),
                ..Default::default()
            },
            pb::Mount {
                mount_type: pb::MountType::Ssh.into(),
                ssh_opt: Some(pb::SshOpt::default()),
                ..Default::default()
            },
        ];
        let none = pb::ExecOp { mounts, network: pb::NetMode::None.into(), ..Default::default() };
        capture.add_exec(&none);
        assert!(!capture.network);
        assert_eq!((capture.secrets[0].id.as_str(), capture.ssh[0].id.as_str()), ("tok", "default"));
        capture.add_exec(&pb::ExecOp::default());
        assert!(capture.network);
    }
}
