//! What `ADD` brings from elsewhere.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use crate::lab::{Lab, mode, tool};

/// Asked-for paths with their answers, as `GET /x 200`.
type Log = Arc<Mutex<Vec<String>>>;

/// Serves the files below `root`; a file has its digest as its entity tag.
fn server(root: PathBuf) -> (String, Log) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let log = Log::default();
    let seen = Arc::clone(&log);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
            let first = lines.next().unwrap_or_default();
            let headers: BTreeMap<String, String> = lines
                .take_while(|line| !line.is_empty())
                .filter_map(|line| line.split_once(": ").map(|(k, v)| (k.to_ascii_lowercase(), v.to_owned())))
                .collect();
            let path = first.split(' ').nth(1).unwrap_or("/").split('?').next().unwrap_or("/").to_owned();
            let (status, head, body) = match std::fs::read(root.join(path.trim_start_matches('/'))) {
                Err(_) => ("404 Not Found", String::new(), Vec::new()),
                Ok(body) => {
                    let tag = format!("\"{}\"", lapstrake_oci::Digest::of(&body).hex());
                    let head = format!("etag: {tag}\r\nlast-modified: Tue, 14 Nov 2023 22:13:20 GMT\r\n");
                    match headers.get("if-none-match") == Some(&tag) {
                        true => ("304 Not Modified", head, Vec::new()),
                        false => ("200 OK", head, body),
                    }
                }
            };
            seen.lock().unwrap().push(format!("{path} {}", &status[..3]));
            let length = body.len();
            let head =
                format!("HTTP/1.1 {status}\r\nconnection: close\r\n{head}content-length: {length}\r\n\r\n");
            let mut stream = &stream;
            stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body)).ok(); // the client may have gone
        }
    });
    (address, log)
}

fn served(lab: &Lab) -> (PathBuf, String, Log) {
    let root = lab.path("served");
    std::fs::create_dir_all(&root).unwrap();
    let (address, log) = server(root.clone());
    (root, address, log)
}

#[test]
fn a_download_is_a_file_with_its_name_mode_and_time() {
    let lab = Lab::new();
    let (root, url, _) = served(&lab);
    std::fs::write(root.join("tool"), "v1").unwrap();
    let text = format!(
        "FROM @base\nADD {url}/tool?x=1 /in/\nADD {url}/tool /named\nADD --chmod=755 --chown=5:6 {url}/tool /bin/tool5\n"
    );
    let out = lab.files_of(lab.dockerfile(&text));
    for file in ["in/tool", "named", "bin/tool5"] {
        assert_eq!(std::fs::read_to_string(out.join(file)).unwrap(), "v1", "{file}");
    }
    let meta = std::fs::metadata(out.join("named")).unwrap();
    assert_eq!((mode(&out.join("named")), meta.uid(), meta.mtime()), (0o600, 0, 1_700_000_000));
    let meta = std::fs::metadata(out.join("bin/tool5")).unwrap();
    assert_eq!((mode(&out.join("bin/tool5")), meta.uid(), meta.gid()), (0o755, 5, 6));
}

#[test]
fn a_download_is_asked_for_again_and_runs_only_when_it_changed() {
    let lab = Lab::new();
    let (root, url, log) = served(&lab);
    std::fs::write(root.join("tool"), "v1").unwrap();
    let dir = lab.dockerfile(&format!("FROM @base\nADD {url}/tool /tool\nRUN cat /tool >/out\n"));
    assert!(lab.build(&dir).ok().ran().iter().any(|step| step.contains("RUN cat")));
    let again = lab.build(&dir).ok().ran();
    assert!(!again.iter().any(|step| step.contains("RUN cat")), "{again:?}");
    assert_eq!(*log.lock().unwrap(), ["/tool 200", "/tool 304"]);
    std::fs::write(root.join("tool"), "v2").unwrap();
    assert_eq!(lab.file_of(&dir, "out"), "v2");
}

