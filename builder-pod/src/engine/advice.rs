//! The way out of a step's failure, as far as it can be told from what is there.
//!
//! Pure: directories are given as a function that lists them.

use std::collections::VecDeque;

use lapstrake_dockerfile::nearest;

use crate::error::Advice;

/// Directories that are looked into for a file of the same name.
const DIRECTORIES_MAX: usize = 2000;
/// Directories that hold what nobody copies by name.
const PASSED_OVER: [&str; 3] = [".git", "node_modules", "target"];

/// What to say of a path that is not there, or is hidden from the build.
///
/// `names` lists a directory (`""` is the root; `None` where it is none), hidden entries too; `ignorable`: the tree is
/// a context, which an ignore file reduces.
pub(super) fn missing(
    path: &str,
    ignorable: bool,
    names: impl Fn(&str) -> Option<Vec<String>>,
) -> Option<Advice> {
    let plain = path.trim_matches('/');
    let word = Some(path.to_owned());
    if plain.is_empty() || plain.contains(['*', '?', '[']) {
        return None;
    }
    // Paths of a context are written without the slash that those of an image have.
    let meant = |other: &str| format!("did you mean {}{other}?", if ignorable { "" } else { "/" });
    let text = match similar(plain, &names) {
        Similar::Itself if ignorable => {
            format!("it is in the context, but .dockerignore leaves it out; add a line !{plain} to it")
        }
        Similar::Itself => return None,
        Similar::Other(other) => meant(&other),
        Similar::None => match elsewhere(plain, &names) {
            Some(other) => meant(&other),
            None if ignorable => "paths are relative to the context's directory".to_owned(),
            None => return None,
        },
    };
    Some(Advice { text, word })
}

enum Similar {
    /// The path is there as it is.
    Itself,
    /// One that is written alike.
    Other(String),
    None,
}

/// Goes down a path, and takes the nearest name where the right one is not there.
fn similar(path: &str, names: &impl Fn(&str) -> Option<Vec<String>>) -> Similar {
    let mut found = String::new();
    let mut changed = false;
    for part in path.split('/').filter(|part| !part.is_empty() && *part != ".") {
        let Some(here) = names(&found) else { return Similar::None };
        let name = match here.iter().any(|name| name == part) {
            true => part,
            false => match nearest(part, here.iter().map(String::as_str)) {
                Some(name) => {
                    changed = true;
                    name
                }
                None => return Similar::None,
            },
        };
        if !found.is_empty() {
            found.push('/');
        }
        found.push_str(name);
    }
    if changed { Similar::Other(found) } else { Similar::Itself }
}

/// A file of the same name in another directory, the one that is the least deep.
fn elsewhere(path: &str, names: &impl Fn(&str) -> Option<Vec<String>>) -> Option<String> {
    let wanted = path.rsplit('/').next()?;
    let mut todo = VecDeque::from([String::new()]);
    let mut seen = 0;
    while let Some(dir) = todo.pop_front() {
        seen += 1;
        let Some(mut here) = names(&dir) else { continue };
        here.sort();
        let join = |name: &str| if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") };
        if here.iter().any(|name| name == wanted) {
            return Some(join(wanted));
        }
        let below = here.iter().filter(|name| !PASSED_OVER.contains(&name.as_str())).map(|name| join(name));
        todo.extend(below.take(DIRECTORIES_MAX.saturating_sub(seen + todo.len())));
    }
    None
}

/// What to say of a secret that the build was not given.
pub(super) fn secret(id: &str, given: &[String]) -> Advice {
    let text = match nearest(id, given.iter().map(String::as_str)) {
        Some(other) => format!("did you mean {other}, which the build was given?"),
        None => format!("give it with --secret id={id},src=FILE, or in the ImageBuild's spec.secrets"),
    };
    Advice { text, word: Some(id.to_owned()) }
}

/// What to say of an agent that the build was not given.
pub(super) fn agent(id: &str, given: &[String]) -> Advice {
    let text = match nearest(id, given.iter().map(String::as_str)) {
        Some(other) => format!("did you mean {other}, which the build was given?"),
        None => format!("give it with --ssh {id}, or in the ImageBuild's spec.ssh"),
    };
    Advice { text, word: Some(id.to_owned()) }
}

/// What to say of a command's exit code; `absent` are the secrets that the step mounts and the build was not given.
pub(super) fn exit(code: i32, absent: &[String]) -> Option<Advice> {
    let text = match (code, absent) {
        (_, [id, ..]) => format!(
            "secret {id} was not given to the build: give it with --secret id={id},src=FILE or in the ImageBuild's \
             spec.secrets, and write required into the mount to be told earlier"
        ),
        (126, []) => {
            "what the step runs is there and can't be executed: it needs chmod +x, or is made for another \
                      platform"
                .to_owned()
        }
        (127, []) => {
            "a command was not found: the base image lacks it, it is not in PATH, or an earlier step has to \
                      install it"
                .to_owned()
        }
        (137, []) => "it was killed (SIGKILL)".to_owned(),
        (139, []) => "it crashed (SIGSEGV)".to_owned(),
        _ => return None,
    };
    Some(Advice { text, word: absent.first().cloned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &str) -> Option<Vec<String>> {
        let here: &[&str] = match dir {
            "" => &["requirements.txt", "src", ".git", "Makefile"],
            "src" => &["main.py", "lib"],
            "src/lib" => &["util.py"],
            ".git" => &["config"],
            _ => return None,
        };
        Some(here.iter().map(|name| (*name).to_owned()).collect())
    }

    fn told(path: &str) -> Option<String> {
        missing(path, true, names).map(|advice| advice.text)
    }

    #[test]
    fn a_path_that_is_nearly_right_is_put_right() {
        assert_eq!(told("/reqirements.txt").as_deref(), Some("did you mean requirements.txt?"));
        assert_eq!(told("/Src/main.py").as_deref(), Some("did you mean src/main.py?"));
        assert_eq!(told("/src/libs/util.py").as_deref(), Some("did you mean src/lib/util.py?"));
        assert_eq!(told("makefile").as_deref(), Some("did you mean Makefile?"));
    }

    #[test]
    fn a_file_in_another_directory_is_found_and_what_is_ignored_is_told() {
        assert_eq!(told("/util.py").as_deref(), Some("did you mean src/lib/util.py?"));
        assert_eq!(told("/config").as_deref(), Some("paths are relative to the context's directory"));
        let hidden = told("/src/main.py").expect("it is there");
        assert!(hidden.ends_with("add a line !src/main.py to it"), "{hidden}");
        assert!(missing("/src/main.py", false, names).is_none());
        let of_stage = missing("/src/mian.py", false, names).map(|advice| advice.text);
        assert_eq!(of_stage.as_deref(), Some("did you mean /src/main.py?"));
        assert!(told("/src/*.rs").is_none() && told("/").is_none());
    }

    #[test]
    fn a_secret_is_told_by_its_nearest_name_or_by_the_way_to_give_it() {
        let given = ["npm-token".to_owned()];
        assert_eq!(secret("npm_token", &given).text, "did you mean npm-token, which the build was given?");
        assert!(secret("other", &given).text.contains("--secret id=other,src=FILE"));
        assert!(
            exit(1, &["token".to_owned()])
                .is_some_and(|advice| advice.text.starts_with("secret token was not"))
        );
        assert!(exit(1, &[]).is_none() && exit(127, &[]).is_some());
    }
}
