//! What is attested of the results of a build: what frontends say, what scanners find, how it was made.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use lapstrake_api::{frontend, pb};
use lapstrake_oci::Descriptor;
use tonic::Status;

use super::answer::{Answer, Of, Ref};
use super::job::Job;
use super::values::refused;
use crate::attest::{
    self, Asked, Attestation, Capture, Content, Made, Provenance, ProvenanceAsked, SbomAsked, Subject,
    SubjectOf,
};
use crate::build::Solved;
use crate::engine::native_platform;
use crate::error::BuildError;

/// What stands before the kinds of provenance, which only we say.
const PROVENANCE: &str = "https://slsa.dev/provenance/";

/// By this a scanner's statements say which of them is about the image itself.
const SBOM_CORE: &str = "sbom-core";

/// What a frontend says of a result.
#[derive(Clone)]
pub(crate) struct Told {
    /// A directory of statements, not one predicate.
    pub(crate) bundle: bool,
    pub(crate) metadata: BTreeMap<String, Vec<u8>>,
    /// The file system that it stands in.
    pub(crate) result: Option<Arc<Ref>>,
    pub(crate) path: String,
    pub(crate) predicate_type: String,
    pub(crate) subjects: Vec<SubjectOf>,
}

impl Told {
    /// From a message; `result` is what its ref was found to be.
    pub(crate) fn of(message: &frontend::Attestation, result: Option<Arc<Ref>>) -> Result<Self, Status> {
        let subject = |subject: &frontend::InTotoSubject| {
            let name = if subject.name.is_empty() { "_" } else { &subject.name };
            if subject.kind == i32::from(frontend::InTotoSubjectKind::Self_) {
                return SubjectOf::Itself((name != "_").then(|| name.to_owned()));
            }
            let parts = subject.digest.iter().filter_map(|digest| digest.split_once(':'));
            let digest = parts.map(|(kind, hex)| (kind.to_owned(), hex.to_owned())).collect();
            SubjectOf::Other(Subject { name: name.to_owned(), digest })
        };
        let bundle = match frontend::AttestationKind::try_from(message.kind) {
            Ok(frontend::AttestationKind::Bundle) => true,
            Ok(frontend::AttestationKind::InToto) => false,
            Err(_) => {
                return Err(Status::invalid_argument(format!("unknown attestation kind {}", message.kind)));
            }
        };
        Ok(Self {
            bundle,
            metadata: message.metadata.clone().into_iter().collect(),
            result,
            path: message.path.clone(),
            predicate_type: message.in_toto_predicate_type.clone(),
            subjects: message.in_toto_subjects.iter().map(subject).collect(),
        })
    }

