//! What `ADD` brings from elsewhere: downloads and Git repositories.

use std::collections::BTreeMap;

use lapstrake_llb::pb;

use crate::ast::{Copy, Word};
use crate::diagnostic::Diagnostic;
use crate::git;
use crate::lower::draft::{DraftOutput, named, operation};
use crate::lower::name::shown;
use crate::lower::path;
use crate::lower::stage::{At, Current, Lower, Lowering};

/// True for what is downloaded as a file.
pub(crate) fn is_http(text: &str) -> bool {
    (text.starts_with("http://") || text.starts_with("https://")) && !is_git(text)
}

/// True for what is cloned.
pub(super) fn is_git(text: &str) -> bool {
    git::parse(text).is_some()
}

/// The name of a downloaded file: the last part of the address' path.
pub(crate) fn http_name(url: &str) -> String {
    let path = url.split_once("://").map_or(url, |(_, rest)| rest);
    let path = path.split(['?', '#']).next().unwrap_or("");
    let last = path.split_once('/').map_or("", |(_, path)| path::base(path));
    let last = git::decoded(last);
    if last.is_empty() { "__unnamed__".to_owned() } else { last }
}

/// Whether a checksum and its sources go together; the error is a finding.
pub(super) fn check_checksum(checksum: Option<&Word>, sources: &[Word]) -> Lower<()> {
    let Some(checksum) = checksum else { return Ok(()) };
    let error = |message: &str| Diagnostic::error("invalid-checksum", checksum.span, message);
    match sources {
        [source] if is_http(&source.text) => match checksum.text.parse::<lapstrake_oci::Digest>() {
            Ok(_) => Ok(()),
            Err(why) => {
                Err(Box::new(error(&why.to_string()).help("write sha256: and 64 hexadecimal digits")))
            }
        },
        [source] if is_git(&source.text) => Ok(()),
        [_] => Err(Box::new(
            error("checksum requires HTTP(S) or Git sources")
                .note("files of the context are known by their contents anyway"),
        )),
        _ => Err(Box::new(
            error("checksum can't be specified for multiple sources")
                .help("write an ADD of its own for each source"),
        )),
    }
}

impl Lowering<'_> {
    /// Refuses what `COPY` can't take and what the engine can't do.
    pub(super) fn check_source(&self, word: &Word, add: bool) -> Lower<()> {
        let capabilities = &self.plan.options.capabilities;
        let error = |code, message: &str| Diagnostic::error(code, word.span, message);
        let use_add = "use ADD, which fetches it";
        match git::parse(&word.text) {
            Some(_) if !add => {
                Err(Box::new(error("git-in-copy", "source can't be a git ref for COPY").help(use_add)))
            }
            Some(Err(why)) => Err(Box::new(error("invalid-git-url", &why))),
            Some(Ok(_)) if !capabilities.git_sources => {
                Err(Box::new(Diagnostic::not_yet(word.span, "ADD from a git repository")))
            }
            Some(Ok(_)) => Ok(()),
            None if !is_http(&word.text) => Ok(()),
            None if !add => {
                Err(Box::new(error("url-in-copy", "source can't be a URL for COPY").help(use_add)))
            }
            None if !capabilities.http_sources => {
                let finding = Diagnostic::not_yet(word.span, "ADD from a URL");
                Err(Box::new(finding.help("fetch it in a RUN step")))
            }
            None => Ok(()),
        }
    }

    /// The operation that downloads a file.
    pub(super) fn http_source(
        &mut self,
        current: &Current,
        word: &Word,
        checksum: Option<&Word>,
        at: &At<'_>,
    ) -> DraftOutput {
        let mut attrs = BTreeMap::new();
        if let Some(checksum) = checksum {
            attrs.insert("http.checksum".to_owned(), checksum.text.clone());
        }
        attrs.insert("http.filename".to_owned(), http_name(&word.text));
        self.remote(current, word.text.clone(), attrs, at)
    }

    /// The operation that clones a repository.
    pub(super) fn git_source(
        &mut self,
        current: &Current,
        copy: &Copy,
        word: &Word,
        checksum: Option<&Word>,
        at: &At<'_>,
    ) -> Lower<DraftOutput> {
        let error = |code, message: String| Box::new(Diagnostic::error(code, word.span, message));
        let found = match git::parse(&word.text) {
            Some(Ok(found)) => found,
            Some(Err(why)) => return Err(error("invalid-git-url", why)),
            None => return Err(error("invalid-git-url", "this is no repository".to_owned())),
        };
        let keep = match (copy.keep_git_dir, found.keep_git_dir) {
            (Some(flag), Some(query)) if flag != query => {
                let message = "inconsistent keep-git-dir configuration".to_owned();
                return Err(Box::new(
                    error("invalid-git-url", message)
                        .note(format!("--keep-git-dir says {flag}, the address says {query}")),
                ));
            }
            (flag, query) => query.or(flag).unwrap_or(false),
        };
        let checksum = match (checksum, &found.checksum) {
            (Some(flag), Some(query)) if flag.text != *query => {
                let message = format!("checksum mismatch {:?} != {query:?}", flag.text);
                return Err(Box::new(
                    error("invalid-checksum", message).also(flag.span, "the flag names another commit"),
                ));
            }
            (flag, query) => query.as_deref().or(flag.map(|word| word.text.as_str())),
        };
        let (identifier, attrs) = found.source(keep, checksum);
        Ok(self.remote(current, identifier, attrs, at))
    }

    fn remote(
        &mut self,
        current: &Current,
        identifier: String,
        attrs: BTreeMap<String, String>,
        at: &At<'_>,
    ) -> DraftOutput {
        let source = pb::SourceOp { identifier, attrs };
        let op = operation(pb::op::Op::Source(source), None);
        let shown = shown(at.text(), &self.lexer(), &current.state.env);
        // It bears the name of the step that it belongs to.
        let mut counter = current.counter.clone();
        let name = counter.next(&shown, &current.state.platform, Some(&current.state.env), at.step.trigger);
        self.graph.add(op, Vec::new(), named(&name), at.lines())
    }
}
