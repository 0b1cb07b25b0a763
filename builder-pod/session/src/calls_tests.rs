//! Secrets, agents, credentials, uploads and archives, there and back, and when the client stops in the middle.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::{Stream, StreamExt};
use lapstrake_api::auth::auth_server::{Auth, AuthServer};
use lapstrake_api::auth::file_send_server::{FileSend, FileSendServer};
use lapstrake_api::secrets::secrets_server::{Secrets, SecretsServer};
use lapstrake_api::sshforward::ssh_server::{Ssh, SshServer};
use lapstrake_api::upload::upload_server::{Upload, UploadServer};
use lapstrake_api::{auth, secrets, sshforward, upload};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::service::Routes;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::testing::{Connected, connect};
use crate::{Error, SECRET_BYTES_MAX, TokenRequest, method};

type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// A client that has everything; with `hangs`, it takes each call and never answers.
#[derive(Clone, Default)]
struct Client {
    hangs: bool,
    written: Arc<Mutex<Vec<u8>>>,
    headers: Arc<Mutex<HashMap<String, String>>>,
    /// Fires when a call has arrived.
    called: Arc<tokio::sync::Notify>,
}

impl Client {
    async fn called<T>(&self, answer: T) -> Result<Response<T>, Status> {
        self.called.notify_one();
        if self.hangs {
            std::future::pending::<()>().await;
        }
        Ok(Response::new(answer))
    }
}

#[tonic::async_trait]
impl Secrets for Client {
    async fn get_secret(
        &self,
        request: Request<secrets::GetSecretRequest>,
    ) -> Result<Response<secrets::GetSecretResponse>, Status> {
        let data = match request.into_inner().id.as_str() {
            "token" => b"hush".to_vec(),
            "limit" => vec![1; SECRET_BYTES_MAX],
            "large" => vec![1; SECRET_BYTES_MAX + 1],
            "broken" => return Err(Status::internal("the keyring is locked")),
            id => return Err(Status::not_found(format!("secret {id}: not found"))),
        };
        self.called(secrets::GetSecretResponse { data }).await
    }
}

#[tonic::async_trait]
impl Auth for Client {
    async fn credentials(
        &self,
        request: Request<auth::CredentialsRequest>,
    ) -> Result<Response<auth::CredentialsResponse>, Status> {
        let known = request.into_inner().host == "registry.test";
        let text = |text: &str| if known { text.to_owned() } else { String::new() };
        self.called(auth::CredentialsResponse { username: text("ann"), secret: text("pass") }).await
    }

    async fn fetch_token(
        &self,
        request: Request<auth::FetchTokenRequest>,
    ) -> Result<Response<auth::FetchTokenResponse>, Status> {
        let request = request.into_inner();
        if request.host != "registry.test" {
            return Err(Status::unauthenticated("401 from the token server"));
        }
        let token = format!("{}/{}/{}", request.service, request.realm, request.scopes.join(","));
        self.called(auth::FetchTokenResponse { token, expires_in: 300, issued_at: 7 }).await
    }

    async fn get_token_authority(
        &self,
        request: Request<auth::GetTokenAuthorityRequest>,
    ) -> Result<Response<auth::GetTokenAuthorityResponse>, Status> {
        let request = request.into_inner();
        match request.host.as_str() {
            "registry.test" => {
                let mut public_key = vec![7; 32];
                public_key[0] = request.salt[0];
                self.called(auth::GetTokenAuthorityResponse { public_key }).await
            }
            "short.test" => self.called(auth::GetTokenAuthorityResponse { public_key: vec![7] }).await,
            _ => Err(Status::unavailable("client side tokens disabled")),
        }
    }

    async fn verify_token_authority(
        &self,
        request: Request<auth::VerifyTokenAuthorityRequest>,
    ) -> Result<Response<auth::VerifyTokenAuthorityResponse>, Status> {
        let signed = [b"signature".to_vec(), request.into_inner().payload].concat();
        self.called(auth::VerifyTokenAuthorityResponse { signed }).await
    }
}

