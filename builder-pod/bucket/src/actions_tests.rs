use super::*;

fn token(claims: &str) -> String {
    let payload = base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, claims);
    format!("e30.{payload}.c2ln")
}

#[test]
fn scopes_are_read_from_the_token_and_keys_are_buildkits() {
    let ac = r#"[{\"Scope\":\"refs/heads/main\",\"Permission\":3},{\"Scope\":\"\",\"Permission\":1}]"#;
    let claims = format!(r#"{{"exp":9999999999,"nbf":0,"ac":"{ac}"}}"#);
    let attributes = [("token", token(&claims)), ("url", "http://127.0.0.1:1/secret/".to_owned())];
    let attributes = attributes.map(|(name, value)| (name.to_owned(), value)).into();
    let settings = crate::Settings::read("gha", &attributes, |_| None).unwrap();
    assert!(!format!("{settings:?} {settings}").contains("secret"));
    let crate::Kind::Actions(settings) = &settings.kind else { panic!("another kind") };
    let actions = Actions::open(settings).unwrap();
    assert_eq!(actions.scopes.iter().map(|scope| scope.permission).collect::<Vec<_>>(), [3, 1]);
    assert_eq!(actions.index(""), "index-buildkit-1-e3b0c442");
    assert!(Actions::blob(Digest::of(b"")).starts_with("buildkit-blob-1-sha256:e3b0c442"));
}

#[test]
fn a_token_that_is_none_is_told_without_its_text() {
    for (text, why) in [
        ("hush".to_owned(), "without claims"),
        ("a.hush!.b".to_owned(), "can't be read"),
        (token(r#"{"exp":1,"ac":"[]"}"#), "expired"),
        (token(r#"{"exp":9999999999}"#), "without access controls"),
    ] {
        let error = scopes(&text).err().unwrap().to_string();
        assert!(error.contains(why) && !error.contains("hush"), "{error}");
    }
}

#[test]
fn what_is_asked_for_is_encoded() {
    assert_eq!(asked("u", &[("keys", "a b#1:é"), ("v", "~")]), "u?keys=a%20b%231%3A%C3%A9&v=~");
    assert_eq!(asked("u?sig=x", &[("comp", "block")]), "u?sig=x&comp=block");
}
