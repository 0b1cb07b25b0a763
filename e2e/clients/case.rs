//! Cases as they are written down: `cases/*.txt`.
//!
//! ```text
//! == NAME
//! fails                      the script must fail
//! exact                      digests are compared too
//! meets                      none begins it before both have come to it: it reads what the other one made
//! error: TEXT                both must say this; without any, the line of the error must be the same
//! known: BEGINNING | REASON  a difference that is known
//! gap: REASON                we can't do it yet: the case must fail for us, until the line goes
//! -- PATH --                 a file of the folder that the script runs in
//! -- run --                  the script, of `sh -e`
//! ```

use std::fs;
use std::path::Path;

use crate::Result;

/// A case.
#[derive(Debug, Clone, Default)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) fails: bool,
    pub(crate) exact: bool,
    pub(crate) meets: bool,
    pub(crate) errors: Vec<String>,
    pub(crate) known: Vec<(String, String)>,
    pub(crate) gap: Option<String>,
    pub(crate) files: Vec<(String, String)>,
    pub(crate) script: String,
}

/// All cases, by file and as they stand there.
pub(crate) fn all() -> Result<Vec<Case>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../e2e/clients/cases");
    let mut paths: Vec<_> =
        fs::read_dir(&folder)?.map(|entry| entry.map(|e| e.path())).collect::<std::io::Result<_>>()?;
    paths.sort();
    let mut all: Vec<Case> = Vec::new();
    for path in paths {
        let text = fs::read_to_string(&path)?;
        all.extend(read(&text).map_err(|why| format!("{}: {why}", path.display()))?);
    }
    for (at, case) in all.iter().enumerate() {
        if all[..at].iter().any(|other| other.name == case.name) {
            return Err(format!("two cases are called {}", case.name).into());
        }
    }
    Ok(all)
}

fn read(text: &str) -> Result<Vec<Case>> {
    let mut all: Vec<Case> = Vec::new();
    let mut file: Option<String> = None;
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("== ") {
            all.push(Case { name: name.trim().to_owned(), ..Case::default() });
            file = None;
            continue;
        }
        let Some(case) = all.last_mut() else { continue };
        if let Some(path) = line.strip_prefix("-- ").and_then(|rest| rest.strip_suffix(" --")) {
            if path != "run" {
                case.files.push((path.to_owned(), String::new()));
            }
            file = Some(path.to_owned());
            continue;
        }
        match file.as_deref() {
            Some("run") => case.script += &format!("{line}\n"),
            Some(_) => {
                if let Some((_, text)) = case.files.last_mut() {
                    *text += &format!("{line}\n");
                }
            }
            None => directive(case, line.trim())?,
        }
    }
    for case in &mut all {
        for (_, text) in &mut case.files {
            // The empty line before the next part is no part of a file.
            while text.ends_with("\n\n") {
                text.pop();
            }
        }
        if case.script.trim().is_empty() {
            return Err(format!("case {} has no script", case.name).into());
        }
    }
    Ok(all)
}

fn directive(case: &mut Case, line: &str) -> Result<()> {
    match line.split_once(": ") {
        None if line.is_empty() => {}
        None if line == "fails" => case.fails = true,
        None if line == "exact" => case.exact = true,
        None if line == "meets" => case.meets = true,
        Some(("gap", why)) => case.gap = Some(why.to_owned()),
        Some(("error", text)) => case.errors.push(text.to_owned()),
        Some(("known", text)) => {
            let (known, why) = text.split_once(" | ").ok_or("a known difference has no reason")?;
            case.known.push((known.to_owned(), why.to_owned()));
        }
        _ => return Err(format!("case {}: what is {line:?}?", case.name).into()),
    }
    Ok(())
}
