//! What a build asks of the frontend and of its steps, wherever that was written: limits, hosts, options by BuildKit's
//! names, named contexts.

use std::collections::BTreeMap;
use std::path::PathBuf;

use lapstrake_dockerfile::{ExtraHost, Options, Ulimit};
use lapstrake_handoff::{
    Attestations, ContextFrom, GitRef, GitSource, HttpSource, ProvenanceMode, Reason, Request, Source,
};
use lapstrake_llb::Resources;

use crate::attest;
use crate::error::BuildError;
use crate::named::{self, Named};
use crate::options::{BuildOptions, Context};

/// What steps find around them beside their files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct StepOptions {
    /// Further lines of `/etc/hosts`.
    pub(crate) hosts: Vec<ExtraHost>,
    /// Limits of processes, each once.
    pub(crate) ulimits: Vec<Ulimit>,
    /// Size of `/dev/shm`.
    pub(crate) shm_bytes: Option<u64>,
    /// Host name.
    pub(crate) hostname: Option<String>,
    /// The control group above those of steps.
    pub(crate) cgroup_parent: Option<String>,
    /// What a step may take of the machine.
    pub(crate) resources: Resources,
}

impl StepOptions {
    /// Sets a limit, in place of one of the same name.
    pub(crate) fn limit(&mut self, limit: Ulimit) {
        self.ulimits.retain(|other| other.name != limit.name);
        self.ulimits.push(limit);
    }

    /// As attributes of BuildKit's frontends.
    pub(crate) fn attributes(&self) -> BTreeMap<String, String> {
        let hosts: Vec<_> = self.hosts.iter().map(|of| format!("{}={}", of.host, of.address)).collect();
        let limits: Vec<_> =
            self.ulimits.iter().map(|of| format!("{}={}:{}", of.name, of.soft, of.hard)).collect();
        let all = [
            ("add-hosts", Some(hosts.join(",")).filter(|text| !text.is_empty())),
            ("ulimit", Some(limits.join(",")).filter(|text| !text.is_empty())),
            ("shm-size", self.shm_bytes.map(|bytes| bytes.to_string())),
            ("hostname", self.hostname.clone()),
            ("cgroup-parent", self.cgroup_parent.clone()),
        ];
        let all = all.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
        let limits = self.resources.iter().map(|(name, value)| (name.to_owned(), value));
        all.chain(limits).collect()
    }

    /// Puts them into the frontend's options.
    pub(crate) fn apply(&self, options: &mut Options) {
        options.extra_hosts.clone_from(&self.hosts);
        options.ulimits.clone_from(&self.ulimits);
        options.shm_size_bytes = self.shm_bytes.and_then(|bytes| i64::try_from(bytes).ok()).unwrap_or(0);
        options.hostname = self.hostname.clone().unwrap_or_default();
        options.cgroup_parent = self.cgroup_parent.clone().unwrap_or_default();
        options.resources.clone_from(&self.resources);
    }
}

/// Options of the frontend by BuildKit's names, each of which it knows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Attributes(BTreeMap<String, String>);

impl Attributes {
    /// Adds one; `place` is where it was written.
    ///
    /// Errors: the frontend does not know it, or its value is none; an option that makes something that is not made here.
    pub(crate) fn add(&mut self, place: &str, name: &str, value: &str) -> Result<(), BuildError> {
        let wrong = |why: String| BuildError::new(Reason::DockerfileInvalid, format!("{place}: {why}"));
        Options::default().set(name, value).map_err(|error| wrong(error.to_string()))?;
        if name == "multi-platform" {
            return Err(wrong(
                "multi-platform: say it by the build argument BUILDKIT_MULTI_PLATFORM".to_owned(),
            ));
        }
        self.0.insert(name.to_owned(), value.to_owned());
        Ok(())
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&String, &String)> {
        self.0.iter()
    }

    /// Puts them into the frontend's options.
    pub(crate) fn apply(&self, options: &mut Options) {
        for (name, value) in &self.0 {
            options.set(name, value).ok(); // looked at when it was added
        }
    }
}

/// Where the context of a request comes from.
pub(crate) fn context(source: &Source) -> Context {
    match source {
        Source::Git(git) => of_git(git),
        Source::Http(http) => of_http(http),
        Source::Inline(files) => {
            let file = |file: &lapstrake_handoff::InlineFile| {
                let executable = file.mode.is_some_and(|mode| mode & 0o111 != 0);
                let content = file.content.clone().into_bytes();
                (file.path.clone(), lapstrake_source::InlineFile { content, executable })
            };
            Context::Inline(files.iter().map(file).collect())
        }
    }
}

