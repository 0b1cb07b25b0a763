//! Which parts of the language a file uses: for the table of what the tests show, and for whoever wants to know what a
//! file asks of a builder.

use std::collections::BTreeSet;

use crate::ast::{Instruction, Kind};
use crate::instruction::KEYWORDS;
use crate::parse::Parsed;

/// Flags of each instruction that has some.
const FLAGS: [(&str, &[&str]); 5] = [
    ("ADD", &["chmod", "chown", "checksum", "exclude", "keep-git-dir", "link", "unpack"]),
    ("COPY", &["chmod", "chown", "exclude", "from", "link", "parents"]),
    ("FROM", &["platform"]),
    ("HEALTHCHECK", &["interval", "retries", "start-interval", "start-period", "timeout"]),
    ("RUN", &["device", "mount", "network", "security"]),
];
const MOUNTS: [(&str, &[&str]); 5] = [
    ("bind", &["source", "target", "from", "readonly", "readwrite"]),
    ("cache", &["source", "target", "from", "id", "sharing", "mode", "uid", "gid", "readonly"]),
    ("secret", &["id", "target", "required", "mode", "uid", "gid", "env"]),
    ("ssh", &["id", "target", "required", "mode", "uid", "gid"]),
    ("tmpfs", &["target", "size"]),
];
/// Keys of a mount that are other names for these.
const SYNONYMS: [(&str, &str); 6] = [
    ("dst", "target"),
    ("destination", "target"),
    ("src", "source"),
    ("ro", "readonly"),
    ("rw", "readwrite"),
    ("readwrite", "readwrite"),
];
const DIRECTIVES: [&str; 3] = ["check", "escape", "syntax"];
/// Instructions whose command has two forms.
const COMMANDS: [&str; 4] = ["CMD", "ENTRYPOINT", "HEALTHCHECK", "RUN"];
const HEREDOCS: [&str; 4] = ["ADD", "COPY", "ONBUILD", "RUN"];
/// Instructions whose words have variables.
const EXPANDING: [&str; 13] = [
    "ADD",
    "ARG",
    "COPY",
    "ENV",
    "EXPOSE",
    "FROM",
    "LABEL",
    "ONBUILD",
    "RUN",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];
/// Operators of `${name…}`, longer ones first.
const OPERATORS: [&str; 12] = [":-", ":+", ":?", "##", "%%", "//", "-", "+", "?", "#", "%", "/"];

/// All parts of the language, by the names that [`features`] gives them, in the order of a table.
pub fn all_features() -> Vec<String> {
    let mut out: Vec<String> = DIRECTIVES.map(|name| format!("# {name}=")).to_vec();
    for keyword in KEYWORDS {
        out.push(keyword.to_owned());
        let flags = FLAGS.iter().filter(|(name, _)| *name == keyword).flat_map(|(_, flags)| *flags);
        out.extend(flags.map(|flag| format!("{keyword} --{flag}")));
        if keyword == "RUN" {
            for (kind, keys) in MOUNTS {
                out.push(mount(kind, None));
                out.extend(keys.iter().map(|key| mount(kind, Some(key))));
            }
        }
        if COMMANDS.contains(&keyword) {
            out.extend(["shell", "exec"].map(|form| format!("{keyword}, {form} form")));
        }
        if HEREDOCS.contains(&keyword) {
            out.push(format!("{keyword} with a heredoc"));
        }
        match keyword {
            "FROM" => out.extend(["FROM … AS", "FROM scratch", "FROM of a stage"].map(str::to_owned)),
            "ENV" | "LABEL" => out.push(format!("{keyword}, old form without =")),
            "HEALTHCHECK" => out.push("HEALTHCHECK NONE".to_owned()),
            _ => {}
        }
    }
    out.extend(["<<-", "<<\"quoted\"", "several heredocs of one instruction"].map(str::to_owned));
    out.extend(["$name", "${name}"].map(str::to_owned));
    let mut operators = OPERATORS;
    operators.sort_by_key(|operator| (operator.trim_start_matches(':').chars().next(), operator.len()));
    out.extend(operators.map(|operator| format!("${{name{operator}…}}")));
    out
}

/// The parts of the language that a file uses, as far as it can be understood.
pub fn features(parsed: &Parsed) -> BTreeSet<String> {
    let mut out = BTreeSet::new();
    out.extend(parsed.ast.directives.iter().map(|directive| format!("# {}=", directive.name)));
    let mut stages = BTreeSet::new();
    for instruction in &parsed.ast.instructions {
        if let Kind::From(from) = &instruction.kind {
            let image = from.image.text.to_ascii_lowercase();
            out.extend(from.name.as_ref().map(|_| "FROM … AS".to_owned()));
            if image == "scratch" {
                out.insert("FROM scratch".to_owned());
            } else if stages.contains(&image) {
                out.insert("FROM of a stage".to_owned());
            }
            stages.extend(from.name.as_ref().map(|name| name.text.clone()));
        }
        one(instruction, &mut out);
    }
    out
}

