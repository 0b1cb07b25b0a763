use std::os::unix::fs::PermissionsExt as _;

use std::sync::Arc;
use std::time::Duration;

use lapstrake_registry::{
    BlobSource, Class, Credentials, Keeper, KeeperAnswer, KeptToken, Progress, Pushed, Redacted, TokenWanted,
};
use lapstrake_testkit::image::reference;
use lapstrake_testkit::registry::{Ask, Auth, Fault, Options, Registry, What};

use crate::{app, client, image, noise, pull, with_credentials};

const PASSWORD: &str = "correct-horse-7731";
const WRONG: &str = "battery-staple-9944";

async fn registry(auth: Auth) -> Registry {
    let registry = Registry::start(Options { auth, ..Options::default() }).await.unwrap();
    registry.put_image("app", "1", &image()).unwrap();
    registry
}

fn tokens(change: impl FnOnce(&mut Vec<String>, &mut bool, &mut usize, &mut Vec<String>)) -> Auth {
    let mut auth = Auth::token("user", PASSWORD);
    if let Auth::Token { identity_tokens, anonymous_pull, uses, readers, .. } = &mut auth {
        change(identity_tokens, anonymous_pull, uses, readers);
    }
    auth
}

#[tokio::test]
async fn an_anonymous_token_is_fetched_once() {
    let registry = registry(tokens(|_, anonymous, _, _| *anonymous = true)).await;
    let (client, image) = (client(), image());
    for _ in 0..3 {
        client.resolve(&app(&registry)).await.unwrap();
        client.manifest(&app(&registry)).await.unwrap();
        pull(&client, &app(&registry), &image.parsed.layers[0]).await.unwrap();
    }
    assert_eq!(registry.count(Ask::Token), 1);
    // One refusal at the very start taught the client how to ask.
    assert_eq!(registry.log().iter().filter(|e| e.status == 401).count(), 1);
}

#[tokio::test]
async fn many_requests_at_once_share_one_token() {
    let registry = registry(tokens(|_, anonymous, _, _| *anonymous = true)).await;
    let (client, name) = (client(), app(&registry));
    let all = (0..8).map(|_| client.resolve(&name));
    futures::future::try_join_all(all).await.unwrap();
    assert_eq!(registry.count(Ask::Token), 1);
}

#[tokio::test]
async fn basic_credentials_are_sent_only_after_a_challenge_and_then_at_once() {
    let registry = registry(Auth::basic("user", PASSWORD)).await;
    let client = with_credentials(Credentials::none().with_basic(&registry.host(), "user", PASSWORD));
    client.resolve(&app(&registry)).await.unwrap();
    client.resolve(&app(&registry)).await.unwrap();
    let auth: Vec<_> = registry.log().into_iter().map(|e| e.auth).collect();
    assert_eq!(auth, [None, Some("Basic".to_owned()), Some("Basic".to_owned())]);
}

#[tokio::test]
async fn an_open_registry_never_sees_credentials() {
    let registry = registry(Auth::None).await;
    let client = with_credentials(Credentials::none().with_basic(&registry.host(), "user", PASSWORD));
    client.resolve(&app(&registry)).await.unwrap();
    assert!(registry.log().iter().all(|e| e.auth.is_none()));
}

#[tokio::test]
async fn no_credentials_and_wrong_ones_are_told_apart() {
    for auth in [Auth::basic("user", PASSWORD), Auth::token("user", PASSWORD)] {
        let registry = registry(auth.clone()).await;
        let host = registry.host();
        let error = client().resolve(&app(&registry)).await.unwrap_err();
        assert_eq!((error.class(), error.status()), (Class::Denied, Some(401)), "{auth:?}");
        assert!(error.hint().unwrap().contains(&format!("no credentials for {host}")), "{error:#}");

        let client = with_credentials(Credentials::none().with_basic(&host, "user", WRONG));
        let error = client.resolve(&app(&registry)).await.unwrap_err();
        assert_eq!((error.class(), error.status()), (Class::Denied, Some(401)), "{auth:?}");
        let hint = error.hint().unwrap();
        assert!(hint.contains(&format!("credentials under \"{host}\" were refused")), "{error:#}");
        assert!(error.to_string().contains(&host), "{error}");
    }
}

#[tokio::test]
async fn all_matching_credentials_are_tried_and_the_right_one_is_remembered() {
    for auth in [Auth::basic("user", PASSWORD), Auth::token("user", PASSWORD)] {
        let registry = registry(auth.clone()).await;
        let host = registry.host();
        let credentials = Credentials::none()
            .with_basic(&format!("{host}/app"), "user", WRONG)
            .merge(Credentials::none().with_basic(&host, "user", PASSWORD));
        let client = with_credentials(credentials);
        client.resolve(&app(&registry)).await.unwrap();
        let before = registry.log().len();
        client.resolve(&app(&registry)).await.unwrap();
        assert_eq!(registry.log().len(), before + 1, "{auth:?}");
    }
}

