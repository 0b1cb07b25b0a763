use std::os::unix::fs::MetadataExt as _;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsConnector;
use tokio_stream::StreamExt as _;

use super::*;
use crate::TlsFiles;

fn grpc(addresses: &[String], tls: Option<TlsFiles>) -> Grpc {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    Grpc { addresses: addresses.to_vec(), uid, gid, tls }
}

/// Sends a byte each way over a connection.
async fn greet(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), conn: &mut Conn) {
    stream.write_all(b"?").await.expect("sent");
    assert_eq!(conn.read_u8().await.expect("a byte"), b'?');
    conn.write_all(b"!").await.expect("sent");
    conn.flush().await.expect("sent");
    assert_eq!(stream.read_u8().await.expect("a byte"), b'!');
}

#[tokio::test]
async fn several_addresses_serve_at_once_and_are_gone_afterwards() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("new/daemon.sock");
    let addresses = [format!("unix://{}", path.display()), "tcp://127.0.0.1:0".to_owned()];
    let listeners = Listeners::bind(&grpc(&addresses, None)).await.expect("free");
    let shown: Vec<_> = listeners.addresses().map(ToOwned::to_owned).collect();
    assert_eq!(shown.first().map(String::as_str), path.to_str());
    assert_eq!(path.metadata().expect("there").mode() & 0o777, 0o660);
    let stop = CancellationToken::new();
    let mut incoming = listeners.incoming(&stop);
    let mut local = UnixStream::connect(&path).await.expect("open");
    let mut conn = incoming.next().await.expect("a connection").expect("taken");
    greet(&mut local, &mut conn).await;
    let pid = i32::try_from(std::process::id()).ok();
    assert_eq!(conn.connect_info(), Peer::Unix { uid: Some(rustix::process::geteuid().as_raw()), pid });
    let mut far = TcpStream::connect(shown.get(1).expect("two")).await.expect("open");
    let mut conn = incoming.next().await.expect("a connection").expect("taken");
    greet(&mut far, &mut conn).await;
    assert!(matches!(conn.connect_info(), Peer::Tcp { encrypted: false, certified: false, .. }));
    stop.cancel();
    assert!(incoming.next().await.is_none());
    assert!(!path.exists());
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_a_living_one_is_not() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("daemon.sock");
    let wanted = grpc(&[format!("unix://{}", path.display())], None);
    drop(std::os::unix::net::UnixListener::bind(&path).expect("free"));
    assert!(path.exists(), "a killed daemon's socket stays");
    let first = Listeners::bind(&wanted).await.expect("stale");
    let refused = Listeners::bind(&wanted).await.expect_err("living").to_string();
    assert!(refused.ends_with("another process answers there: stop it, or give another path"), "{refused}");
    drop(first);
    std::fs::write(&path, "mine").expect("written");
    let refused = Listeners::bind(&wanted).await.expect_err("a file").to_string();
    assert!(refused.contains("no socket"), "{refused}");
    assert_eq!(std::fs::read_to_string(&path).ok().as_deref(), Some("mine"));
}

#[tokio::test]
async fn wrong_addresses_are_told_as_buildkitd_tells_them() {
    for (address, text) in [
        ("/run/x.sock", "address /run/x.sock does not contain proto, you meant unix:///run/x.sock ?"),
        ("npipe:////./pipe/x", "addr npipe:////./pipe/x not supported"),
        ("fd://", "no sockets found via socket activation: make sure the service was started by systemd"),
        ("fd://name", "cannot listen on fd://name: only the first descriptor is supported: give fd://"),
    ] {
        let refused = Listeners::bind(&grpc(&[address.to_owned()], None)).await.expect_err(address);
        assert_eq!(refused.to_string(), text);
    }
    let long = format!("unix:///tmp/{}", "x".repeat(120));
    let refused = Listeners::bind(&grpc(&[long], None)).await.expect_err("too long");
    assert!(refused.to_string().ends_with("unix socket path too long (> 104)"));
}