fn of_git(git: &GitSource) -> Context {
    Context::Git {
        url: git.url.clone(),
        reference: match &git.reference {
            None => lapstrake_source::GitRef::Default,
            Some(GitRef::Branch(name)) => lapstrake_source::GitRef::Branch(name.clone()),
            Some(GitRef::Tag(name)) => lapstrake_source::GitRef::Tag(name.clone()),
            Some(GitRef::Commit(id)) => lapstrake_source::GitRef::Commit(id.clone()),
        },
        commit: git.commit.clone(),
        path: git.path.clone(),
        submodules: git.submodules,
        keep_git_dir: false,
    }
}

fn of_http(http: &HttpSource) -> Context {
    Context::Http { url: http.url.clone(), sha256: http.sha256.clone(), path: http.path.clone() }
}

/// Folders with the credentials of named contexts.
pub(crate) fn credentials(request: &Request) -> BTreeMap<String, PathBuf> {
    let folder = |context: &lapstrake_handoff::ContextInput| {
        let folder = match &context.from {
            ContextFrom::Git(git) => git.credentials.as_ref()?,
            ContextFrom::Http(http) => http.credentials.as_ref()?,
            ContextFrom::Image(_) => return None,
        };
        Some((named::canonical(&context.name).ok()?, PathBuf::from(folder)))
    };
    request.contexts.iter().filter_map(folder).collect()
}

/// Puts into the options of a build what a request asks for here.
pub(crate) fn of_request(request: &Request, options: &mut BuildOptions) -> Result<(), BuildError> {
    options.no_cache_stages.clone_from(&request.no_cache_stages);
    for (name, value) in &request.frontend_options {
        options.frontend.add("spec.dockerfile.options", name, value)?;
    }
    let steps = &request.steps;
    let host =
        |host: &lapstrake_handoff::Host| ExtraHost { host: host.name.to_ascii_lowercase(), address: host.ip };
    options.steps.hosts = steps.hosts.iter().map(host).collect();
    for limit in &steps.ulimits {
        let limit = Ulimit::new(&limit.name, limit.soft, limit.hard).map_err(|why| {
            BuildError::new(Reason::DockerfileInvalid, format!("spec.steps.ulimits[{}]: {why}", limit.name))
        })?;
        options.steps.limit(limit);
    }
    options.attested = attested(&request.attestations)?;
    options.steps.shm_bytes = steps.shm_bytes;
    options.steps.hostname.clone_from(&steps.hostname);
    for context in &request.contexts {
        let named = match &context.from {
            ContextFrom::Image(image) => image_context(&context.name, image)?,
            ContextFrom::Git(git) => Named::Files(of_git(git)),
            ContextFrom::Http(http) => Named::Files(of_http(http)),
        };
        options.named.insert(context_name(&context.name)?, named);
    }
    Ok(())
}

/// What is to be attested.
pub(crate) fn attested(asked: &Attestations) -> Result<attest::Asked, BuildError> {
    let mode = |mode| match mode {
        ProvenanceMode::Min => "mode=min",
        ProvenanceMode::Max => "mode=max",
    };
    let provenance = asked.provenance.as_ref().map(|of| mode(of.mode).to_owned());
    let generator = |of: &lapstrake_handoff::Sbom| {
        let named = of.generator.as_deref().filter(|generator| !generator.is_empty());
        named.map(|generator| format!("generator={generator}")).unwrap_or_default()
    };
    let all = [
        ("attest:provenance".to_owned(), provenance),
        ("attest:sbom".to_owned(), asked.sbom.as_ref().map(generator)),
    ];
    let all: BTreeMap<_, _> = all.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
    attest::Asked::of(&all)
        .map_err(|why| BuildError::new(Reason::RequestInvalid, format!("spec.output.attestations: {why}")))
}

/// A context's name, in the form in which names are compared.
pub(crate) fn context_name(name: &str) -> Result<String, BuildError> {
    named::canonical(name).map_err(|why| {
        BuildError::new(Reason::DockerfileInvalid, format!("spec.contexts[{name}].name: {why}"))
    })
}

