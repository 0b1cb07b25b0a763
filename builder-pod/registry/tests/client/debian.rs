//! The same client against Debian's `docker-registry`, which we did not write.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use lapstrake_registry::{BlobSource, Progress, Pushed};
use lapstrake_testkit::image::reference;

use crate::{client, image, noise, pull};

struct Server {
    child: Child,
    host: String,
    _dir: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok(); // it may have ended by itself
        self.child.wait().ok();
    }
}

async fn start() -> Server {
    let program = ["/usr/bin/docker-registry", "/usr/local/bin/docker-registry"];
    let program = program
        .into_iter()
        .find(|path| Path::new(path).exists())
        .unwrap_or_else(|| panic!("docker-registry is missing: run `apt-get install docker-registry`"));
    let dir = tempfile::tempdir().unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let host = format!("127.0.0.1:{port}");
    let config = dir.path().join("config.yml");
    let text = format!(
        "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {host}\n",
        dir.path().join("data").display()
    );
    std::fs::write(&config, text).unwrap();
    let child = Command::new(program)
        .args(["serve".as_ref(), config.as_os_str()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut server = Server { child, host, _dir: dir };
    while tokio::net::TcpStream::connect(&server.host).await.is_err() {
        assert_eq!(server.child.try_wait().unwrap(), None, "docker-registry ended at its start");
        tokio::task::yield_now().await;
    }
    server
}

#[tokio::test]
async fn images_make_the_round_trip_through_debians_registry() {
    let server = start().await;
    let (client, image) = (client(), image());
    let name = reference(&server.host, "team/app:1");
    for (blob, bytes) in image.blobs() {
        let source = BlobSource::bytes(bytes.to_vec());
        let progress = Progress::none();
        let push = || client.push_blob(&name, blob, &source, &[], &progress);
        assert_eq!(push().await.unwrap(), Pushed::Uploaded);
        assert_eq!(push().await.unwrap(), Pushed::Existed);
    }
    client.push_manifest(&name, &image.media_type, image.manifest.clone()).await.unwrap();
    assert_eq!(client.resolve(&name).await.unwrap().digest, image.digest);
    assert_eq!(client.manifest(&name).await.unwrap().bytes, image.manifest);
    assert_eq!(client.tags(&name).await.unwrap(), ["1"]);
    for (blob, bytes) in image.blobs() {
        assert_eq!(pull(&client, &name, blob).await.unwrap(), bytes);
    }

    // A streamed upload, a mount that works, a mount that turns into an upload.
    let (bytes, blob) = noise(5 << 20);
    let source = BlobSource::bytes(bytes.clone());
    let pushed = client.push_blob(&name, &blob, &source, &[], &Progress::none()).await.unwrap();
    assert_eq!(pushed, Pushed::Uploaded);
    assert!(pull(&client, &name, &blob).await.unwrap() == bytes);
    let copy = reference(&server.host, "copy:1");
    let from = ["team/app".to_owned()];
    let pushed = client.push_blob(&copy, &blob, &source, &from, &Progress::none()).await.unwrap();
    assert_eq!(pushed, Pushed::Mounted { from: "team/app".to_owned() });
    let (bytes, blob) = noise(3 << 20);
    let source = BlobSource::bytes(bytes.clone());
    let pushed = client.push_blob(&copy, &blob, &source, &from, &Progress::none()).await.unwrap();
    assert_eq!(pushed, Pushed::Uploaded);
    assert!(pull(&client, &copy, &blob).await.unwrap() == bytes);

    let error = client.resolve(&name.with_tag("missing").unwrap()).await.unwrap_err();
    assert_eq!(error.code(), Some("MANIFEST_UNKNOWN"), "{error}");
}
