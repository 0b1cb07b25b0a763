//! Against a server that says what a test tells it to.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

/// Answers request `n` with `answer(n, request)`; counts requests.
async fn serve(answer: impl Fn(usize, &str) -> String + Send + 'static) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap_or_else(|e| panic!("{e}"));
    let address = listener.local_addr().unwrap_or_else(|e| panic!("{e}"));
    let count = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                match stream.read_u8().await {
                    Ok(byte) => request.push(byte),
                    Err(_) => break,
                }
            }
            let text = answer(counter.fetch_add(1, Ordering::SeqCst), &String::from_utf8_lossy(&request));
            stream.write_all(text.as_bytes()).await.ok(); // the client may have gone
        }
    });
    (format!("http://{address}"), count)
}

fn ok(headers: &str, body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n{body}", body.len())
}

fn status(line: &str) -> String {
    format!("HTTP/1.1 {line}\r\nconnection: close\r\ncontent-length: 0\r\nretry-after: 0\r\n\r\n")
}

fn request(url: &str) -> HttpRequest {
    HttpRequest {
        url: url.to_owned(),
        checksum: None,
        etag: None,
        last_modified: None,
        bytes_max: 1 << 20,
        headers: Vec::new(),
    }
}

async fn fetch(request: &HttpRequest) -> Result<(Option<Download>, TempDir), Error> {
    let dir = TempDir::new().unwrap_or_else(|e| panic!("{e}"));
    let client = Client::builder().no_proxy().build().unwrap_or_else(|e| panic!("{e}"));
    match Http::new(client).fetch(request, dir.path()).await? {
        Fetched::Body(download) => Ok((Some(download), dir)),
        Fetched::NotModified => Ok((None, dir)),
    }
}

#[tokio::test]
async fn a_body_comes_with_its_digest_name_and_time() {
    let date = "last-modified: Wed, 21 Oct 2015 07:28:00 GMT\r\netag: \"x\"\r\n";
    let (url, _) = serve(move |_, _| ok(date, "hello")).await;
    let (download, _dir) =
        fetch(&request(&format!("{url}/a/b.txt?q=1"))).await.unwrap_or_else(|e| panic!("{e}"));
    let download = download.unwrap_or_else(|| panic!("no body"));
    assert_eq!(download.digest, Digest::of(b"hello"));
    assert_eq!((download.filename.as_str(), download.size_bytes), ("b.txt", 5));
    assert_eq!(download.modified_seconds, Some(1_445_412_480));
    assert_eq!(download.etag.as_deref(), Some("\"x\""));
    assert_eq!(std::fs::read(download.path()).ok().as_deref(), Some(&b"hello"[..]));
}

#[tokio::test]
async fn an_unchanged_body_is_not_sent_again() {
    let (url, _) = serve(|_, request| {
        let request = request.to_ascii_lowercase();
        let known = request.contains("if-none-match: \"x\"") && request.contains("if-modified-since: then");
        if known { status("304 Not Modified") } else { ok("", "hello") }
    })
    .await;
    let known = HttpRequest {
        etag: Some("\"x\"".to_owned()),
        last_modified: Some("then".to_owned()),
        ..request(&url)
    };
    assert!(fetch(&known).await.is_ok_and(|(body, _)| body.is_none()));
    let exact = HttpRequest { checksum: Some(Digest::of(b"hello")), ..known.clone() };
    assert!(fetch(&exact).await.is_ok_and(|(body, _)| body.is_some()));
    assert!(fetch(&request(&url)).await.is_ok_and(|(body, _)| body.is_some()));
}

