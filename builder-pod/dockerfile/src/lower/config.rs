//! Instructions that change the environment or the image config only.

use lapstrake_oci::{Empty, Healthcheck};

use crate::ast::{self, Arg, Command, Kind, Pair, Word};
use crate::diagnostic::Diagnostic;
use crate::expand::Lookup as _;
use crate::lower::env::set_in_config;
use crate::lower::hints::NOT_ENV;
use crate::lower::stage::{At, Current, Lower, Lowering, expansion_error};
use crate::lower::state::State;
use crate::lower::{expose, signal};
use crate::plan::build_arg;
use crate::{go, suggest};

impl Lowering<'_> {
    /// `ARG` in a stage.
    pub(super) fn arg(&mut self, current: &mut Current, at: &At<'_>, list: &[Arg]) -> Lower<()> {
        let mut texts = Vec::new();
        for arg in list {
            let name = &arg.name.text;
            let given = build_arg(&self.plan.options, name).map(str::to_owned);
            let value = match (given, &arg.default) {
                (Some(given), _) => Some(given),
                (None, Some(default)) => {
                    let text = self.expand(&current.state.env, default)?.text;
                    // What the value asks for may be the very name that is declared here.
                    self.report_unset(current, at);
                    Some(text)
                }
                (None, None) => self.plan.args.get(name).map(str::to_owned),
            };
            if let Some(value) = &value
                && !NOT_ENV.contains(&name.as_str())
            {
                current.state.env.set(name, value);
            }
            texts.push(match &value {
                Some(value) => format!("{name}={value}"),
                None => name.clone(),
            });
            current.state.args.push((name.clone(), value));
        }
        self.record(&mut current.state, format!("ARG {}", texts.join(" ")));
        Ok(())
    }

    /// `ENV`: all of one instruction see the environment before it.
    pub(super) fn env(&mut self, current: &mut Current, list: &[Pair]) -> Lower<()> {
        let pairs = self.pairs(current, list)?;
        let mut text = "ENV".to_owned();
        for (key, value) in pairs {
            text.push_str(&format!(" {key}={value}"));
            current.state.env.set(&key, &value);
            // The list is searched from its start.
            if !self.graph.spend(4 * current.state.image.config.env.len()) {
                return Ok(());
            }
            set_in_config(&mut current.state.image.config.env, &key, &value);
        }
        self.record(&mut current.state, text);
        Ok(())
    }

    fn pairs(&mut self, current: &Current, list: &[Pair]) -> Lower<Vec<(String, String)>> {
        let mut out = Vec::new();
        for pair in list {
            let key = self.expand(&current.state.env, &pair.key)?;
            let value = self.expand(&current.state.env, &pair.value)?;
            out.push((key.text, value.text));
        }
        Ok(out)
    }

    /// Records an instruction that makes no layer.
    fn record(&mut self, state: &mut State, text: String) {
        self.graph.spend(text.len());
        state.record(text, false, false, self.plan.epoch);
    }

    /// All other instructions.
    pub(super) fn config(&mut self, current: &mut Current, at: &At<'_>, kind: &Kind) -> Lower<()> {
        let text = match kind {
            Kind::Cmd(command) => cmd(&mut current.state, command),
            Kind::Entrypoint(command) => entrypoint(&mut current.state, command),
            Kind::Healthcheck(check) => healthcheck(&mut current.state, check),
            Kind::Maintainer(word) => {
                current.state.image.author = Some(word.text.clone());
                format!("MAINTAINER {}", word.text)
            }
            Kind::Shell(words) => {
                let shell: Vec<_> = words.iter().map(|w| w.text.clone()).collect();
                let text = format!("SHELL {}", go::list(&shell));
                current.state.image.config.shell = shell;
                text
            }
            Kind::User(word) => {
                let user = self.expand(&current.state.env, word)?.text;
                current.state.user.clone_from(&user);
                current.state.image.config.user.clone_from(&user);
                format!("USER {user}")
            }
            Kind::Label(list) => self.label(current, list)?,
            Kind::Volume(words) => self.volume(current, words)?,
            Kind::Expose(words) => self.expose(current, at, words)?,
            Kind::Stopsignal(word) => self.stop_signal(current, word)?,
            Kind::Onbuild(onbuild) => {
                current.state.image.config.on_build.push(onbuild.expression.clone());
                return Ok(());
            }
            _ => return Ok(()),
        };
        self.record(&mut current.state, text);
        Ok(())
    }

    fn label(&mut self, current: &mut Current, list: &[Pair]) -> Lower<String> {
        let pairs = self.pairs(current, list)?;
        let mut text = "LABEL".to_owned();
        for (key, value) in pairs {
            text.push_str(&format!(" {key}={value}"));
            current.state.image.config.labels.insert(key, value);
        }
        Ok(text)
    }

    fn volume(&mut self, current: &mut Current, words: &[Word]) -> Lower<String> {
        let mut volumes = Vec::new();
        for word in words {
            let volume = self.expand(&current.state.env, word)?;
            if volume.text.is_empty() {
                let message = "VOLUME specified can not be an empty string";
                return Err(Box::new(Diagnostic::error("empty-volume", volume.span, message)));
            }
            volumes.push(volume.text);
        }
        let text = format!("VOLUME {}", go::list(&volumes));
        current.state.image.config.volumes.extend(volumes.into_iter().map(|v| (v, Empty {})));
        Ok(text)
    }

    fn expose(&mut self, current: &mut Current, at: &At<'_>, words: &[Word]) -> Lower<String> {
        let (mut ports, lexer) = (Vec::new(), self.lexer());
        for word in words {
            let texts =
                lexer.words(&word.text, &current.state.env).map_err(|e| expansion_error(&e, word.span))?;
            for text in texts {
                let found = expose::ports(&text).map_err(|message| Box::new(invalid_port(word, message)))?;
                self.check_port(at, &text, word.span);
                if !self.graph.spend(found.len() * 32) {
                    return Ok(String::new());
                }
                ports.extend(found);
            }
        }
        let text = format!("EXPOSE {}", go::list(&ports));
        current.state.image.config.exposed_ports.extend(ports.into_iter().map(|p| (p, Empty {})));
        Ok(text)
    }

    fn stop_signal(&mut self, current: &mut Current, word: &Word) -> Lower<String> {
        let word = self.expand(&current.state.env, word)?;
        if !signal::is_valid(&word.text) {
            let names: Vec<String> = signal::names().collect();
            let near = suggest::nearest(&word.text, names.iter().map(String::as_str));
            let message = format!("invalid signal: {}", word.text);
            return Err(Box::new(Diagnostic::error("invalid-signal", word.span, message).suggest(near)));
        }
        current.state.image.config.stop_signal.clone_from(&word.text);
        Ok(format!("STOPSIGNAL {}", word.text))
    }
}

