//! `COPY` and `ADD`.

use crate::ast::{Copy, Heredoc, Word};
use crate::diagnostic::Diagnostic;
use crate::instruction::flags::{Flags, Takes};
use crate::instruction::{Input, Parsed, fail};
use crate::words;

pub(super) fn copy(input: &mut Input<'_>) -> Parsed<Copy> {
    let flags = Flags::read(
        input,
        &[
            ("from", Takes::Value),
            ("chown", Takes::Value),
            ("chmod", Takes::Value),
            ("link", Takes::Bool),
            ("parents", Takes::Bool),
            ("exclude", Takes::Values),
        ],
    )?;
    let parents = flags.bool("parents").filter(|on| *on).and(flags.get("parents")).map(|w| w.span);
    Ok(Copy { from: flags.value("from"), parents, ..common(input, &flags)? })
}

pub(super) fn add(input: &mut Input<'_>) -> Parsed<Copy> {
    let flags = Flags::read(
        input,
        &[
            ("chown", Takes::Value),
            ("chmod", Takes::Value),
            ("link", Takes::Bool),
            ("keep-git-dir", Takes::Bool),
            ("checksum", Takes::Value),
            ("unpack", Takes::Bool),
            ("exclude", Takes::Values),
        ],
    )?;
    Ok(Copy {
        keep_git_dir: flags.bool("keep-git-dir"),
        checksum: flags.value("checksum"),
        unpack: flags.bool("unpack"),
        ..common(input, &flags)?
    })
}

fn common(input: &mut Input<'_>, flags: &Flags) -> Parsed<Copy> {
    let mut words = match input.exec_form()? {
        Some(words) => words,
        None => input.arguments(),
    };
    let dest = match (words.len(), words.pop()) {
        (0 | 1, _) | (_, None) => {
            let what = "requires at least two arguments, but only one was provided. \
                        Destination could not be determined";
            let finding =
                Diagnostic::error("missing-destination", input.whole(), format!("{} {what}", input.name()));
            return fail(finding.help(format!("write {} source… destination", input.name())));
        }
        (_, Some(dest)) => dest,
    };
    if words::heredoc(&dest.text).is_some() {
        let message = format!("{} cannot accept a heredoc as a destination", input.name());
        return fail(Diagnostic::error("heredoc-as-destination", dest.span, message));
    }
    let (mut sources, mut heredocs, mut bodies) = (Vec::new(), Vec::new(), input.heredocs.iter());
    for word in words {
        match words::heredoc(&word.text) {
            Some(found) => heredocs.push(body(&mut bodies, found, &word)),
            None => sources.push(word),
        }
    }
    let exclude = flags.values("exclude");
    let (chown, chmod) = (flags.value("chown"), flags.value("chmod"));
    let link = flags.bool("link").unwrap_or(false);
    Ok(Copy { sources, heredocs, dest, chown, chmod, link, exclude, ..Copy::default() })
}

/// The next heredoc of the word's name, and an empty one where there is none (JSON form).
fn body(bodies: &mut std::slice::Iter<'_, Heredoc>, found: words::HeredocWord, word: &Word) -> Heredoc {
    let body = bodies.find(|h| h.name == found.name).map(|h| h.body.clone());
    let words::HeredocWord { name, expand, chomp } = found;
    Heredoc { name, span: word.span, expand, chomp, body: body.unwrap_or_default() }
}
