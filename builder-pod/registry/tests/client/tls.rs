use lapstrake_registry::{Class, Client, Config, Credentials, HostConfig, HostsConfig};
use lapstrake_testkit::image::reference;
use lapstrake_testkit::registry::{Ask, Auth, Options, Registry};

use crate::{app, config, image};

async fn secure(name: &str, auth: Auth) -> Registry {
    let options = Options { tls_names: vec![name.to_owned()], auth, ..Options::default() };
    let registry = Registry::start(options).await.unwrap();
    registry.put_image("app", "1", &image()).unwrap();
    registry
}

fn with(host: &str, settings: HostConfig) -> Client {
    let hosts = HostsConfig::default().with(host, HostConfig { http: Some(false), ..settings });
    Client::new(Config { hosts, ..config() })
}

#[tokio::test]
async fn a_configured_ca_is_trusted_and_an_unknown_one_is_not() {
    let registry = secure("localhost", Auth::None).await;
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, registry.ca_pem().unwrap()).unwrap();
    let client = with(&registry.host(), HostConfig { ca: vec![ca], ..HostConfig::default() });
    client.resolve(&app(&registry)).await.unwrap();

    let text = registry.ca_pem().unwrap().into();
    let client = with(&registry.host(), HostConfig { ca: vec![text], ..HostConfig::default() });
    client.resolve(&app(&registry)).await.unwrap();

    let error = with(&registry.host(), HostConfig::default()).resolve(&app(&registry)).await.unwrap_err();
    assert_eq!(error.class(), Class::Invalid, "{error}");
    assert!(error.hint().unwrap().contains("configure the CA certificate"), "{error:#}");

    let insecure = HostConfig { insecure: true, ..HostConfig::default() };
    with(&registry.host(), insecure).resolve(&app(&registry)).await.unwrap();
}

#[tokio::test]
async fn a_certificate_for_another_name_is_refused() {
    let registry = secure("elsewhere.example", Auth::None).await;
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, registry.ca_pem().unwrap()).unwrap();
    let host = registry.addr().to_string();
    let client = with(&host, HostConfig { ca: vec![ca], ..HostConfig::default() });
    let error = client.resolve(&reference(&host, "app:1")).await.unwrap_err();
    assert!(error.hint().unwrap().contains("check the server's certificate"), "{error:#}");
}

#[tokio::test]
async fn tls_spoken_to_plain_http_and_the_reverse_are_explained() {
    let plain = Registry::open().await;
    let error = with(&plain.host(), HostConfig::default()).resolve(&app(&plain)).await.unwrap_err();
    assert_eq!(error.class(), Class::Invalid, "{error}");
    assert!(error.hint().unwrap().contains("the server speaks plain http"), "{error:#}");

    let tls = secure("localhost", Auth::None).await;
    let error = crate::client().resolve(&app(&tls)).await.unwrap_err();
    assert!(error.hint().is_some_and(|hint| hint.contains("may speak TLS")), "{error:#}");
}

#[tokio::test]
async fn tokens_work_over_tls() {
    let registry = secure("localhost", Auth::token("user", "pass")).await;
    let credentials = Credentials::none().with_basic(&registry.host(), "user", "pass");
    let settings = HostConfig { http: Some(false), insecure: true, ..HostConfig::default() };
    let hosts = HostsConfig::default().with(registry.host(), settings);
    let client = Client::new(Config { hosts, credentials, ..config() });
    client.resolve(&app(&registry)).await.unwrap();
    assert_eq!(registry.count(Ask::Token), 1);
}

#[tokio::test]
async fn files_that_are_missing_or_no_certificates_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let bad = dir.path().join("bad.pem");
    std::fs::write(&bad, "nonsense").unwrap();
    let missing = dir.path().join("missing.pem");
    for path in [&bad, &missing] {
        let settings = HostConfig { ca: vec![path.clone()], ..HostConfig::default() };
        let error = with("r.example", settings).resolve(&reference("r.example", "a")).await.unwrap_err();
        assert_eq!(error.class(), Class::Invalid);
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }
    let half = HostConfig { client_cert: Some(bad), ..HostConfig::default() };
    let error = with("r.example", half).resolve(&reference("r.example", "a")).await.unwrap_err();
    assert!(error.to_string().contains("must be given together"), "{error}");
}
