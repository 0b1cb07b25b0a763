//! BuildKit's rules that need to know what came before: variables, the base image, earlier instructions.

use lapstrake_oci::{ImageConfig, Platform};

use crate::ast::{Command, Kind, Pair, Word};
use crate::diagnostic::Edit;
use crate::lower::clean_path;
use crate::lower::env::Env;
use crate::lower::stage::{At, Current, Lowering};
use crate::plan::Stage;
use crate::source::Span;
use crate::suggest;

/// Arguments that steer the builder and never reach the environment.
pub(super) const NOT_ENV: [&str; 2] = ["BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"];
/// A secret is looked for in these words of a name …
const SECRET: [&str; 10] =
    ["apikey", "auth", "credential", "credentials", "key", "password", "pword", "passwd", "secret", "token"];
/// … unless one of these is in it too.
const NO_SECRET: [&str; 3] = ["public", "file", "version"];

/// A variable that was asked for and is not set.
pub(crate) struct Unset {
    name: String,
    span: Span,
    near: Option<String>,
}

/// Among more variables none is looked for that may be meant.
const ENV_SEARCHED_MAX: usize = 1000;

impl Unset {
    pub(super) fn new(name: String, span: Span, env: &Env) -> Self {
        if env.iter().nth(ENV_SEARCHED_MAX).is_some() {
            return Self { name, span, near: None };
        }
        let near = suggest::within_two(&name, env.iter().map(|(name, _)| name)).map(str::to_owned);
        Self { name, span, near }
    }
}

/// Whether a name looks like that of a secret: one of its words is telling.
pub(super) fn looks_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let has = |list: &[&str]| name.split('_').any(|word| list.contains(&word));
    has(&SECRET) && !has(&NO_SECRET)
}

