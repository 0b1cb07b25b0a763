//! Package managers.

use crate::lint::Findings;
use crate::lint::practice::{Step, lies_in};
use crate::lint::shell::{Words, begins, program};

/// A package manager: its programs, the directories of its lists, and the words that empty them.
struct Manager {
    programs: &'static [&'static str],
    install: &'static [&'static str],
    dir: &'static str,
    /// Words of the installing command with which nothing is left.
    without: &'static [&'static str],
    /// Commands that clean up.
    clean: &'static [&'static [&'static str]],
    /// It asks before it installs.
    asks: bool,
}

const MANAGERS: [Manager; 4] = [
    Manager {
        programs: &["apt-get", "apt"],
        install: &["install"],
        dir: "/var/lib/apt/lists",
        without: &[],
        clean: &[],
        asks: true,
    },
    Manager {
        programs: &["apk"],
        install: &["add"],
        dir: "/var/cache/apk",
        without: &["--no-cache"],
        clean: &[&["apk", "cache", "clean"]],
        asks: false,
    },
    Manager {
        programs: &["dnf", "microdnf"],
        install: &["install"],
        dir: "/var/cache/dnf",
        without: &[],
        clean: &[&["dnf", "clean"], &["microdnf", "clean"]],
        asks: true,
    },
    Manager {
        programs: &["yum"],
        install: &["install"],
        dir: "/var/cache/yum",
        without: &[],
        clean: &[&["yum", "clean"]],
        asks: true,
    },
];

/// Commands that empty a cache, or that leave it alone: what they are told by, and the directory that is meant.
const EMPTYING: [(&[&str], &str, &str); 8] = [
    (&["apt-get", "clean"], "", "/var/cache/apt"),
    (&["apk", "add"], "--no-cache", "/var/cache/apk"),
    (&["pip", "install"], "--no-cache-dir", "/root/.cache/pip"),
    (&["pip3", "install"], "--no-cache-dir", "/root/.cache/pip"),
    (&["npm", "cache", "clean"], "", "/root/.npm"),
    (&["yarn", "cache", "clean"], "", "/usr/local/share/.cache"),
    (&["dnf", "clean"], "", "/var/cache/dnf"),
    (&["go", "clean"], "-cache", "/root/.cache/go-build"),
];

/// Looks at a step.
pub(super) fn check(step: &Step<'_>, in_result: bool, findings: &mut Findings) {
    if step.commands.is_empty() {
        return;
    }
    for manager in &MANAGERS {
        let of = |words: &Words| words.first().is_some_and(|word| manager.programs.contains(&program(word)));
        let mine: Vec<&Words> =
            step.commands.iter().map(|(words, _)| words).filter(|words| of(words)).collect();
        if !mine.is_empty() {
            one(step, manager, &mine, in_result, findings);
        }
    }
    mounts(step, findings);
}

fn one(step: &Step<'_>, manager: &Manager, mine: &[&Words], in_result: bool, findings: &mut Findings) {
    let lines = step.instruction.lines;
    let is = |words: &Words, what: &str| words.iter().skip(1).any(|word| word == what);
    let installs: Vec<&&Words> =
        mine.iter().filter(|words| manager.install.iter().any(|what| is(words, what))).collect();
    let is_update = |words: &&&Words| is(words, "update") && !is(words, "install");
    let update = mine.iter().find(is_update);
    let name = |words: &Words| words.first().map_or("", |word| program(word)).to_owned();
    if let (Some(update), true, true) = (update, installs.is_empty(), manager.asks) {
        let (span, name) = (step.find(&name(update)), name(update));
        let message = format!("{name} update runs in another layer than what uses its lists");
        findings.push(step.control, "UpdateWithoutInstall", lines, span, message);
        return;
    }
    for words in installs.iter().filter(|_| manager.asks) {
        if !words.iter().skip(1).any(|word| says_yes(word)) {
            let (span, name) = (step.find(&name(words)), name(words));
            let message = format!("{name} install asks, and nobody answers");
            findings.push(step.control, "InstallWithoutYes", lines, span, message);
        }
    }
    let Some(install) = installs.first().filter(|_| in_result) else { return };
    let without =
        installs.iter().all(|words| words.iter().any(|word| manager.without.contains(&word.as_str())));
    let cleaned = step.commands.iter().any(|(words, _)| {
        manager.clean.iter().any(|clean| begins(words, clean)) || removes(words, manager.dir)
    });
    // Lists that were there before were left by another layer.
    let made = update.is_some() || manager.dir != MANAGERS[0].dir;
    if made && !without && !cleaned && !step.is_mounted(manager.dir) {
        let (span, name) = (step.find(&name(install)), name(install));
        let message = format!("What {name} keeps in {} stays in the layer", manager.dir);
        if let Some(found) = findings.push(step.control, "PackageListsLeft", lines, span, message) {
            found.help = Some(match manager.without.first().filter(|_| name == "apk") {
                Some(flag) => format!("add {flag}, or mount a cache there"),
                None => format!("add && rm -rf {}/*, or mount a cache there", manager.dir),
            });
        }
    }
}

/// `-y` and its like; two `q` say it too.
fn says_yes(word: &str) -> bool {
    let short = word.strip_prefix('-').filter(|rest| !rest.starts_with('-'));
    matches!(word, "--yes" | "--assume-yes" | "--assumeyes" | "-qq")
        || short.is_some_and(|flags| flags.contains('y') && flags.chars().all(|c| c.is_ascii_alphabetic()))
}

/// Whether a command removes all that is in a directory.
fn removes(words: &Words, dir: &str) -> bool {
    let is_rm = words.first().is_some_and(|word| matches!(program(word), "rm" | "find"));
    is_rm
        && words.iter().skip(1).any(|word| {
            let path = word.trim_end_matches('*');
            path.starts_with('/') && lies_in(dir, path)
        })
}

fn mounts(step: &Step<'_>, findings: &mut Findings) {
    for cache in &step.caches {
        for (words, _) in &step.commands {
            let emptied = EMPTYING.iter().find(|(command, flag, dir)| {
                let flagged = flag.is_empty() || words.iter().any(|word| word == flag);
                begins(words, command) && flagged && (lies_in(cache, dir) || lies_in(dir, cache))
            });
            let told = match emptied {
                Some((command, "", _)) => command.join(" "),
                Some((_, flag, _)) => (*flag).to_owned(),
                None if removes(words, cache) => "rm".to_owned(),
                None => continue,
            };
            let message = format!("{told} leaves nothing for the next step in the cache mount {cache}");
            let span = step.find(told.split(' ').next().unwrap_or(""));
            findings.push(step.control, "CacheMountWithoutEffect", step.instruction.lines, span, message);
        }
    }
}