#[tonic::async_trait]
impl Ssh for Client {
    async fn check_agent(
        &self,
        request: Request<sshforward::CheckAgentRequest>,
    ) -> Result<Response<sshforward::CheckAgentResponse>, Status> {
        match request.into_inner().id.as_str() {
            "default" => self.called(sshforward::CheckAgentResponse {}).await,
            id => Err(Status::not_found(format!("unset ssh forward key {id}"))),
        }
    }

    type ForwardAgentStream = Messages<sshforward::BytesMessage>;

    /// Says back what it hears, in capitals.
    async fn forward_agent(
        &self,
        request: Request<Streaming<sshforward::BytesMessage>>,
    ) -> Result<Response<Self::ForwardAgentStream>, Status> {
        assert_eq!(request.metadata().get("buildkit.ssh.id").expect("id"), "default");
        let mut messages = request.into_inner();
        // As Go's servers do, which answer nothing before there is a first message.
        let first = messages.message().await?;
        let all = futures::stream::iter(first.map(Ok)).chain(messages);
        let answers = all.map(|message| {
            message.map(|message| sshforward::BytesMessage { data: message.data.to_ascii_uppercase() })
        });
        self.called(Box::pin(answers) as Messages<_>).await
    }
}

#[tonic::async_trait]
impl Upload for Client {
    type PullStream = Messages<upload::BytesMessage>;

    async fn pull(
        &self,
        request: Request<Streaming<upload::BytesMessage>>,
    ) -> Result<Response<Self::PullStream>, Status> {
        let header =
            |name: &str| request.metadata().get(name).expect("header").to_str().expect("text").to_owned();
        if (header("urlhost"), header("urlpath")) != ("buildkit-session".to_owned(), "/context".to_owned()) {
            return Err(Status::not_found("no such upload"));
        }
        let chunks = (0..100u8).map(|n| Ok(upload::BytesMessage { data: vec![n; 50_000] }));
        self.called(Box::pin(futures::stream::iter(chunks)) as Messages<_>).await
    }
}

#[tonic::async_trait]
impl FileSend for Client {
    type DiffCopyStream = Messages<auth::BytesMessage>;

    async fn diff_copy(
        &self,
        request: Request<Streaming<auth::BytesMessage>>,
    ) -> Result<Response<Self::DiffCopyStream>, Status> {
        for entry in request.metadata().iter() {
            if let tonic::metadata::KeyAndValueRef::Ascii(key, value) = entry {
                let value = value.to_str().expect("text").to_owned();
                self.headers.lock().expect("lock").insert(key.as_str().to_owned(), value);
            }
        }
        if request.metadata().get("buildkit-attachable-exporter-id").expect("id") == "1" {
            return Err(Status::already_exists("target already exists"));
        }
        self.called.notify_one();
        let mut messages = request.into_inner();
        while let Some(message) = messages.message().await? {
            assert!(message.data.len() <= 3 << 20, "clients take 4 MiB");
            self.written.lock().expect("lock").extend(message.data);
        }
        self.called(Box::pin(futures::stream::empty()) as Messages<_>).await
    }
}

async fn connected(client: &Client) -> Connected {
    let routes = Routes::new(SecretsServer::new(client.clone()))
        .add_service(AuthServer::new(client.clone()))
        .add_service(SshServer::new(client.clone()))
        .add_service(UploadServer::new(client.clone()))
        .add_service(FileSendServer::new(client.clone()));
    let methods = [
        method::SECRET,
        method::CREDENTIALS,
        method::FETCH_TOKEN,
        method::TOKEN_AUTHORITY,
        method::VERIFY_TOKEN_AUTHORITY,
        method::CHECK_AGENT,
        method::FORWARD_AGENT,
        method::UPLOAD,
        method::SEND,
    ];
    connect(routes, &methods).await
}

fn token_request(host: &str) -> TokenRequest {
    TokenRequest {
        host: host.to_owned(),
        client_id: "c".to_owned(),
        realm: "r".to_owned(),
        service: "s".to_owned(),
        scopes: vec!["a".to_owned(), "b".to_owned()],
    }
}