impl Lowering<'_> {
    /// Notes a finding about a part of an instruction.
    pub(super) fn lint_at(
        &mut self,
        at: &At<'_>,
        rule: &'static str,
        span: Span,
        message: impl Into<String>,
    ) {
        let (lines, span) = (at.instruction.lines, at.place.unwrap_or(span));
        self.lints.push(&at.control, rule, lines, span, message);
    }

    fn lint(&mut self, at: &At<'_>, rule: &'static str, message: impl Into<String>) {
        self.lint_at(at, rule, at.instruction.source.span, message);
    }

    /// Looks at an instruction before it is lowered.
    pub(super) fn look_at(&mut self, current: &mut Current, at: &At<'_>) {
        match &at.instruction.kind {
            Kind::Env(pairs) => {
                self.legacy(at, pairs);
                for pair in pairs {
                    self.secret(at, "ENV", &pair.key);
                }
            }
            Kind::Label(pairs) => self.legacy(at, pairs),
            Kind::Arg(list) => list.iter().for_each(|arg| self.secret(at, "ARG", &arg.name)),
            Kind::Cmd(command) => {
                self.once(current, at, "CMD");
                self.exec_form(current, at, command);
            }
            Kind::Entrypoint(command) => {
                self.once(current, at, "ENTRYPOINT");
                self.exec_form(current, at, command);
            }
            Kind::Healthcheck(_) => self.once(current, at, "HEALTHCHECK"),
            _ => {}
        }
    }

    fn legacy(&mut self, at: &At<'_>, pairs: &[Pair]) {
        for pair in pairs.iter().filter(|pair| pair.legacy) {
            let keyword = &at.instruction.keyword.text;
            let message = format!(
                "\"{keyword} key=value\" should be used instead of legacy \"{keyword} key value\" format"
            );
            let (span, before) = (pair.key.span.to(pair.value.span), self.lints.0.len());
            self.lint_at(at, "LegacyKeyValueFormat", span, message);
            let text = self.with_equals(pair).filter(|_| at.place.is_none());
            if let (Some(found), Some(text)) = (self.lints.0.get_mut(before), text) {
                found.fix = vec![Edit { span, text }];
            }
        }
    }

    /// A pair in the new form, where it means the same for sure.
    fn with_equals(&self, pair: &Pair) -> Option<String> {
        let (key, value) = (&pair.key.text, &pair.value.text);
        let source = &self.plan.source;
        let as_written = source.slice(pair.value.span) == value && source.slice(pair.key.span) == key;
        let plain = |text: &str| !text.contains(['"', '\'', self.plan.escape, '\n', '=']) && text.is_ascii();
        if !as_written || !plain(key) || !plain(value) {
            return None;
        }
        Some(match value.contains(char::is_whitespace) {
            true => format!("{key}=\"{value}\""),
            false => format!("{key}={value}"),
        })
    }

    fn secret(&mut self, at: &At<'_>, instruction: &str, name: &Word) {
        if looks_secret(&name.text) {
            let message = format!(
                "Do not use ARG or ENV instructions for sensitive data ({instruction} {:?})",
                name.text
            );
            self.lint_at(at, "SecretsUsedInArgOrEnv", name.span, message);
        }
    }

    /// The one before is what is told, since it is what has no effect.
    fn once(&mut self, current: &mut Current, at: &At<'_>, kind: &'static str) {
        let here = (at.instruction.lines, at.place.unwrap_or(at.instruction.source.span));
        if let Some((lines, span)) = current.state.once.insert(kind, here) {
            let message = format!(
                "Multiple {} instructions should not be used in the same stage because only the last one will be used",
                at.instruction.keyword.text
            );
            self.lints.push(&at.control, "MultipleInstructionsDisallowed", lines, span, message);
        }
    }

    fn exec_form(&mut self, current: &Current, at: &At<'_>, command: &Command) {
        if !command.exec && current.state.image.config.shell.is_empty() {
            let message = format!(
                "JSON arguments recommended for {} to prevent unintended behavior related to OS signals",
                at.instruction.keyword.text
            );
            self.lint(at, "JSONArgsRecommended", message);
        }
    }

    /// Tells of variables that the instruction asked for and that nobody set or declared.
    pub(super) fn report_unset(&mut self, current: &Current, at: &At<'_>) {
        for Unset { name, span, near } in std::mem::take(&mut self.unset) {
            if self.lints.is_full() {
                return;
            }
            let declared = current.state.args.iter().any(|(known, _)| *known == name);
            // An image that is not known may set it; what is nearly another name is a slip all the same.
            let may_be = current.state.open && near.is_none();
            if declared || may_be || NOT_ENV.contains(&name.as_str()) {
                continue;
            }
            let mut message = format!("Usage of undefined variable '${name}'");
            if let Some(near) = &near {
                message.push_str(&format!(" (did you mean ${near}?)"));
            }
            let span = self.use_of(&name, span);
            let before = self.lints.0.len();
            self.lint_at(at, "UndefinedVar", span, message);
            if let Some(found) = self.lints.0.get_mut(before).filter(|_| near.is_some()) {
                found.help = None;
            }
        }
    }

    /// Where in a word a variable is asked for; the word where that can't be seen.
    fn use_of(&self, name: &str, word: Span) -> Span {
        let text = self.plan.source.slice(word);
        let forms = [format!("${{{name}}}"), format!("${{{name}"), format!("${name}")];
        let found = forms.iter().find_map(|form| text.find(form.as_str()).map(|at| (at, form.len())));
        found.map_or(word, |(at, length)| Span::new(word.start + at, word.start + at + length))
    }

    pub(super) fn check_port(&mut self, at: &At<'_>, port: &str, span: Span) {
        let mut parts = port.rsplitn(3, ':');
        let container = parts.next().unwrap_or("");
        let protocol = container.split_once('/').map_or("", |(_, protocol)| protocol);
        if protocol != protocol.to_lowercase() {
            let message = format!("Defined protocol '{port}' in EXPOSE instruction should be lowercase");
            let before = self.lints.0.len();
            self.lint_at(at, "ExposeProtoCasing", span, message);
            let written = self.plan.source.slice(span) == port && at.place.is_none();
            if let Some(found) = self.lints.0.get_mut(before).filter(|_| written) {
                let head = &port[..port.len() - protocol.len()];
                found.fix = vec![Edit { span, text: format!("{head}{}", protocol.to_lowercase()) }];
            }
        }
        if parts.any(|part| !part.is_empty()) {
            let message = format!(
                "EXPOSE instruction should not define an IP address or host-port mapping, found '{port}'"
            );
            self.lint_at(at, "ExposeInvalidFormat", span, message);
        }
    }

    /// Tells of a copy of what the ignore file leaves out.
    pub(super) fn check_ignored(&mut self, at: &At<'_>, source: &Word, add: bool) {
        let Some(path) = self.ignored.as_ref().and_then(|ignored| ignored.leaves_out(&source.text)) else {
            return;
        };
        let verb = if add { "Add" } else { "Copy" };
        let message = format!("Attempting to {verb} file {path:?} that is excluded by .dockerignore");
        self.lint_at(at, "CopyIgnoredFile", source.span, message);
    }

    /// Tells of a copy of what the context does not have.
    pub(super) fn check_there(&mut self, at: &At<'_>, source: &Word) {
        let plan = self.plan;
        let Some(files) = plan.options.context_files.as_ref().filter(|_| !self.lints.is_full()) else {
            return;
        };
        let path = clean_path(&format!("/{}", source.text));
        let path = path.trim_start_matches('/');
        if path.is_empty() || path.contains(['*', '?', '[', '\\']) || files.contains(path) {
            return;
        }
        let name = path.rsplit('/').next().unwrap_or(path);
        let same_name =
            || files.iter().find(|file| file.rsplit('/').next() == Some(name)).map(String::as_str);
        let near =
            suggest::nearest(path, files.iter().map(String::as_str)).or_else(same_name).map(str::to_owned);
        let before = self.lints.0.len();
        let message = format!("The context has no {path}");
        self.lint_at(at, "CopyMissingFile", source.span, message);
        if let (Some(found), Some(near)) = (self.lints.0.get_mut(before), near) {
            found.help = Some(format!("did you mean {near}?"));
        }
    }

    pub(super) fn check_platform(&mut self, stage: &Stage, expected: &Platform, actual: &ImageConfig) {
        let empty = actual.rootfs.diff_ids.is_empty();
        if empty || expected.os == actual.os && expected.architecture == actual.architecture {
            return;
        }
        let message = format!(
            "Base image {} was pulled with platform \"{}\", expected \"{expected}\" for current build",
            stage.image.text,
            actual.platform()
        );
        let (lines, span) = (stage.from.lines, stage.image.span);
        self.lints.push(&self.plan.control, "InvalidBaseImagePlatform", lines, span, message);
    }
}