struct Keys {
    dir: tempfile::TempDir,
}

impl Keys {
    /// A CA, a server for `localhost`, a client; and another CA's client.
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let keys = Self { dir };
        let ca = keys.authority("ca");
        keys.issue("server", &ca);
        keys.issue("client", &ca);
        keys.issue("stranger", &keys.authority("other"));
        keys
    }

    fn authority(&self, name: &str) -> CertifiedIssuer<'static, KeyPair> {
        let mut params = CertificateParams::new(Vec::new()).expect("valid");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("signed");
        std::fs::write(self.path(name), issuer.pem()).expect("written");
        issuer
    }

    fn issue(&self, name: &str, ca: &CertifiedIssuer<'static, KeyPair>) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec!["localhost".to_owned()]).expect("valid");
        let certificate = params.signed_by(&key, ca).expect("signed");
        std::fs::write(self.path(name), certificate.pem()).expect("written");
        std::fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).expect("written");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn pair(&self, name: &str) -> (PathBuf, PathBuf) {
        (self.path(name), self.path(&format!("{name}.key")))
    }

    fn server(&self, ca: bool) -> TlsFiles {
        let (cert, key) = self.pair("server");
        TlsFiles { cert, key, ca: ca.then(|| self.path("ca")) }
    }

    /// Connects and reads a byte, which tells whether the server took the certificate.
    async fn call(&self, address: &str, pair: Option<&str>) -> io::Result<u8> {
        let config = crate::tls::client(&self.path("ca"), pair.map(|name| self.pair(name))).expect("valid");
        let tcp = TcpStream::connect(address).await?;
        let name = ServerName::try_from("localhost").expect("a name");
        let mut stream = TlsConnector::from(config).connect(name, tcp).await?;
        stream.read_u8().await
    }
}

/// Greets every connection with one byte; gives back what clients of these certificates got.
async fn answers(keys: &Keys, ca: bool, clients: [Option<&str>; 3]) -> Vec<Option<bool>> {
    let listeners = Listeners::bind(&grpc(&["tcp://127.0.0.1:0".to_owned()], Some(keys.server(ca)))).await;
    let listeners = listeners.expect("free");
    let address = listeners.addresses().next().expect("one").to_owned();
    let mut incoming = listeners.incoming(&CancellationToken::new());
    let (seen, mut peers) = mpsc::channel(8);
    tokio::spawn(async move {
        while let Some(Ok(mut conn)) = incoming.next().await {
            let Peer::Tcp { certified, .. } = conn.connect_info() else { panic!("a unix peer on tcp") };
            seen.send(certified).await.expect("heard");
            conn.write_all(b"!").await.expect("sent");
            conn.shutdown().await.ok(); // the client may be gone
        }
    });
    let mut answers = Vec::new();
    for client in clients {
        let served = keys.call(&address, client).await.is_ok();
        answers.push(if served { peers.recv().await } else { None });
    }
    answers
}

#[tokio::test]
async fn with_a_ca_only_its_clients_are_served() {
    let keys = Keys::new();
    assert_eq!(
        answers(&keys, true, [Some("client"), None, Some("stranger")]).await,
        [Some(true), None, None]
    );
}

#[tokio::test]
async fn without_a_ca_the_line_is_encrypted_for_everybody() {
    let keys = Keys::new();
    let all = answers(&keys, false, [Some("client"), None, Some("stranger")]).await;
    assert_eq!(all, [Some(false), Some(false), Some(false)]);
}

#[tokio::test]
async fn keys_that_cannot_be_read_name_their_file() {
    let keys = Keys::new();
    let mut files = keys.server(true);
    files.key = keys.path("none");
    let refused = Listeners::bind(&grpc(&["tcp://127.0.0.1:0".to_owned()], Some(files))).await;
    let text = refused.expect_err("no key").to_string();
    assert!(text.starts_with("private key ") && text.contains("/none: "), "{text}");
}