#[tokio::test]
async fn a_secret_is_its_bytes_or_none_up_to_the_limit() {
    let client = connected(&Client::default()).await;
    let session = &client.session;
    assert_eq!(session.secret("token").await.expect("secret").as_deref(), Some(&b"hush"[..]));
    assert_eq!(session.secret("none").await.expect("secret"), None);
    assert_eq!(session.secret("limit").await.expect("secret").map(|s| s.len()), Some(SECRET_BYTES_MAX));
    let error = session.secret("large").await.expect_err("too large").to_string();
    assert_eq!(error, "secret large has 512001 bytes; at most 512000 are taken");
    let error = session.secret("broken").await.expect_err("broken");
    assert_eq!(
        (error.code(), error.to_string().as_str()),
        (Code::Internal, "get secret: the keyring is locked")
    );
}

#[tokio::test]
async fn what_a_client_does_not_serve_is_not_asked_for() {
    let client = connect(Routes::default(), &[]).await;
    let session = &client.session;
    assert_eq!(session.secret("token").await.expect("secret"), None);
    assert_eq!(session.credentials("registry.test").await.expect("credentials"), None);
    let error = session.check_agent("default").await.expect_err("none").to_string();
    assert_eq!(error, "method /moby.sshforward.v1.SSH/CheckAgent is not served by the client of session one");
    assert_eq!(session.send_file(0, &[]).await.err().expect("none").code(), Code::Unimplemented);
}

#[tokio::test]
async fn a_client_answers_for_registries_without_giving_its_password_away() {
    let client = connected(&Client::default()).await;
    let session = &client.session;
    let found = session.credentials("registry.test").await.expect("call").expect("credentials");
    assert_eq!((found.username.as_str(), found.secret.as_str()), ("ann", "pass"));
    assert!(!format!("{found:?}").contains("pass"));
    assert_eq!(session.credentials("other.test").await.expect("call"), None);
    let token = session.fetch_token(token_request("registry.test")).await.expect("call").expect("token");
    assert_eq!((token.token.as_str(), token.expires_in.as_secs(), token.issued_at_s), ("s/r/a,b", 300, 7));
    assert!(!format!("{token:?}").contains("s/r"));
    let error = session.fetch_token(token_request("other.test")).await.expect_err("refused").to_string();
    assert_eq!(error, "fetch token: 401 from the token server");
    let key = session.token_authority("registry.test", &[9]).await.expect("call").expect("key");
    assert_eq!((key[0], key[1]), (9, 7));
    assert_eq!(session.token_authority("other.test", &[9]).await.expect("call"), None);
    assert!(matches!(session.token_authority("short.test", &[9]).await, Err(Error::Protocol { .. })));
    let signed = session.verify_token_authority("registry.test", b"payload", &[9]).await.expect("call");
    assert_eq!(signed.as_deref(), Some(&b"signaturepayload"[..]));
}

#[tokio::test]
async fn an_agent_is_asked_first_and_answers_after_the_last_question() {
    let client = connected(&Client::default()).await;
    client.session.check_agent("").await.expect("agent");
    let error = client.session.check_agent("other").await.expect_err("none").to_string();
    assert_eq!(error, "check ssh agent: unset ssh forward key other");
    let mut agent = client.session.forward_agent("").await.expect("agent");
    agent.write_all(b"hello ").await.expect("write");
    let mut start = [0; 6];
    agent.read_exact(&mut start).await.expect("read");
    assert_eq!(&start, b"HELLO ");
    agent.write_all(&[b'x'; 100_000]).await.expect("write");
    agent.shutdown().await.expect("shutdown");
    let mut rest = Vec::new();
    agent.read_to_end(&mut rest).await.expect("read");
    assert_eq!(rest, [b'X'; 100_000]);
}