#[tokio::test]
async fn a_reader_may_not_push_and_is_told_so() {
    let registry = registry(tokens(|_, _, _, readers| readers.push("user".to_owned()))).await;
    let client = with_credentials(Credentials::none().with_basic(&registry.host(), "user", PASSWORD));
    client.resolve(&app(&registry)).await.unwrap();
    let (bytes, blob) = noise(100);
    let source = BlobSource::bytes(bytes);
    let error = client.push_blob(&app(&registry), &blob, &source, &[], &Progress::none()).await.unwrap_err();
    assert_eq!(error.class(), Class::Denied, "{error:#}");
    assert!(error.hint().is_some());
}

#[tokio::test]
async fn a_token_that_ends_in_mid_transfer_is_renewed() {
    for uses in [2, 3, 4] {
        let registry = registry(tokens(|_, _, left, _| *left = uses)).await;
        let client = with_credentials(Credentials::none().with_basic(&registry.host(), "user", PASSWORD));
        let (bytes, blob) = noise(3 << 20);
        let source = BlobSource::bytes(bytes.clone());
        client.push_blob(&app(&registry), &blob, &source, &[], &Progress::none()).await.unwrap();
        assert!(pull(&client, &app(&registry), &blob).await.unwrap() == bytes, "{uses}");
        registry.revoke_tokens();
        client.resolve(&app(&registry)).await.unwrap();
    }
}

#[tokio::test]
async fn a_mount_asks_for_both_repositories_in_one_token() {
    let registry = registry(Auth::token("user", PASSWORD)).await;
    let client = with_credentials(Credentials::none().with_basic(&registry.host(), "user", PASSWORD));
    let (name, image) = (reference(&registry.host(), "copy:1"), image());
    let (blob, source) = (&image.parsed.layers[0], BlobSource::bytes(Vec::new()));
    let pushed =
        client.push_blob(&name, blob, &source, &["app".to_owned()], &Progress::none()).await.unwrap();
    assert_eq!(pushed, Pushed::Mounted { from: "app".to_owned() });
    let log = registry.log();
    let wide = log.iter().filter(|e| e.ask == Ask::Token).any(|e| {
        e.path.contains("scope=repository%3Aapp%3Apull&")
            && e.path.contains("scope=repository%3Acopy%3Apull%2Cpush")
    });
    assert!(wide, "{log:?}");
}

