//! `COPY`, `ADD`, and the directory that `WORKDIR` makes.

use lapstrake_llb::pb;

use crate::ast::{Copy, Word};
use crate::diagnostic::Diagnostic;
use crate::expand::Lexer;
use crate::lower::chmod::{self, Mode};
use crate::lower::draft::{CONTEXT, DraftOutput, Inputs, NO_INPUT, NO_OUTPUT, named, operation};
use crate::lower::name::shown;
use crate::lower::path;
use crate::lower::remote::{check_checksum, http_name, is_git, is_http};
use crate::lower::stage::{At, Current, Lower, Lowering};

/// An instruction with its variables put in.
struct Expanded {
    sources: Vec<Word>,
    dest: Word,
    chown: Option<Word>,
    chmod: Option<Word>,
    mode: Option<Mode>,
    checksum: Option<Word>,
    /// Inline files: name and contents.
    files: Vec<(String, String)>,
}

impl Lowering<'_> {
    pub(super) fn copy(&mut self, current: &mut Current, at: &At<'_>, copy: &Copy, add: bool) -> Lower<()> {
        let expanded = self.expand_copy(current, copy, add)?;
        let linked = copy.link && self.plan.options.capabilities.merge && expanded.mode.is_none();
        let mut inputs = Inputs::default();
        let own = inputs.index(if linked { None } else { current.state.output });
        let dest = path::destination(&current.state.dir, &expanded.dest.text);
        let actions = self.copy_actions(current, at, copy, &expanded, add, &mut inputs, dest.len())?;
        let owner = expanded.chown.as_ref().map(|word| owner(&word.text, own));
        let file = file_op(actions, own, inputs.0.len(), &dest, owner.as_ref());
        let op = operation(pb::op::Op::File(file), None);
        let shown = shown(at.text(), &self.lexer(), &current.state.env);
        let Current { state, counter, .. } = current;
        let name = counter.next(&shown, &state.platform, Some(&state.env), at.step.trigger);
        let mut metadata = named(&name);
        metadata.ignore_cache = current.ignore_cache;
        let output = self.graph.add(op, inputs.0, metadata.clone(), at.lines());
        current.state.output = Some(match (linked, current.state.output) {
            (true, Some(below)) => {
                // Both operations are one step.
                current.counter.done = current.counter.done.saturating_sub(1);
                let Current { state, counter, .. } = current;
                let shown = format!("LINK {shown}");
                let name = counter.next(&shown, &state.platform, Some(&state.env), at.step.trigger);
                metadata.description.extend(named(&name).description);
                self.merge(below, output, metadata, at)
            }
            _ => output,
        });
        let history = history(copy, &expanded, add);
        self.graph.spend(history.len());
        current.state.record(history, true, true, self.plan.epoch);
        Ok(())
    }

    /// One action per source, with the number of the input that it copies from.
    #[expect(clippy::too_many_arguments, reason = "all of one instruction")]
    fn copy_actions(
        &mut self,
        current: &mut Current,
        at: &At<'_>,
        copy: &Copy,
        expanded: &Expanded,
        add: bool,
        inputs: &mut Inputs,
        dest_bytes: usize,
    ) -> Lower<Vec<(i64, pb::FileActionCopy)>> {
        let from = at.step.from.first();
        let source = match from {
            Some(from) => self.files(from)?,
            None => Some(CONTEXT),
        };
        let exclude: Vec<String> = copy.exclude.iter().map(|w| w.text.clone()).collect();
        // Each action repeats them.
        let bytes = 128 + dest_bytes + exclude.iter().map(|pattern| pattern.len() + 32).sum::<usize>();
        let mut actions = Vec::new();
        for word in &expanded.sources {
            if !self.graph.spend(bytes) {
                return Ok(actions);
            }
            let mut action = self.copy_action(copy, expanded, word, add)?;
            action.exclude_patterns.clone_from(&exclude);
            let checksum = expanded.checksum.as_ref();
            let secondary = if is_git(&word.text) {
                Some(self.git_source(current, copy, word, checksum, at)?)
            } else if is_http(&word.text) {
                Some(self.http_source(current, word, checksum, at))
            } else {
                if from.is_none() {
                    self.check_ignored(at, word, add);
                    self.check_there(at, word);
                    self.context_paths.insert(path::join("/", &word.text));
                }
                source
            };
            actions.push((inputs.index(secondary), action));
        }
        for (name, text) in &expanded.files {
            if !self.graph.spend(bytes + text.len()) {
                return Ok(actions);
            }
            let file = self.inline_file(&path::join("/", name), 0o644, text.clone().into_bytes());
            let mut action = base_action(expanded, path::join("/", name));
            action.exclude_patterns.clone_from(&exclude);
            actions.push((inputs.index(Some(file)), action));
        }
        Ok(actions)
    }

    fn expand_copy(&mut self, current: &Current, copy: &Copy, add: bool) -> Lower<Expanded> {
        let env = &current.state.env;
        let mut optional = |word: &Option<Word>| -> Lower<Option<Word>> {
            let word = word.as_ref().map(|word| self.expand(env, word)).transpose()?;
            Ok(word.filter(|word| !word.text.is_empty()))
        };
        let (chown, chmod, checksum) =
            (optional(&copy.chown)?, optional(&copy.chmod)?, optional(&copy.checksum)?);
        let mut sources = Vec::new();
        for word in &copy.sources {
            let word = self.expand(env, word)?;
            self.check_source(&word, add)?;
            sources.push(word);
        }
        let dest = self.expand(env, &copy.dest)?;
        let raw = Lexer { ignore_quotes: true, ..Lexer::new('\\') };
        let mut files = Vec::new();
        for heredoc in &copy.heredocs {
            let mut text = heredoc.contents();
            if heredoc.expand {
                text = self.expand_with(&raw, env, &Word { text, span: heredoc.span })?.text;
            }
            files.push((heredoc.name.clone(), text));
        }
        let mode = match &chmod {
            None => None,
            Some(word) => {
                Some(chmod::parse(&word.text).map_err(|message| Box::new(invalid_chmod(word, message)))?)
            }
        };
        check_checksum(checksum.as_ref(), &sources)?;
        let own_layer = copy.link.then_some(chown.as_ref()).flatten();
        if let Some(word) = own_layer.filter(|word| names_somebody(&word.text)) {
            return Err(Box::new(named_in_link(word)));
        }
        Ok(Expanded { sources, dest, chown, chmod, mode, checksum, files })
    }

    fn copy_action(
        &self,
        copy: &Copy,
        expanded: &Expanded,
        word: &Word,
        add: bool,
    ) -> Lower<pb::FileActionCopy> {
        if is_git(&word.text) {
            return Ok(base_action(expanded, "/".to_owned()));
        }
        if is_http(&word.text) {
            let action = base_action(expanded, path::join("/", &http_name(&word.text)));
            let attempt_unpack_docker_compatibility = copy.unpack.unwrap_or(false);
            return Ok(pb::FileActionCopy { attempt_unpack_docker_compatibility, ..action });
        }
        let (mut source, mut include, mut required) = (word.text.clone(), Vec::new(), Vec::new());
        if copy.parents.is_some() {
            let (root, pattern) = word.text.split_once("/./").unwrap_or(("/", word.text.as_str()));
            let pattern = path::absolute("/", pattern);
            if !has_wildcard(root) && !has_wildcard(&pattern) {
                required.push(path::absolute("/", &path::join(root, &pattern)));
            }
            include.push(pattern.strip_prefix('/').unwrap_or(&pattern).to_owned());
            source = root.to_owned();
        }
        let source = path::clean(&path::absolute("/", &source));
        Ok(pb::FileActionCopy {
            follow_symlink: true,
            dir_copy_contents: true,
            include_patterns: include,
            required_paths: required,
            attempt_unpack_docker_compatibility: copy.unpack.unwrap_or(add),
            allow_wildcard: true,
            allow_empty_wildcard: true,
            ..base_action(expanded, source)
        })
    }

    fn merge(
        &mut self,
        below: DraftOutput,
        above: DraftOutput,
        metadata: pb::OpMetadata,
        at: &At<'_>,
    ) -> DraftOutput {
        let inputs = (0..2).map(|input| pb::MergeInput { input }).collect();
        let op = operation(pb::op::Op::Merge(pb::MergeOp { inputs }), None);
        self.graph.add(op, vec![below, above], metadata, at.lines())
    }

    /// The directory of `WORKDIR`.
    pub(super) fn make_dir(&mut self, current: &mut Current, at: &At<'_>, dir: &str) {
        let mut inputs = Inputs::default();
        let own = inputs.index(current.state.output);
        let user = &current.state.image.config.user;
        let nanoseconds = |seconds: i64| seconds.saturating_mul(1_000_000_000);
        let make = pb::FileActionMkDir {
            path: path::clean(dir),
            mode: 0o755,
            make_parents: true,
            owner: (!user.is_empty()).then(|| owner(user, own)),
            timestamp: self.plan.epoch.map_or(-1, nanoseconds),
        };
        let action = pb::FileAction {
            input: own,
            secondary_input: NO_INPUT,
            output: 0,
            action: Some(pb::file_action::Action::Mkdir(make)),
        };
        let op = operation(pb::op::Op::File(pb::FileOp { actions: vec![action] }), None);
        let shown = shown(at.text(), &self.lexer(), &current.state.env);
        let Current { state, counter, .. } = current;
        let name = counter.next(&shown, &state.platform, Some(&state.env), at.step.trigger);
        current.state.output = Some(self.graph.add(op, inputs.0, named(&name), at.lines()));
    }
}