#[tokio::test]
async fn an_upload_is_read_to_its_end() {
    let client = connected(&Client::default()).await;
    let mut bytes = Vec::new();
    let mut upload = client.session.upload("buildkit-session", "/context").await.expect("upload");
    upload.read_to_end(&mut bytes).await.expect("read");
    assert_eq!((bytes.len(), bytes[4_999_999]), (5_000_000, 99));
    let mut none = client.session.upload("buildkit-session", "/other").await.expect("upload");
    let error = none.read_to_end(&mut bytes).await.expect_err("none").to_string();
    assert_eq!(error, "upload: no such upload");
}

#[tokio::test]
async fn an_archive_arrives_whole_with_what_is_said_of_it() {
    let me = Client::default();
    let client = connected(&me).await;
    let metadata = [("containerimage.digest".to_owned(), "sha256:1".to_owned())];
    let mut sink = client.session.send_file(0, &metadata).await.expect("sink");
    let expected: Vec<u8> = (0..5_000_000u32).map(|n| (n / 7 % 251) as u8).collect();
    for chunk in expected.chunks(700_001).chain([&[][..]]) {
        let (small, large) = chunk.split_at(chunk.len().min(100));
        sink.write(small).await.expect("write");
        sink.write(large).await.expect("write");
    }
    sink.finish().await.expect("finish");
    assert!(*me.written.lock().expect("lock") == expected);
    let headers = me.headers.lock().expect("lock");
    assert_eq!(headers.get("exporter-md-containerimage.digest").map(String::as_str), Some("sha256:1"));
}

#[tokio::test]
async fn a_client_that_wants_no_archive_says_why() {
    let client = connected(&Client::default()).await;
    let mut sink = client.session.send_file(1, &[]).await.expect("sink");
    let error = loop {
        if let Err(error) = sink.write(&[0; 1 << 20]).await {
            break error;
        }
    };
    assert_eq!(
        (error.code(), error.to_string().as_str()),
        (Code::AlreadyExists, "send file: target already exists")
    );
    let sink = client.session.send_file(1, &[]).await.expect("sink");
    assert_eq!(sink.finish().await.expect_err("refused").code(), Code::AlreadyExists);
}

#[tokio::test]
async fn an_archive_that_is_given_up_is_not_taken_for_a_whole_one() {
    let me = Client::default();
    let client = connected(&me).await;
    let mut sink = client.session.send_file(0, &[]).await.expect("sink");
    sink.write(&[1; 1 << 20]).await.expect("write");
    me.called.notified().await;
    drop(sink);
    // A whole one would make it notify again, before it can serve the next call.
    assert_eq!(client.session.secret("token").await.expect("secret").map(|s| s.len()), Some(4));
    me.called.notified().await;
    assert!(tokio::time::timeout(Duration::from_millis(50), me.called.notified()).await.is_err());
}

#[tokio::test]
async fn a_client_that_vanishes_in_the_middle_of_a_call_ends_it_with_that_reason() {
    let me = Client { hangs: true, ..Client::default() };
    for call in 0..8 {
        let client = connected(&me).await;
        let session = Arc::clone(&client.session);
        let calling = tokio::spawn(async move {
            match call {
                0 => session.secret("token").await.map(drop),
                1 => session.credentials("registry.test").await.map(drop),
                2 => session.fetch_token(token_request("registry.test")).await.map(drop),
                3 => session.token_authority("registry.test", &[1]).await.map(drop),
                4 => session.verify_token_authority("registry.test", &[1], &[1]).await.map(drop),
                5 => session.check_agent("default").await,
                6 => {
                    let mut agent = session.forward_agent("default").await?;
                    agent.write_all(b"x").await.expect("write");
                    let mut read = Vec::new();
                    let error = agent.read_to_end(&mut read).await.expect_err("gone");
                    Err(*error.into_inner().expect("error").downcast::<Error>().expect("ours"))
                }
                _ => {
                    let mut sink = session.send_file(0, &[]).await?;
                    sink.write(b"x").await?;
                    sink.finish().await
                }
            }
        });
        me.called.notified().await;
        client.vanish();
        let error = calling.await.expect("join").expect_err("gone");
        assert!(matches!(error, Error::Ended { .. }), "call {call}: {error}");
        assert!(error.to_string().contains("its client is gone"), "call {call}: {error}");
    }
}