    /// As a message.
    pub(crate) fn to_message(&self, job: &Job) -> frontend::Attestation {
        let subject = |subject: &SubjectOf| match subject {
            SubjectOf::Itself(name) => frontend::InTotoSubject {
                kind: frontend::InTotoSubjectKind::Self_.into(),
                name: name.clone().unwrap_or_default(),
                digest: Vec::new(),
            },
            SubjectOf::Other(other) => frontend::InTotoSubject {
                kind: frontend::InTotoSubjectKind::Raw.into(),
                name: other.name.clone(),
                digest: other.digest.iter().map(|(kind, hex)| format!("{kind}:{hex}")).collect(),
            },
        };
        let kind = match self.bundle {
            true => frontend::AttestationKind::Bundle,
            false => frontend::AttestationKind::InToto,
        };
        frontend::Attestation {
            kind: kind.into(),
            metadata: self.metadata.clone().into_iter().collect(),
            r#ref: self.result.as_ref().map(|result| {
                job.keep(result);
                frontend::Ref { id: result.id.clone(), def: Some(result.definition.clone()) }
            }),
            path: self.path.clone(),
            in_toto_predicate_type: self.predicate_type.clone(),
            in_toto_subjects: self.subjects.iter().map(subject).collect(),
        }
    }

    /// What it says, read.
    async fn read(&self, job: &Arc<Job>) -> Result<Vec<Attestation>, BuildError> {
        let word = if self.bundle { "bundle" } else { "set" };
        let ours = || refused(format!("frontend may not {word} provenance attestations"));
        if self.predicate_type.starts_with(PROVENANCE) {
            return Err(ours());
        }
        if self.path.is_empty() && !self.bundle {
            return Err(refused("attestation does not have set path"));
        }
        let none = if self.bundle {
            "no ref provided for attestation bundle"
        } else {
            "attestation does not have available content"
        };
        let result = self.result.as_ref().ok_or_else(|| refused(none))?;
        let tree = result.tree(job).await?.clone();
        let snapshot = job.engine.snapshot_of(&tree, &job.cancel).await?;
        let root = job.engine.mount(snapshot)?;
        let inline_only = self.metadata.get("inline-only").is_some_and(|value| value == b"true");
        let (path, bundle) = (self.path.clone(), self.bundle);
        let read = move || match bundle {
            true => attest::bundle(&root, &path),
            false => attest::predicate(&root, &path).map(|predicate| vec![(path, None, predicate)]),
        };
        let read = tokio::task::spawn_blocking(read).await.map_err(BuildError::internal)?;
        let mut all = Vec::new();
        for (path, statement, predicate) in read.map_err(refused)? {
            let (predicate_type, subjects) = match statement {
                Some((kind, subjects)) => (kind, subjects.into_iter().map(SubjectOf::Other).collect()),
                None => (self.predicate_type.clone(), self.subjects.clone()),
            };
            if predicate_type.starts_with(PROVENANCE) {
                return Err(ours());
            }
            if bundle && !self.predicate_type.is_empty() && predicate_type != self.predicate_type {
                return Err(refused(format!(
                    "bundle entry {predicate_type} does not match required predicate type {}",
                    self.predicate_type
                )));
            }
            let content = Content::Json(Arc::new(predicate));
            let stem = path.rsplit('/').next().and_then(|name| name.split('.').next());
            let of_image = self.metadata.get(SBOM_CORE).map(Vec::as_slice);
            let core = of_image.is_some() && stem.map(str::as_bytes) == of_image;
            all.push(Attestation { path, predicate_type, subjects, inline_only, core, content });
        }
        // What a scanner found in the image itself comes before what it found elsewhere.
        all.sort_by_key(|one| !one.core);
        Ok(all)
    }
}

/// Has a scanner write what is in a result, once that is needed. `extras` are further file systems, `id` is the platform.
pub(crate) async fn scan(
    job: &Job,
    asked: &SbomAsked,
    id: &str,
    of: &pb::Definition,
    extras: &BTreeMap<String, pb::Definition>,
    ignore_cache: bool,
) -> Result<Told, BuildError> {
    let definition = attest::scan(&job.engine, asked, id, of, extras, ignore_cache, &job.progress).await?;
    let said = [("reason", "sbom"), (SBOM_CORE, attest::CORE)];
    Ok(Told {
        bundle: true,
        metadata: said.iter().map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec())).collect(),
        result: Some(Ref::new(definition, &job.engine.policies())?),
        path: String::new(),
        predicate_type: attest::SPDX.to_owned(),
        subjects: Vec::new(),
    })
}

/// The answer with what scanners find in its results, where the frontend has not asked them.
pub(crate) async fn scanned(
    job: &Job,
    answer: &Answer,
    all: &[Of],
    asked: &Asked,
    ignore_cache: bool,
) -> Result<Answer, BuildError> {
    let mut answer = answer.clone();
    let mut told = answer.attestations.values().flatten();
    let Some(asked) = asked.sbom.as_ref().filter(|_| !told.any(|told| told.predicate_type == attest::SPDX))
    else {
        return Ok(answer);
    };
    for of in all {
        let Some(result) = &of.result else { continue };
        let id = of.key.clone().unwrap_or_else(|| of.platform.to_string());
        let told = scan(job, asked, &id, &result.definition, &BTreeMap::new(), ignore_cache).await?;
        answer.attestations.entry(id).or_default().push(told);
    }
    Ok(answer)
}