/// What all copies have in common.
fn base_action(expanded: &Expanded, src: String) -> pb::FileActionCopy {
    let (mode, mode_str) = match &expanded.mode {
        None => (-1, String::new()),
        Some(Mode::Octal(mode)) => (*mode, String::new()),
        Some(Mode::Symbolic(text)) => (0, text.clone()),
    };
    pb::FileActionCopy {
        src,
        mode,
        mode_str,
        create_dest_path: true,
        timestamp: -1,
        ..pb::FileActionCopy::default()
    }
}

/// Copies in order, each on top of the one before.
fn file_op(
    actions: Vec<(i64, pb::FileActionCopy)>,
    own: i64,
    inputs: usize,
    dest: &str,
    owner: Option<&pb::ChownOpt>,
) -> pb::FileOp {
    let last = actions.len().saturating_sub(1);
    let action = |(index, (secondary_input, copy)): (usize, (i64, pb::FileActionCopy))| {
        let copy = pb::FileActionCopy { dest: dest.to_owned(), owner: owner.cloned(), ..copy };
        pb::FileAction {
            // After the inputs, numbers stand for the results of earlier actions.
            input: if index == 0 { own } else { (inputs + index - 1) as i64 },
            secondary_input,
            output: if index == last { 0 } else { NO_OUTPUT },
            action: Some(pb::file_action::Action::Copy(copy)),
        }
    };
    pb::FileOp { actions: actions.into_iter().enumerate().map(action).collect() }
}