fn invalid_port(word: &Word, message: String) -> Diagnostic {
    Diagnostic::error("invalid-port", word.span, message)
        .help("ports are numbers up to 65535: 80, 8000-8010, 53/udp")
}

/// A command line with the shell in front where it is in shell form.
pub(super) fn command_line(state: &State, command: &Command) -> Vec<String> {
    let args: Vec<_> = command.args.iter().map(|word| word.text.clone()).collect();
    if command.exec { args } else { with_shell(state, &args.join(" ")) }
}

/// A text as a command of the stage's shell.
pub(super) fn with_shell(state: &State, text: &str) -> Vec<String> {
    let default: &[&str] = match state.image.os.as_str() {
        "windows" => &["cmd", "/S", "/C"],
        _ => &["/bin/sh", "-c"],
    };
    let own = &state.image.config.shell;
    let mut out =
        if own.is_empty() { default.iter().map(|s| (*s).to_owned()).collect() } else { own.clone() };
    out.push(text.to_owned());
    out
}

fn cmd(state: &mut State, command: &Command) -> String {
    let args = command_line(state, command);
    let text = format!("CMD {}", go::quoted_list(&args));
    // Go leaves an empty list out of the JSON.
    state.image.config.cmd = Some(args).filter(|args| !args.is_empty());
    state.image.config.args_escaped = Some(true);
    state.cmd_set = true;
    text
}

fn entrypoint(state: &mut State, command: &Command) -> String {
    let args = command_line(state, command);
    let text = format!("ENTRYPOINT {}", go::quoted_list(&args));
    state.image.config.entrypoint = Some(args).filter(|args| !args.is_empty());
    if !state.cmd_set {
        state.image.config.cmd = None;
    }
    text
}

fn healthcheck(state: &mut State, check: &ast::Healthcheck) -> String {
    let check = check.clone();
    let text = format!(
        "HEALTHCHECK {{Test:{} Interval:{} Timeout:{} StartPeriod:{} StartInterval:{} Retries:{}}}",
        go::list(&check.test),
        go::duration(check.interval),
        go::duration(check.timeout),
        go::duration(check.start_period),
        go::duration(check.start_interval),
        check.retries
    );
    state.image.config.healthcheck = Some(Healthcheck {
        test: check.test,
        interval: check.interval,
        timeout: check.timeout,
        start_period: check.start_period,
        start_interval: check.start_interval,
        retries: check.retries,
    });
    text
}
