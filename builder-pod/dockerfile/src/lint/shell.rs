//! Shell commands as far as rules look at them: simple commands and their words. Nothing is run, and what can't be
//! read this way is no finding.

/// Words of a simple command, quotes off.
pub(crate) type Words = Vec<String>;

/// The simple commands of a script, in order; each with what stands between it and the next (`&&`, `|`, …).
pub(crate) fn commands(script: &str) -> Vec<(Words, String)> {
    let mut out: Vec<(Words, String)> = Vec::new();
    let (mut words, mut word, mut quote) = (Words::new(), None::<String>, None);
    let mut chars = script.chars().peekable();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some('"') | None, '\\') => match chars.next() {
                None | Some('\n') => {}
                Some(next) => word.get_or_insert_default().push(next),
            },
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, '#') if word.is_none() => while chars.next_if(|c| *c != '\n').is_some() {},
            (None, '&' | '|' | ';' | '\n' | '(' | ')') => {
                words.extend(word.take());
                let mut operator = c.to_string();
                if let Some(next) = chars.next_if(|next| *next == c && (c == '&' || c == '|')) {
                    operator.push(next);
                }
                if !words.is_empty() {
                    out.push((std::mem::take(&mut words), operator));
                }
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    if !words.is_empty() {
        out.push((words, String::new()));
    }
    for (words, _) in &mut out {
        let plain = words.iter().position(|word| !is_prefix(word)).unwrap_or(words.len());
        words.drain(..plain);
    }
    out.retain(|(words, _)| !words.is_empty());
    out
}

/// What stands before the command itself: assignments and the shell's own words.
fn is_prefix(word: &str) -> bool {
    let assignment = word.split_once('=').is_some_and(|(name, _)| {
        !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    });
    assignment || matches!(word, "if" | "then" | "do" | "else" | "!" | "{" | "time" | "exec" | "env" | "sudo")
}

/// True for a command that begins with these words, flags in between left out.
pub(crate) fn begins(words: &Words, with: &[&str]) -> bool {
    let mut plain = words.iter().filter(|word| !word.starts_with('-'));
    with.iter().all(|wanted| plain.next().is_some_and(|word| word == wanted || program(word) == *wanted))
}

/// The name of a program without its directory.
pub(crate) fn program(word: &str) -> &str {
    word.rsplit('/').next().unwrap_or(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_its_simple_commands() {
        let script = "DEBIAN_FRONTEND=x apt-get -qq update && \\\n apt-get install -y 'a b' c; ls | wc # no\nif true; then x; fi";
        let found = commands(script);
        let texts: Vec<String> =
            found.iter().map(|(words, after)| format!("{}{after}", words.join(" "))).collect();
        assert_eq!(
            texts,
            ["apt-get -qq update&&", "apt-get install -y a b c;", "ls|", "wc\n", "true;", "x;", "fi"]
        );
        assert!(begins(&found[0].0, &["apt-get", "update"]) && !begins(&found[1].0, &["apt-get", "update"]));
    }

    #[test]
    fn anything_is_read_without_a_complaint() {
        for text in ["'", "\"\\", "&&&", "|||;;", "#", "a 'b"] {
            commands(text);
        }
    }
}