/// A user by number.
pub(super) fn user_by_id(id: u32) -> pb::UserOpt {
    pb::UserOpt { user: Some(pb::user_opt::User::ById(id)) }
}

/// `user[:group]`; names are looked up in the files of input `own`.
fn owner(text: &str, own: i64) -> pb::ChownOpt {
    let one = |text: &str| match text {
        "root" | "" => user_by_id(0),
        text => match text.parse::<i32>() {
            Ok(id) => user_by_id(id as u32),
            Err(_) => {
                let named = pb::NamedUserOpt { name: text.to_owned(), input: own };
                pb::UserOpt { user: Some(pb::user_opt::User::ByName(named)) }
            }
        },
    };
    match text.split_once(':') {
        // Without a group behind it a colon says nothing.
        Some((user, "")) => pb::ChownOpt { user: Some(one(user)), group: None },
        Some((user, group)) => pb::ChownOpt { user: Some(one(user)), group: Some(one(group)) },
        None => pb::ChownOpt { user: Some(one(text)), group: None },
    }
}

fn invalid_chmod(word: &Word, message: String) -> Diagnostic {
    let finding = Diagnostic::error("invalid-chmod", word.span, message);
    if word.text.contains(['8', '9']) && word.text.chars().all(|c| c.is_ascii_digit()) {
        return finding.note("octal digits are 0 to 7").help("write it as 0755, or as u=rwX,go=rX");
    }
    finding.help("write it as 0755, or as u=rwX,go=rX")
}

/// Whether an owner is given by name.
fn names_somebody(text: &str) -> bool {
    let by_name = |user: &Option<pb::UserOpt>| {
        user.as_ref().is_some_and(|user| matches!(user.user, Some(pb::user_opt::User::ByName(_))))
    };
    let owner = owner(text, NO_INPUT);
    by_name(&owner.user) || by_name(&owner.group)
}

fn named_in_link(word: &Word) -> Diagnostic {
    let message = format!(
        "--chown={}: user and group names can't be resolved when used with --link, use numeric uid[:gid] instead",
        word.text
    );
    Diagnostic::error("chown-in-link", word.span, message)
        .note("a linked layer is made without the files below it, and so without /etc/passwd and /etc/group")
}

fn history(copy: &Copy, expanded: &Expanded, add: bool) -> String {
    let mut out = String::from(if add { "ADD" } else { "COPY" });
    if copy.parents.is_some() {
        out.push_str(" --parents");
    }
    for (flag, word) in [("chown", &expanded.chown), ("chmod", &expanded.chmod)] {
        if let Some(word) = word {
            out.push_str(&format!(" --{flag}={}", word.text));
        }
    }
    for source in &expanded.sources {
        out.push_str(&format!(" {}", source.text));
    }
    for (name, _) in &expanded.files {
        out.push_str(&format!(" <<{name}"));
    }
    out.push_str(&format!(" {}", expanded.dest.text));
    out
}

fn has_wildcard(path: &str) -> bool {
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'*' | b'?' | b'[' => return true,
            b'\\' => drop(bytes.next()),
            _ => {}
        }
    }
    false
}
