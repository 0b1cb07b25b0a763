//! `WWW-Authenticate` headers (RFC 9110, section 11.6.1).

/// How a registry wants to be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// User name and password with each request.
    Basic,
    /// A token of the server at `realm`.
    Bearer {
        /// Address of the token server.
        realm: String,
        /// Name that the registry has there.
        service: Option<String>,
        /// Scopes that the refused request needs.
        scopes: Vec<String>,
    },
}

/// Reads all challenges of one header value; unknown schemes are left out.
pub(crate) fn parse(header: &str) -> Vec<Challenge> {
    let mut found = Vec::new();
    for (scheme, params) in split(header) {
        let param = |name: &str| {
            params.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.clone())
        };
        if scheme.eq_ignore_ascii_case("basic") {
            found.push(Challenge::Basic);
        } else if scheme.eq_ignore_ascii_case("bearer")
            && let Some(realm) = param("realm")
        {
            let scopes = param("scope").unwrap_or_default();
            found.push(Challenge::Bearer {
                realm,
                service: param("service").filter(|s| !s.is_empty()),
                scopes: scopes.split_ascii_whitespace().map(str::to_owned).collect(),
            });
        }
    }
    found
}

type Params = Vec<(String, String)>;

/// Splits a header into schemes and their parameters. A word that no `=` follows starts a scheme.
fn split(header: &str) -> Vec<(String, Params)> {
    let mut schemes: Vec<(String, Params)> = Vec::new();
    let mut rest = header.trim_start();
    while !rest.is_empty() {
        let end = rest.find(|c: char| matches!(c, '=' | ',') || c.is_whitespace()).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        let after = after.trim_start();
        if let Some(value) = after.strip_prefix('=') {
            let (value, after) = value_of(value.trim_start());
            if let Some((_, params)) = schemes.last_mut() {
                params.push((word.to_owned(), value));
            }
            rest = after;
        } else {
            if !word.is_empty() {
                schemes.push((word.to_owned(), Vec::new()));
            }
            rest = after;
        }
        rest = rest.trim_start_matches(|c: char| c == ',' || c.is_whitespace());
    }
    schemes
}

/// A quoted string or a token at the start of `text`, and what follows.
fn value_of(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(|c: char| c == ',' || c.is_whitespace()).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scopes: &[&str]) -> Challenge {
        Challenge::Bearer {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
            scopes: scopes.iter().map(|s| (*s).to_owned()).collect(),
        }
    }

    #[test]
    fn challenges_of_real_registries_are_understood() {
        for (header, wanted) in [
            ("Basic realm=\"Registry Realm\"", vec![Challenge::Basic]),
            ("basic", vec![Challenge::Basic]),
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/debian:pull""#,
                vec![bearer(
                    "https://auth.docker.io/token",
                    Some("registry.docker.io"),
                    &["repository:library/debian:pull"],
                )],
            ),
            (
                r#"BEARER Realm=https://a.example/t , Service="" ,error="x, y=\"z\"""#,
                vec![bearer("https://a.example/t", None, &[])],
            ),
            (
                r#"Negotiate, Basic realm="a", Bearer realm="https://t",scope="a b""#,
                vec![Challenge::Basic, bearer("https://t", None, &["a", "b"])],
            ),
            ("Bearer service=x", vec![]),
            ("", vec![]),
            (",,, =", vec![]),
            ("Bearer realm=\"unterminated", vec![bearer("unterminated", None, &[])]),
        ] {
            assert_eq!(parse(header), wanted, "{header}");
        }
    }
}