/// A context that is an image.
pub(crate) fn image_context(name: &str, image: &str) -> Result<Named, BuildError> {
    let wrong = |error: lapstrake_oci::ReferenceError| {
        BuildError::new(Reason::ImageNotFound, format!("spec.contexts[{name}].image: {error}"))
    };
    Ok(Named::Image(image.parse().map_err(wrong)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(json: &str) -> Request {
        let mut whole = serde_json::to_value(Request::empty()).expect("plain");
        let more: serde_json::Value = serde_json::from_str(json).expect("JSON");
        for (key, value) in more.as_object().expect("an object") {
            whole[key] = value.clone();
        }
        serde_json::from_value(whole).expect("a request")
    }

    fn options(json: &str) -> Result<BuildOptions, BuildError> {
        let mut options = BuildOptions::new(Context::Inline(BTreeMap::new()));
        of_request(&request(json), &mut options).map(|()| options)
    }

    #[test]
    fn a_request_reaches_the_frontend() {
        let options = options(
            r#"{"noCacheStages":["test"],"frontendOptions":{"image-resolve-mode":"pull","cgroup-parent":"a","memory":"4096"},
            "steps":{"hosts":[{"name":"DB","ip":"10.0.0.7"}],"ulimits":[{"name":"nofile","soft":1,"hard":2}],
            "shmBytes":4096,"hostname":"box"},"attestations":{"provenance":{},"sbom":{"generator":"h.example/scanner:1"}},
            "contexts":[{"name":"a","from":{"image":"registry.example/a:1"}},
            {"name":"Files","from":{"git":{"url":"https://git.example/a.git","reference":{"tag":"v1"}}}}]}"#,
        )
        .expect("valid");
        let mut frontend = Options::default();
        options.steps.apply(&mut frontend);
        options.frontend.apply(&mut frontend);
        assert_eq!((frontend.extra_hosts[0].host.as_str(), frontend.ulimits[0].hard), ("db", 2));
        assert_eq!((frontend.shm_size_bytes, frontend.hostname.as_str()), (4096, "box"));
        assert_eq!(frontend.resolve_mode, lapstrake_dockerfile::ResolveMode::Pull);
        assert_eq!(frontend.cgroup_parent, "a");
        assert_eq!(frontend.resources.memory, Some(4096));
        assert_eq!(options.no_cache_stages, ["test"]);
        assert_eq!(options.attested.provenance.map(|asked| asked.mode), Some(attest::Mode::Min));
        assert!(options.attested.sbom.is_some_and(|asked| asked.generator.tag() == Some("1")));
        assert!(matches!(&options.named["a"], Named::Image(image) if image.tag() == Some("1")));
        assert!(matches!(&options.named["files"], Named::Files(Context::Git { .. })));
    }

    #[test]
    fn what_the_frontend_does_not_know_names_the_field() {
        for (json, why) in [
            (
                r#"{"frontendOptions":{"image-resolve-mod":"pull"}}"#,
                "spec.dockerfile.options: there is no frontend option",
            ),
            (r#"{"frontendOptions":{"image-resolve-mode":"x"}}"#, "default, pull and local"),
            (r#"{"frontendOptions":{"multi-platform":"true"}}"#, "BUILDKIT_MULTI_PLATFORM"),
            (r#"{"steps":{"ulimits":[{"name":"tea","soft":1,"hard":2}]}}"#, "spec.steps.ulimits[tea]"),
            (
                r#"{"attestations":{"sbom":{"generator":"Ä"}}}"#,
                "spec.output.attestations: failed to parse sbom",
            ),
            (r#"{"contexts":[{"name":"a","from":{"image":"Ä"}}]}"#, "spec.contexts[a].image"),
        ] {
            let error = options(json).expect_err(json).to_string();
            assert!(error.contains(why), "{json}: {error}");
        }
    }

    #[test]
    fn a_context_is_reached_by_its_own_credentials_alone() {
        let request = request(
            r#"{"contexts":[{"name":"a","from":{"git":{"url":"https://git.example/a.git","credentials":"/run/a"}}},
            {"name":"b","from":{"http":{"url":"https://files.example/b"}}}]}"#,
        );
        let reach = crate::reach::Reach {
            credentials: Some("/run/source".into()),
            of_contexts: credentials(&request),
            ..crate::reach::Reach::default()
        };
        assert_eq!(reach.for_context("a").credentials, Some("/run/a".into()));
        assert_eq!(reach.for_context("b").credentials, None);
    }
}