fn one(instruction: &Instruction, out: &mut BTreeSet<String>) {
    let keyword = instruction.keyword.text.to_ascii_uppercase();
    if matches!(instruction.kind, Kind::Invalid) || !KEYWORDS.contains(&keyword.as_str()) {
        return;
    }
    let text = &instruction.source.text;
    let words = text.split_whitespace().skip(1).take_while(|word| word.starts_with("--"));
    out.extend(words.map(|word| format!("{keyword} {}", word.split('=').next().unwrap_or(word))));
    let command = match &instruction.kind {
        Kind::Run(run) => Some(run.command.exec),
        Kind::Cmd(command) | Kind::Entrypoint(command) => Some(command.exec),
        Kind::Healthcheck(check) => match check.test.first().map(String::as_str) {
            Some("CMD-SHELL") => Some(false),
            Some("CMD") => Some(true),
            _ => {
                out.insert("HEALTHCHECK NONE".to_owned());
                None
            }
        },
        _ => None,
    };
    out.extend(command.map(|exec| format!("{keyword}, {} form", if exec { "exec" } else { "shell" })));
    match &instruction.kind {
        Kind::Env(pairs) | Kind::Label(pairs) if pairs.iter().any(|pair| pair.legacy) => {
            out.insert(format!("{keyword}, old form without ="));
        }
        Kind::Run(run) => {
            run.mounts.iter().for_each(|word| mounts(&word.text, out));
            heredocs(&keyword, &run.heredocs, out);
        }
        Kind::Copy(copy) | Kind::Add(copy) => heredocs(&keyword, &copy.heredocs, out),
        Kind::Onbuild(onbuild) => {
            let mut inner = BTreeSet::new();
            one(&onbuild.trigger, &mut inner);
            if inner.iter().any(|name| name.ends_with("with a heredoc")) {
                out.insert("ONBUILD with a heredoc".to_owned());
            }
            out.extend(inner);
        }
        _ => {}
    }
    if EXPANDING.contains(&keyword.as_str()) && keyword != "RUN" && keyword != "ONBUILD" {
        variables(text, out);
    }
    out.insert(keyword);
}

fn mount(kind: &str, key: Option<&str>) -> String {
    let key = key.map(|key| format!(",{key}=")).unwrap_or_default();
    format!("RUN --mount=type={kind}{key}")
}

fn mounts(text: &str, out: &mut BTreeSet<String>) {
    let fields: Vec<(String, &str)> = text
        .split(',')
        .map(|field| field.split_once('=').unwrap_or((field, "")))
        .map(|(key, value)| (key.to_ascii_lowercase(), value))
        .collect();
    let kind = fields.iter().find(|(key, _)| key == "type").map_or("bind", |(_, value)| *value);
    out.insert(mount(kind, None));
    for (key, _) in fields.iter().filter(|(key, _)| key != "type") {
        let known = SYNONYMS.iter().find(|(name, _)| name == key).map_or(key.as_str(), |(_, known)| *known);
        out.insert(mount(kind, Some(known)));
    }
}

fn heredocs(keyword: &str, heredocs: &[crate::ast::Heredoc], out: &mut BTreeSet<String>) {
    let mut add = |name: &str, there: bool| there.then(|| out.insert(name.to_owned()));
    add(&format!("{keyword} with a heredoc"), !heredocs.is_empty());
    add("<<-", heredocs.iter().any(|heredoc| heredoc.chomp));
    add("<<\"quoted\"", heredocs.iter().any(|heredoc| !heredoc.expand));
    add("several heredocs of one instruction", heredocs.len() > 1);
}

fn variables(text: &str, out: &mut BTreeSet<String>) {
    for (at, _) in text.match_indices('$') {
        let rest = text.get(at + 1..).unwrap_or_default();
        let Some(inner) = rest.strip_prefix('{') else {
            if rest.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
                out.insert("$name".to_owned());
            }
            continue;
        };
        let name = inner.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(inner.len());
        let after = inner.get(name..).unwrap_or_default();
        if name == 0 {
            continue;
        }
        match OPERATORS.iter().find(|operator| after.starts_with(**operator)) {
            Some(operator) => out.insert(format!("${{name{operator}…}}")),
            None => out.insert("${name}".to_owned()),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse;

    #[test]
    fn every_flag_that_an_instruction_knows_is_in_the_list() {
        for keyword in KEYWORDS {
            let words = match keyword {
                "FROM" => "a",
                "HEALTHCHECK" => "CMD x",
                _ => "x y",
            };
            let text = format!("FROM a\n{keyword} --zzzzzzzzzz {words}\n");
            let parsed = parse("Dockerfile", &text);
            let notes = parsed.diagnostics.render(crate::Style::Plain);
            let known: BTreeSet<&str> = notes
                .lines()
                .filter_map(|line| line.split_once(" knows "))
                .flat_map(|(_, list)| list.split(", "))
                .collect();
            let listed = FLAGS.iter().filter(|(name, _)| *name == keyword).flat_map(|(_, flags)| *flags);
            let listed: Vec<String> = listed.map(|flag| format!("--{flag}")).collect();
            assert_eq!(known, listed.iter().map(String::as_str).collect(), "{keyword}: {notes}");
        }
    }

    #[test]
    fn what_a_file_uses_is_in_the_list_of_all() {
        let text = "# escape=`\nFROM a AS b\nFROM b\nRUN --mount=target=/x,rw --network=none <<-'E'\nE\n\
                    ENV a ${b:-c}$d${e}${f//g/h}\nONBUILD COPY <<A <<B /\nA\nB\nHEALTHCHECK --retries=1 CMD [\"x\"]\n";
        let used = features(&parse("Dockerfile", text));
        let all = all_features();
        for name in &used {
            assert!(all.contains(name), "{name}");
        }
        for name in
            ["FROM of a stage", "RUN --mount=type=bind,readwrite=", "${name//…}", "ONBUILD with a heredoc"]
        {
            assert!(used.contains(name), "{name} in {used:?}");
        }
    }
}