#[tokio::test]
async fn an_identity_token_goes_by_oauth2() {
    let registry = registry(tokens(|identity, _, _, _| identity.push("refresh-5512".to_owned()))).await;
    let config = |token: &str| {
        let json = format!(r#"{{"auths":{{"{}":{{"identitytoken":"{token}"}}}}}}"#, registry.host());
        Credentials::parse(json.as_bytes(), "test").unwrap()
    };
    with_credentials(config("refresh-5512")).resolve(&app(&registry)).await.unwrap();
    let posts: Vec<_> =
        registry.log().into_iter().filter(|e| e.ask == Ask::Token).map(|e| e.method).collect();
    assert_eq!(posts, ["POST"]);
    let error = with_credentials(config("refresh-0000")).resolve(&app(&registry)).await.unwrap_err();
    assert_eq!(error.class(), Class::Denied);
    assert!(!format!("{error:#}").contains("refresh-0000"), "{error:#}");
}

#[tokio::test]
async fn a_failing_token_server_is_asked_again() {
    let registry = registry(tokens(|_, anonymous, _, _| *anonymous = true)).await;
    registry.inject(Fault::next(Ask::Token, What::Status(503, None)).times(2));
    client().resolve(&app(&registry)).await.unwrap();
    registry.inject(Fault::always(Ask::Token, What::Status(503, None)));
    let error = client().resolve(&app(&registry)).await.unwrap_err();
    assert_eq!((error.class(), error.status()), (Class::Unavailable, Some(503)), "{error}");
    registry.heal();
    registry.inject(Fault::always(Ask::Token, What::Body(200, r#"{"nothing":1}"#.to_owned())));
    let error = client().resolve(&app(&registry)).await.unwrap_err();
    assert_eq!(error.class(), Class::Invalid, "{error}");
}

#[tokio::test]
async fn a_credential_helper_is_asked_for_the_host() {
    let registry = registry(Auth::basic("user", PASSWORD)).await;
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("docker-credential-lapstraketest");
    let asked = dir.path().join("asked");
    let script = format!(
        "#!/bin/sh\ncat >> {}\nprintf '{{\"Username\":\"user\",\"Secret\":\"{PASSWORD}\"}}'\n",
        asked.display()
    );
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let json = format!(r#"{{"credHelpers":{{"{}":"lapstraketest"}}}}"#, registry.host());
    let credentials = Credentials::parse(json.as_bytes(), "test").unwrap().with_helper_dir(dir.path());
    let client = with_credentials(credentials);
    client.resolve(&app(&registry)).await.unwrap();
    client.manifest(&app(&registry)).await.unwrap();
    assert_eq!(std::fs::read_to_string(asked).unwrap(), registry.host());
}

#[tokio::test]
async fn credentials_do_not_follow_a_redirect_to_another_host() {
    let (registry, store) = (registry(Auth::basic("user", PASSWORD)).await, registry(Auth::None).await);
    let origin = format!("http://{}", store.host());
    registry.inject(Fault::always(Ask::BlobGet, What::Redirect(origin)));
    let client = with_credentials(Credentials::none().with_basic(&registry.host(), "user", PASSWORD));
    client.resolve(&app(&registry)).await.unwrap();
    let layer = image().parsed.layers[0].clone();
    store.inject(Fault::next(Ask::BlobGet, What::Cut(10)));
    pull(&client, &app(&registry), &layer).await.unwrap();
    // Also what goes on after a break starts at the registry: the store's address may have expired.
    assert_eq!((registry.count(Ask::BlobGet), store.count(Ask::BlobGet)), (2, 2));
    assert!(store.log().iter().all(|e| e.auth.is_none()));
    assert!(store.log()[1].range.is_some());
}

/// Somebody who has one user's password, and may fetch tokens himself.
#[derive(Debug)]
struct Client {
    password: Option<&'static str>,
    fetches: bool,
}

impl Keeper for Client {
    fn credentials<'a>(&'a self, _: &'a str) -> KeeperAnswer<'a, Option<(String, Redacted)>> {
        Box::pin(async { Ok(self.password.map(|password| ("user".to_owned(), Redacted::new(password)))) })
    }

    fn token<'a>(&'a self, wanted: &'a TokenWanted) -> KeeperAnswer<'a, Option<KeptToken>> {
        Box::pin(async move {
            if !self.fetches {
                return Ok(None);
            }
            let mut url = reqwest::Url::parse(&wanted.realm).map_err(|e| e.to_string())?;
            url.query_pairs_mut()
                .append_pair("service", wanted.service.as_deref().unwrap_or_default())
                .extend_pairs(wanted.scopes.iter().map(|scope| ("scope", scope)));
            let request = reqwest::Client::new().get(url);
            let answer = request.basic_auth("user", self.password).send().await.map_err(|e| e.to_string())?;
            let answer: serde_json::Value =
                serde_json::from_slice(&answer.bytes().await.map_err(|e| e.to_string())?)
                    .map_err(|e| e.to_string())?;
            let value = answer["token"].as_str().ok_or("no token for this user")?;
            Ok(Some(KeptToken { value: Redacted::new(value), expires_in: Duration::ZERO }))
        })
    }
}

#[tokio::test]
async fn who_keeps_the_credentials_fetches_tokens_or_lends_them() {
    for auth in [Auth::basic("user", PASSWORD), Auth::token("user", PASSWORD)] {
        for fetches in [false, true] {
            let registry = registry(auth.clone()).await;
            let keeper = Client { password: Some(PASSWORD), fetches };
            let client = with_credentials(Credentials::none().with_keeper(Arc::new(keeper)));
            client.resolve(&app(&registry)).await.unwrap();
            client.manifest(&app(&registry)).await.unwrap();
            assert!(registry.count(Ask::Token) <= 1, "a token is kept as long as it holds");
        }
    }
}

#[tokio::test]
async fn a_client_without_credentials_is_told_to_log_in() {
    let registry = registry(Auth::basic("user", PASSWORD)).await;
    let keeper = Client { password: None, fetches: false };
    let client = with_credentials(Credentials::none().with_keeper(Arc::new(keeper)));
    let error = client.resolve(&app(&registry)).await.unwrap_err();
    assert_eq!(error.class(), Class::Denied);
    assert!(error.to_string().contains(&format!("docker login {}", registry.host())), "{error}");
}

/// A registry that has nothing, and counts its connections.
async fn counted() -> (String, Arc<std::sync::atomic::AtomicUsize>) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let count = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            counter.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                // Requests without a body, each in one piece on loopback.
                while stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {
                    let answer = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n";
                    stream.write_all(answer).await.unwrap();
                }
            });
        }
    });
    (host, count)
}

#[tokio::test]
async fn clients_with_credentials_of_their_own_share_connections() {
    let (host, connections) = counted().await;
    let first = client();
    for number in 0..5 {
        let other = first.with_credentials(Credentials::none().with_basic(&host, &format!("u{number}"), "p"));
        let error = other.resolve(&reference(&host, "app:1")).await.unwrap_err();
        assert_eq!(error.class(), Class::NotFound);
    }
    assert_eq!(connections.load(std::sync::atomic::Ordering::SeqCst), 1);
}