#[test]
fn a_checksum_is_held_to_and_saves_the_question() {
    let lab = Lab::new();
    let (root, url, log) = served(&lab);
    std::fs::write(root.join("tool"), "v1").unwrap();
    let sum = lapstrake_oci::Digest::of(b"v1");
    let dir = lab.dockerfile(&format!("FROM @base\nADD --checksum={sum} {url}/tool /tool\n"));
    lab.build(&dir).ok();
    lab.build(&dir).ok();
    assert_eq!(*log.lock().unwrap(), ["/tool 200"]);
    let other = lapstrake_oci::Digest::of(b"v2");
    let dir = lab.dockerfile(&format!("FROM @base\n\nADD --checksum={other} {url}/tool /tool\n"));
    lab.build(&dir).fails(10).says(&["tool", &sum.to_string()]);
    let dir = lab.dockerfile(&format!("FROM @base\nADD {url}/gone /tool\n"));
    lab.build(&dir).fails(11).says(&["gone", "404"]);
}

#[test]
fn a_downloaded_archive_is_unpacked_only_when_asked() {
    let lab = Lab::new();
    let (root, url, _) = served(&lab);
    let packed = lab.context("packed", &[("f", "packed")]);
    let file = root.join("a.tar.gz");
    tool("tar", &["-czf", file.to_str().unwrap(), "-C", packed.to_str().unwrap(), "f"]);
    let text =
        format!("FROM @base\nADD {url}/a.tar.gz /kept/\nADD --unpack=true {url}/a.tar.gz /unpacked/\n");
    let out = lab.files_of(lab.dockerfile(&text));
    assert!(out.join("kept/a.tar.gz").is_file());
    assert_eq!(std::fs::read_to_string(out.join("unpacked/f")).unwrap(), "packed");
}

#[test]
fn a_repository_is_cloned_at_a_ref_a_directory_of_it_and_with_its_git_directory() {
    let lab = Lab::new();
    let (root, url, _) = served(&lab);
    let work = crate::sources::repository(&lab);
    let bare = root.join("r.git");
    tool("git", &["clone", "-q", "--bare", work.to_str().unwrap(), bare.to_str().unwrap()]);
    tool("git", &["-C", bare.to_str().unwrap(), "update-server-info"]);
    let commit = tool("git", &["-C", work.to_str().unwrap(), "rev-parse", "v1"]);
    let commit = commit.trim();
    let text = format!(
        "FROM @base\nADD {url}/r.git /main/\nADD {url}/r.git#v1:app /app\nADD --keep-git-dir=true {url}/r.git#v1 /kept\n\
         ADD --checksum={commit} {url}/r.git?tag=v1&subdir=app /checked\n"
    );
    let out = lab.files_of(lab.dockerfile(&text));
    let read = |file: &str| std::fs::read_to_string(out.join(file)).unwrap();
    assert_eq!([read("main/app/f"), read("app/f"), read("checked/f")], ["two", "one", "one"]);
    assert!(!out.join("main/.git").exists());
    let kept = out.join("kept");
    let head = tool("git", &["-c", "safe.directory=*", "-C", kept.to_str().unwrap(), "rev-parse", "HEAD"]);
    assert_eq!(head.trim(), commit);
    let dir = lab.dockerfile(&format!("FROM @base\nADD --checksum={} {url}/r.git#main /x\n", commit));
    lab.build(&dir).fails(10).says(&["expected checksum to match", commit]);
    lab.build(lab.dockerfile(&format!("FROM @base\nADD {url}/r.git#nowhere /x\n")))
        .fails(11)
        .says(&["nowhere"]);
}

#[test]
fn the_time_of_the_image_may_be_that_of_a_stage_that_is_a_download_or_a_repository() {
    let lab = Lab::new();
    let (root, url, _) = served(&lab);
    std::fs::write(root.join("tool"), "v1").unwrap();
    let created = |text: &str, args: &[&str]| {
        let dir = lab.context("epoch", &[("Dockerfile", text)]);
        let mut build = lab.build(&dir).args(["--push", "-t", &lab.name("epoch:1")]);
        build.0.args(args);
        build.ok().says(&["resolve SOURCE_DATE_EPOCH source stage source"]);
        lab.image("epoch", "1").1.created.unwrap()
    };
    let text = format!("FROM scratch AS source\nADD {url}/tool /\nFROM @base\nRUN echo >/f\n");
    assert_eq!(created(&text, &["--build-arg", "SOURCE_DATE_EPOCH=Source"]), "2023-11-14T22:13:20Z");
    // Said by the file itself.
    let text = format!("ARG SOURCE_DATE_EPOCH=source\n{text}");
    assert_eq!(created(&text, &[]), "2023-11-14T22:13:20Z");
}
