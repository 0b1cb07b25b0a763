//! What a second build runs again, and what not.

use std::path::Path;
use std::process::Command;

use crate::lab::{Fate, Lab};

const APP: &str = "\
FROM @base AS build
WORKDIR /src
COPY lib lib
RUN cat lib/* >/src/lib.o
COPY main main
RUN cat lib.o main >/src/app
FROM scratch
COPY --from=build /src/app /app
";

fn app(lab: &Lab) -> std::path::PathBuf {
    lab.context(
        "app",
        &[("Dockerfile", APP), ("lib/a", "a"), ("lib/b", "b"), ("main", "main"), ("README", "x")],
    )
}

fn touch(path: &Path) {
    assert!(Command::new("touch").arg("-d").arg("2001-02-03").arg(path).status().unwrap().success());
}

#[test]
fn an_unchanged_rebuild_runs_nothing() {
    let lab = Lab::new();
    let dir = app(&lab);
    assert_eq!(lab.build(&dir).ok().ran().len(), 6);
    let again = lab.build(&dir).ok();
    assert!(again.ran().is_empty(), "{}", again.stderr());
    assert_eq!(again.fate("COPY --from=build"), Fate::Cached);
}

#[test]
fn a_touched_file_a_new_file_outside_and_a_comment_rebuild_nothing() {
    let lab = Lab::new();
    let dir = app(&lab);
    lab.build(&dir).ok();
    touch(&dir.join("main"));
    touch(&dir.join("lib"));
    std::fs::write(dir.join("unrelated"), "new").unwrap();
    let text = std::fs::read_to_string(dir.join("Dockerfile")).unwrap();
    std::fs::write(
        dir.join("Dockerfile"),
        format!("# a word\n{}", text.replace("COPY main", "# and\n\nCOPY main")),
    )
    .unwrap();
    let again = lab.build(&dir).ok();
    assert!(again.ran().is_empty(), "{}", again.stderr());
}

#[test]
fn a_changed_file_rebuilds_from_its_copy_on() {
    let lab = Lab::new();
    let dir = app(&lab);
    lab.build(&dir).ok();
    std::fs::write(dir.join("main"), "changed").unwrap();
    let again = lab.build(&dir).ok();
    let expected = ["COPY --from=build /src/app /app", "COPY main main", "RUN cat lib.o main >/src/app"];
    assert_eq!(again.ran(), expected, "{}", again.stderr());
}

#[test]
fn a_changed_mode_rebuilds() {
    use std::os::unix::fs::PermissionsExt as _;
    let lab = Lab::new();
    let dir = app(&lab);
    lab.build(&dir).ok();
    std::fs::set_permissions(dir.join("main"), std::fs::Permissions::from_mode(0o700)).unwrap();
    assert!(lab.build(&dir).ok().ran().contains(&"COPY main main".to_owned()));
}

#[test]
fn a_rebuilt_stage_with_equal_content_rebuilds_nothing_above() {
    let lab = Lab::new();
    let text = "FROM @base AS build\nCOPY source /source\nRUN wc -l </source >/lines\n\
                FROM @base\nCOPY --from=build /lines /lines\nRUN echo use >/used\n";
    let dir = lab.context("c", &[("Dockerfile", text), ("source", "one\n")]);
    lab.build(&dir).ok();
    std::fs::write(dir.join("source"), "two\n").unwrap();
    let again = lab.build(&dir).ok();
    assert_eq!(again.ran(), ["COPY source /source", "RUN wc -l </source >/lines"], "{}", again.stderr());
}

#[test]
fn no_cache_runs_all_and_serves_later_builds() {
    let lab = Lab::new();
    let dir = app(&lab);
    lab.build(&dir).ok();
    let forced = lab.build(&dir).args(["--no-cache"]).ok();
    // As BuildKit: WORKDIR on a base image is a fixed thing.
    assert_eq!(forced.ran().len(), 5, "{}", forced.stderr());
    assert!(lab.build(&dir).ok().ran().is_empty());
}

#[test]
fn an_argument_counts_only_where_it_is_declared() {
    let lab = Lab::new();
    let dir = lab.dockerfile("FROM @base\nRUN echo before\nARG V=0\nRUN echo $V >/v\n");
    lab.build(&dir).ok();
    let other = lab.build(&dir).args(["--build-arg", "V=1"]).ok();
    assert_eq!(other.ran(), ["RUN echo 1 >/v"], "{}", other.stderr());
}

#[test]
fn two_dockerfiles_share_what_is_equal() {
    let lab = Lab::new();
    lab.build(lab.dockerfile("FROM @base\nRUN echo shared\nRUN echo one\n")).ok();
    let other = lab.build(lab.dockerfile("FROM @base AS named\nRUN echo shared\nRUN echo two\n")).ok();
    assert_eq!(other.ran(), ["RUN echo two"], "{}", other.stderr());
}

#[test]
fn an_ignored_file_changes_nothing() {
    let lab = Lab::new();
    let files = [
        ("Dockerfile", "FROM scratch\nCOPY . /\n"),
        (".dockerignore", "*.log\nsecret\n"),
        ("a.log", "1"),
        ("keep", "k"),
        ("secret/x", "s"),
    ];
    let dir = lab.context("c", &files);
    let out = lab.files_of(&dir);
    let mut names: Vec<_> = std::fs::read_dir(&out).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, [".dockerignore", "Dockerfile", "keep"]);
    std::fs::write(dir.join("a.log"), "2").unwrap();
    let again = lab.build(&dir).ok();
    assert!(again.ran().is_empty(), "{}", again.stderr());
}

#[test]
fn a_pushed_rebuild_uploads_no_layer_again() {
    use lapstrake_testkit::registry::Ask;
    let lab = Lab::new();
    let dir = app(&lab);
    let name = lab.name("app:1");
    lab.build(&dir).args(["--push", "-t", &name]).ok();
    let first = lab.registry.storage().manifest("app", "1").unwrap().2;
    lab.registry.clear_log();
    lab.build(&dir).args(["--push", "-t", &name]).ok();
    assert_eq!(lab.registry.storage().manifest("app", "1").unwrap().2, first, "the same image, to the byte");
    assert_eq!(lab.registry.count(Ask::UploadPut) + lab.registry.count(Ask::BlobGet), 0);
}