#[tokio::test]
async fn server_errors_and_cut_connections_are_tried_again() {
    let (url, count) = serve(|n, _| match n {
        0 => status("503 Service Unavailable"),
        1 => status("429 Too Many Requests"),
        // Cut off in mid body.
        2 => ok("", "hello").replace("content-length: 5", "content-length: 50"),
        _ => ok("", "hello"),
    })
    .await;
    let (download, _dir) = fetch(&request(&url)).await.unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(download.map(|download| download.digest), Some(Digest::of(b"hello")));
    assert_eq!(count.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn final_answers_are_final_and_classed() {
    for (line, class) in [
        ("404 Not Found", Class::NotFound),
        ("401 Unauthorized", Class::Denied),
        ("403 Forbidden", Class::Denied),
        ("400 Bad Request", Class::User),
    ] {
        let (url, count) = serve(move |_, _| status(line)).await;
        let url = url.replace("http://", "http://me:secret@");
        let error =
            fetch(&request(&format!("{url}/x?token=secret"))).await.err().unwrap_or_else(|| panic!("{line}"));
        assert_eq!((error.class(), count.load(Ordering::SeqCst)), (class, 1), "{line}");
        assert!(!error.to_string().contains("secret") && error.to_string().contains(line), "{error}");
    }
}

#[tokio::test]
async fn redirects_are_followed() {
    let (url, _) = serve(|n, _| match n {
        0 => "HTTP/1.1 302 Found\r\nconnection: close\r\nlocation: /there\r\ncontent-length: 0\r\n\r\n"
            .to_owned(),
        _ => ok("", "hello"),
    })
    .await;
    assert!(fetch(&request(&url)).await.is_ok());
}

#[tokio::test]
async fn a_wrong_or_large_body_is_refused() {
    let (url, count) = serve(|_, _| ok("", "hello")).await;
    let wrong = HttpRequest { checksum: Some(Digest::of(b"other")), ..request(&url) };
    let error = fetch(&wrong).await.err().map(|error| error.to_string()).unwrap_or_default();
    assert!(error.contains(&Digest::of(b"hello").to_string()), "{error}");
    assert_eq!(count.load(Ordering::SeqCst), 1);
    let right = HttpRequest { checksum: Some(Digest::of(b"hello")), bytes_max: 5, ..request(&url) };
    assert!(fetch(&right).await.is_ok());
    let large = HttpRequest { bytes_max: 4, ..request(&url) };
    assert!(fetch(&large).await.is_err_and(|error| error.class() == Class::User));
    // Also when the server does not say how long it is.
    let (url, _) = serve(|_, _| "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nhello".to_owned()).await;
    let large = HttpRequest { bytes_max: 4, ..request(&url) };
    assert!(fetch(&large).await.is_err_and(|error| error.class() == Class::User));
}

#[test]
fn names_stay_names() {
    for (url, disposition, want) in [
        ("http://h/a/b.tar", None, "b.tar"),
        ("http://h/", None, "download"),
        ("http://h/a/", None, "download"),
        ("http://h/a", Some("attachment; filename=\"x.zip\""), "x.zip"),
        ("http://h/a", Some("attachment; filename=\"../../etc/passwd\""), "passwd"),
        ("http://h/a", Some("attachment; filename=\"..\""), "download"),
        ("http://h/a", Some("inline"), "a"),
    ] {
        assert_eq!(filename(url, disposition), want, "{url} {disposition:?}");
    }
}

#[test]
fn a_context_is_an_archive_or_a_dockerfile() {
    let dir = TempDir::new().unwrap_or_else(|e| panic!("{e}"));
    let place = |name: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir(&path).unwrap_or_else(|e| panic!("{e}"));
        path
    };
    std::fs::write(dir.path().join("f"), "FROM scratch\n").unwrap_or_else(|e| panic!("{e}"));
    let out = place("single");
    let kind = unpack_context(&dir.path().join("f"), "x/../f", &out, u64::MAX, &Cancel::new());
    assert_eq!(kind.ok(), Some(HttpContext::Dockerfile("download".to_owned())));
    assert!(out.join("download").exists());

    let src = place("src");
    std::fs::write(src.join("Dockerfile"), "FROM scratch\n").unwrap_or_else(|e| panic!("{e}"));
    let archive = dir.path().join("c.tgz");
    let status = std::process::Command::new("tar")
        .args([
            std::ffi::OsStr::new("-czf"),
            archive.as_os_str(),
            "-C".as_ref(),
            src.as_os_str(),
            ".".as_ref(),
        ])
        .status();
    assert!(status.is_ok_and(|status| status.success()));
    let out = place("unpacked");
    assert_eq!(
        unpack_context(&archive, "c.tgz", &out, u64::MAX, &Cancel::new()).ok(),
        Some(HttpContext::Archive)
    );
    assert!(out.join("Dockerfile").exists());
    assert!(unpack_context(&archive, "c.tgz", &place("small"), 3, &Cancel::new()).is_err());
}

#[tokio::test]
async fn what_is_packed_for_the_way_alone_is_what_it_was_before() {
    use std::io::Write as _;
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    packed.write_all(b"contents").unwrap_or_else(|e| panic!("{e}"));
    let packed = packed.finish().unwrap_or_else(|e| panic!("{e}"));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap_or_else(|e| panic!("{e}"));
    let address = listener.local_addr().unwrap_or_else(|e| panic!("{e}"));
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap_or_else(|e| panic!("{e}"));
        let mut asked = Vec::new();
        while !asked.ends_with(b"\r\n\r\n") {
            asked.push(stream.read_u8().await.unwrap_or_else(|e| panic!("{e}")));
        }
        assert!(String::from_utf8_lossy(&asked).contains("accept-encoding: gzip\r\n"));
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            packed.len()
        );
        stream.write_all(&[head.as_bytes(), &packed].concat()).await.unwrap_or_else(|e| panic!("{e}"));
    });
    let fetched = fetch(&request(&format!("http://{address}/x"))).await.unwrap_or_else(|e| panic!("{e}"));
    let body = fetched.0.unwrap_or_else(|| panic!("a body"));
    assert_eq!((body.digest, body.size_bytes), (Digest::of(b"contents"), 8));
}

#[tokio::test]
async fn a_server_is_asked_by_head_whether_a_body_is_still_the_same() {
    let asked = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = Arc::clone(&asked);
    let (url, _) = serve(move |_, request| {
        let method = request.split(' ').next().unwrap_or_default().to_owned();
        seen.lock().unwrap_or_else(|e| panic!("{e}")).push(method);
        // It knows the body and sends it again nevertheless.
        ok("etag: W/\"one\"\r\n", if request.starts_with("HEAD") { "" } else { "body" })
    })
    .await;
    let known = HttpRequest { etag: Some("\"one\"".to_owned()), ..request(&url) };
    assert!(fetch(&known).await.unwrap_or_else(|e| panic!("{e}")).0.is_none(), "it is the same");
    let other = HttpRequest { etag: Some("\"two\"".to_owned()), ..request(&url) };
    assert!(fetch(&other).await.unwrap_or_else(|e| panic!("{e}")).0.is_some(), "it is another one");
    assert_eq!(*asked.lock().unwrap_or_else(|e| panic!("{e}")), ["HEAD", "HEAD", "GET"]);
}

#[test]
fn dates_are_read_in_all_three_forms() {
    for text in
        ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"]
    {
        assert_eq!(http_date_seconds(text), Some(784_111_777), "{text}");
    }
    assert_eq!(http_date_seconds("yesterday"), None);
}