/// What is known when all results of a build are there.
pub(crate) struct Known {
    captures: Vec<Option<Capture>>,
    made: Made,
}

impl Known {
    /// Of an answer's results. Called before anything else is made in the build.
    pub(crate) async fn of(job: &Job, answer: &Answer, all: &[Of]) -> Self {
        let made = Made {
            began: Some(job.began),
            invocation: super::invocation(),
            builder_platform: native_platform().to_string(),
            dockerfile_version: attest::DOCKERFILE_VERSION.to_owned(),
            environment: job.environment.clone(),
            finished: Arc::new(OnceLock::new()),
        };
        Self { captures: super::trail::captures(job, answer, all).await, made }
    }

    /// The provenance of a result, by its number.
    fn provenance(
        &self,
        number: usize,
        of: &Of,
        solved: &Solved,
        asked: &ProvenanceAsked,
    ) -> Result<Option<Arc<Provenance>>, BuildError> {
        let Some(Some(capture)) = self.captures.get(number) else { return Ok(None) };
        let definition = of.result.as_ref().map(|result| &result.definition);
        let base = solved.base.as_ref().map(|base| base.manifest.layers.clone()).unwrap_or_default();
        let made = Provenance::new(capture.clone(), asked.clone(), self.made.clone(), definition, base)
            .map_err(refused)?;
        Ok(Some(Arc::new(made)))
    }
}

/// Attaches to each result what is attested of it.
pub(crate) async fn attach(
    job: &Arc<Job>,
    answer: &Answer,
    all: &[Of],
    known: &Known,
    asked: &Asked,
    solved: &mut [Solved],
) -> Result<(), BuildError> {
    for (number, (of, solved)) in all.iter().zip(solved).enumerate() {
        let id = of.key.clone().unwrap_or_else(|| of.platform.to_string());
        for told in answer.attestations.get(&id).into_iter().flatten() {
            solved.attestations.extend(told.read(job).await?);
        }
        let Some(asked) = &asked.provenance else { continue };
        let Some(provenance) = known.provenance(number, of, solved, asked)? else { continue };
        solved.attestations.push(Attestation::provenance(asked, provenance));
    }
    Ok(())
}

/// What a record of the build keeps: how each result was made, by its key.
#[derive(Default)]
pub(crate) struct Outcome {
    /// Of each result the kind and the predicate.
    pub(crate) provenance: Vec<(Option<String>, String, Vec<u8>)>,
    /// What exporters made, by their numbers.
    pub(crate) results: BTreeMap<i64, Descriptor>,
}

impl Outcome {
    /// The provenance that records keep: all of it, whatever was asked for. `layers` are those of each result.
    pub(crate) fn record(
        &mut self,
        all: &[Of],
        known: &Known,
        asked: &Asked,
        solved: &[Solved],
        layers: &[Vec<Descriptor>],
    ) {
        let builder_id = asked.provenance.as_ref().map(|asked| asked.builder_id.clone()).unwrap_or_default();
        let asked = ProvenanceAsked { builder_id, ..ProvenanceAsked::default() };
        for (number, (of, solved)) in all.iter().zip(solved).enumerate() {
            let Ok(Some(provenance)) = known.provenance(number, of, solved, &asked) else { continue };
            let layers = layers.get(number).map(Vec::as_slice).unwrap_or_default();
            if let Ok(bytes) = lapstrake_oci::to_json(&provenance.predicate(layers), true) {
                self.provenance.push((of.key.clone(), provenance.predicate_type().to_owned(), bytes));
            }
        }
    }
}
