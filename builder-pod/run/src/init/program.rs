//! Which file a step's first argument means, and the environment it gets.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::spec::PATH_DEFAULT;

/// Finds the program below the current root, or says why not.
pub(crate) fn locate(name: &str, env: &[String]) -> Result<String, String> {
    if name.contains('/') {
        return Ok(name.to_owned());
    }
    let path = env.iter().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or(PATH_DEFAULT);
    let mut refused = false;
    for dir in path.split(':') {
        let dir = if dir.is_empty() { "." } else { dir };
        let candidate = format!("{dir}/{name}");
        match std::fs::metadata(Path::new(&candidate)) {
            Ok(metadata) if metadata.is_file() && metadata.permissions().mode() & 0o111 != 0 => {
                return Ok(candidate);
            }
            Ok(metadata) => refused |= metadata.is_file(),
            Err(_) => {}
        }
    }
    Err(if refused {
        format!("exec: \"{name}\": permission denied")
    } else {
        format!("exec: \"{name}\": executable file not found in $PATH")
    })
}

/// The step's environment with its defaults; of a name given twice, the last value counts.
pub(crate) fn environment(given: &[String], home: &str) -> Vec<String> {
    let name = |entry: &str| entry.split_once('=').map_or(entry.to_owned(), |(name, _)| name.to_owned());
    let mut env: Vec<String> = Vec::with_capacity(given.len() + 2);
    for entry in given {
        match env.iter_mut().find(|earlier| name(earlier) == name(entry)) {
            Some(earlier) => entry.clone_into(earlier),
            None => env.push(entry.clone()),
        }
    }
    for (default, value) in [("PATH", PATH_DEFAULT), ("HOME", home)] {
        if !env.iter().any(|entry| name(entry) == default) {
            env.push(format!("{default}={value}"));
        }
    }
    env
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_fill_gaps_and_the_last_value_wins() {
        let given = ["A=1".to_owned(), "HOME=/h".to_owned(), "A=2".to_owned()];
        assert_eq!(environment(&given, "/root"), ["A=2", "HOME=/h", &format!("PATH={PATH_DEFAULT}")]);
        assert_eq!(environment(&[], "/root")[1], "HOME=/root");
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = locate("no-such-program", &[]).expect_err("missing");
        assert_eq!(error, "exec: \"no-such-program\": executable file not found in $PATH");
    }
}
