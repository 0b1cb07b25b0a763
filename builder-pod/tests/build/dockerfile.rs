//! What each instruction does to the file system and the image.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::lab::{Fate, Lab, mode, tool};

#[test]
fn a_target_stage_is_built_and_no_other() {
    let lab = Lab::new();
    let dir = lab.dockerfile("FROM @base AS one\nRUN echo 1 >/one\nFROM @base AS two\nRUN echo 2 >/two\n");
    let out = lab.path("files");
    let ran = lab.build(&dir).args(["--target", "one", "-o", out.to_str().unwrap()]).ok();
    assert!(out.join("one").exists() && !out.join("two").exists());
    assert_eq!(ran.fate("echo 2"), Fate::Absent);
}

#[test]
fn arguments_reach_from_and_steps() {
    let lab = Lab::new();
    let host = lab.registry.host();
    let text = format!(
        "ARG TAG=9\nARG IMAGE={host}/busybox:$TAG\nFROM $IMAGE\nARG TAG\nARG GREETING=hi\nARG EMPTY\n\
         RUN echo \"$TAG $GREETING [$EMPTY] ${{NOT_DECLARED-unset}}\" >/out\n"
    );
    let dir = lab.dockerfile(&text);
    let out = lab.path("files");
    let build = lab.build(&dir).args([
        "-o",
        out.to_str().unwrap(),
        "--build-arg",
        "TAG=1",
        "--build-arg",
        "FROM_ENV",
    ]);
    build.env("FROM_ENV", "x").ok();
    assert_eq!(std::fs::read_to_string(out.join("out")).unwrap(), "1 hi [] unset\n");
}

#[test]
fn platform_arguments_are_there_once_declared() {
    let lab = Lab::new();
    let text = "FROM --platform=$BUILDPLATFORM @base\nARG TARGETPLATFORM TARGETOS TARGETARCH BUILDPLATFORM\n\
                RUN echo $TARGETPLATFORM $TARGETOS $TARGETARCH $BUILDPLATFORM $BUILDOS. >/out\n";
    assert_eq!(lab.file_of(lab.dockerfile(text), "out"), "linux/amd64 linux amd64 linux/amd64 .\n");
}

#[test]
fn environment_and_working_directory_accumulate() {
    let lab = Lab::new();
    let text = "FROM @base\nENV A=1 B=\"two words\"\nENV A=2 C=$A\nENV LEGACY some words\n\
                WORKDIR /a\nWORKDIR b\nWORKDIR $A\nRUN echo \"$A|$B|$C|$LEGACY|$PWD\" >out\n";
    assert_eq!(lab.file_of(lab.dockerfile(text), "a/b/2/out"), "2|two words|1|some words|/a/b/2\n");
}

#[test]
fn steps_run_as_the_user_and_own_what_they_write() {
    let lab = Lab::new();
    let text = "FROM @base\nRUN echo 'app:x:123:45::/home/app:/bin/sh' >>/etc/passwd && echo 'more:x:77:app' >>/etc/group\n\
                USER app\nWORKDIR /home/app\nRUN id >who && echo $HOME >>who\nUSER 5:6\nRUN id -u >/tmp/n && id -g >>/tmp/n\n";
    let out = lab.files_of(lab.dockerfile(text));
    let who = std::fs::read_to_string(out.join("home/app/who")).unwrap();
    assert!(
        who.contains("uid=123(app) gid=45") && who.contains("77(more)") && who.ends_with("/home/app\n"),
        "{who}"
    );
    let meta = std::fs::metadata(out.join("home/app/who")).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (123, 45));
    assert_eq!(std::fs::metadata(out.join("home/app")).unwrap().uid(), 123, "WORKDIR belongs to the user");
    assert_eq!(std::fs::read_to_string(out.join("tmp/n")).unwrap(), "5\n6\n");
}

#[test]
fn a_shell_of_ones_own_runs_the_shell_form_only() {
    let lab = Lab::new();
    let text = "FROM @base\nRUN [\"sh\", \"-c\", \"echo $0 exec >>/out\"]\nSHELL [\"/bin/sh\", \"-euc\"]\n\
                RUN echo $- >>/out\nRUN [\"/bin/sh\", \"-c\", \"echo $- >>/out\"]\n";
    let text = lab.file_of(lab.dockerfile(text), "out");
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[0], "sh exec");
    assert!(lines[1].contains('e') && lines[1].contains('u') && !lines[2].contains('e'), "{lines:?}");
}

#[test]
fn heredocs_are_scripts_and_files() {
    let lab = Lab::new();
    let text = r#"FROM @base
ARG WHO=world
RUN <<EOF
set -e
echo "hello $WHO" >/greeting
x=1
echo $x >>/greeting
EOF
RUN <<"PROGRAM"
#!/bin/busybox sh
echo program $0 >/program
PROGRAM
RUN cat <<A >/both && cat <<-B >>/both
	kept
A
	stripped
	B
COPY <<one.txt <<"two.txt" /files/
expanded $WHO
one.txt
verbatim $WHO
two.txt
"#;
    let out = lab.files_of(lab.dockerfile(text));
    let read = |p: &str| std::fs::read_to_string(out.join(p)).unwrap();
    assert_eq!(read("greeting"), "hello world\n1\n");
    assert!(read("program").starts_with("program "));
    assert_eq!(read("both"), "\tkept\nstripped\n");
    assert_eq!(read("files/one.txt"), "expanded world\n");
    assert_eq!(read("files/two.txt"), "verbatim $WHO\n");
    assert_eq!(mode(&out.join("files/one.txt")), 0o644);
}

#[test]
fn copies_take_wildcards_directories_owners_and_modes() {
    let lab = Lab::new();
    let text = "FROM @base\nRUN echo 'app:x:123:45::/:/bin/sh' >>/etc/passwd && echo 'staff:x:50:' >>/etc/group\n\
                COPY *.txt /texts/\nCOPY dir /dir/\nCOPY dir/deep/f /renamed\nCOPY --chown=app a.txt /app\n\
                COPY --chown=app:staff a.txt /staff\nCOPY --chown=7:8 --chmod=0600 a.txt /numbers\n\
                COPY --chmod=u=rwX,go= dir /modes/\nCOPY none*.txt /nothing/\nWORKDIR /w\nCOPY a.txt b.txt ./\n";
    let files = [("Dockerfile", text), ("a.txt", "a"), ("b.txt", "b"), ("dir/c", "c"), ("dir/deep/f", "f")];
    let dir = lab.context("c", &files);
    std::os::unix::fs::symlink("deep/f", dir.join("dir/link")).unwrap();
    let out = lab.files_of(&dir);
    for there in ["texts/a.txt", "texts/b.txt", "dir/c", "dir/deep/f", "renamed", "w/a.txt", "w/b.txt"] {
        assert!(out.join(there).is_file(), "{there}");
    }
    assert_eq!(std::fs::read_link(out.join("dir/link")).unwrap(), Path::new("deep/f"));
    let owner = |p: &str| std::fs::metadata(out.join(p)).map(|m| (m.uid(), m.gid())).unwrap();
    assert_eq!((owner("app"), owner("staff"), owner("numbers")), ((123, 45), (123, 50), (7, 8)));
    assert_eq!(mode(&out.join("numbers")), 0o600);
    assert_eq!((mode(&out.join("modes/c")), mode(&out.join("modes/deep"))), (0o600, 0o700));
}

#[test]
fn copies_keep_parents_and_leave_out_what_is_excluded() {
    let lab = Lab::new();
    let text =
        "FROM scratch\nCOPY --parents a/b/f a/./c/*.txt /p/\nCOPY --exclude=**/*.log --exclude=c a /x/\n";
    let files = [("Dockerfile", text), ("a/b/f", ""), ("a/c/g.txt", ""), ("a/d/h.log", ""), ("a/d/i", "")];
    let out = lab.files_of(lab.context("c", &files));
    for there in ["p/a/b/f", "p/c/g.txt", "x/b/f", "x/d/i"] {
        assert!(out.join(there).is_file(), "{there}");
    }
    assert!(!out.join("x/d/h.log").exists() && !out.join("x/c").exists());
}

#[test]
fn files_come_from_stages_numbers_and_images() {
    let lab = Lab::new();
    let text = "FROM @base AS first\nRUN echo 1 >/one\nFROM @base\nRUN echo 2 >/two\n\
                FROM scratch\nCOPY --from=first /one /\nCOPY --from=1 /two /\nCOPY --from=@base /etc/passwd /passwd\n";
    let out = lab.files_of(lab.dockerfile(text));
    assert!(out.join("one").exists() && out.join("two").exists() && out.join("passwd").exists());
}

#[test]
fn archives_are_unpacked_by_add_and_kept_by_copy() {
    let lab = Lab::new();
    let dir = lab.context(
        "c",
        &[
            (
                "Dockerfile",
                "FROM scratch\nADD in.tar.gz /unpacked/\nCOPY in.tar.gz /kept.tar.gz\nADD plain /\n",
            ),
            ("plain", "p"),
            ("d/f", "content"),
        ],
    );
    let d = dir.to_str().unwrap();
    tool("tar", &["-czf", &format!("{d}/in.tar.gz"), "-C", d, "--owner=9", "--group=8", "d"]);
    let out = lab.files_of(&dir);
    assert_eq!(std::fs::read_to_string(out.join("unpacked/d/f")).unwrap(), "content");
    assert_eq!(std::fs::metadata(out.join("unpacked/d/f")).unwrap().uid(), 9, "an archive's owners stay");
    assert!(out.join("kept.tar.gz").is_file() && out.join("plain").is_file());
}

#[test]
fn a_context_link_never_leads_out_of_the_context() {
    let lab = Lab::new();
    std::fs::write(lab.path("outside"), "secret").unwrap();
    let dir = lab.context("c", &[("Dockerfile", "FROM scratch\nCOPY leak /leak\n")]);
    std::os::unix::fs::symlink("../outside", dir.join("leak")).unwrap();
    let ran = lab.build(&dir).args(["-o", lab.path("files").to_str().unwrap()]).run();
    assert!(!lab.path("files/leak").exists() || ran.code != Some(0), "{}", ran.stderr());
    let dir = lab.context("d", &[("Dockerfile", "FROM scratch\nCOPY ../outside /leak\n")]);
    lab.build(&dir).fails(10).says(&["/outside", "not found"]);
}

#[test]
fn a_directory_made_by_nobody_appears_for_workdir() {
    let lab = Lab::new();
    let out = lab.files_of(lab.dockerfile("FROM scratch\nWORKDIR /a/b\n"));
    assert!(out.join("a/b").is_dir());
    assert_eq!(mode(&out.join("a/b")), 0o755);
}

#[test]
fn another_dockerfile_is_found_from_the_working_directory_and_standard_input() {
    let lab = Lab::new();
    let dir = lab.context("c", &[("other/My.Dockerfile", "FROM scratch\nCOPY f /in\n"), ("f", "x")]);
    let file = dir.join("other/My.Dockerfile");
    lab.build(&dir).args(["-f", file.to_str().unwrap()]).ok();
    std::fs::write(lab.path("Outside"), "FROM scratch\nCOPY f /in\n").unwrap();
    lab.build(&dir).args(["-f", lab.path("Outside").to_str().unwrap()]).ok();
    let mut piped = lab.build(&dir).args(["-f", "-"]);
    piped.0.stdin(std::fs::File::open(lab.path("Outside")).unwrap());
    piped.ok();
}

#[test]
fn an_ignore_file_beside_the_dockerfile_wins() {
    let lab = Lab::new();
    let files = [
        ("Dockerfile", "FROM scratch\nCOPY . /\n"),
        ("Dockerfile.dockerignore", "b\nD*"),
        (".dockerignore", "a"),
        ("a", ""),
        ("b", ""),
    ];
    let out = lab.files_of(lab.context("c", &files));
    assert!(out.join("a").exists() && !out.join("b").exists() && !out.join("Dockerfile").exists());
}

#[test]
fn triggers_of_a_base_image_run_first_and_take_arguments() {
    let lab = Lab::new();
    let text = "FROM @base\nONBUILD ARG WHO=me\nONBUILD COPY greeting /\nONBUILD RUN echo $(cat /greeting) $WHO >/out\n";
    lab.build(lab.dockerfile(text)).args(["--push", "-t", &lab.name("parent:1")]).ok();
    let child = format!("FROM {}\nRUN cat /out >/seen\n", lab.name("parent:1"));
    let child = lab.context("child", &[("Dockerfile", &child), ("greeting", "hello")]);
    let out = lab.path("files");
    let ran = lab.build(&child).args(["-o", out.to_str().unwrap(), "--build-arg", "WHO=you"]).ok();
    assert_eq!(std::fs::read_to_string(out.join("seen")).unwrap(), "hello you\n");
    assert!(!ran.stderr().contains("not consumed"), "{}", ran.stderr());
}

#[test]
fn links_in_the_file_system_are_followed_inside_of_it() {
    let lab = Lab::new();
    let text = "FROM @base\nRUN mkdir /real && ln -s /real /link && ln -s ../../../../etc /up\n\
                COPY Dockerfile /link/a\nCOPY Dockerfile /up/b\nWORKDIR /link/w\nRUN pwd -P >/pwd\n";
    let out = lab.files_of(lab.dockerfile(text));
    assert!(out.join("real/a").is_file() && out.join("etc/b").is_file() && out.join("real/w").is_dir());
    assert_eq!(std::fs::read_to_string(out.join("pwd")).unwrap(), "/real/w\n");
}

#[test]
fn proxies_reach_steps_without_a_trace_in_the_image_or_the_cache() {
    let lab = Lab::new();
    let dir = lab.dockerfile("FROM @base\nRUN echo \"[$http_proxy|$HTTP_PROXY]\"\n");
    let name = lab.name("out:1");
    lab.build(&dir)
        .args(["--build-arg", "HTTP_PROXY=http://proxy:1", "--push", "-t", &name])
        .ok()
        .says(&["[http://proxy:1|http://proxy:1]"]);
    let config = serde_json::to_string(&lab.image("out", "1").1).unwrap();
    assert!(!config.contains("proxy:1"), "{config}");
    assert!(lab.build(&dir).args(["--build-arg", "HTTP_PROXY=http://other:2"]).ok().ran().is_empty());
}

#[test]
fn what_a_step_is_given_stays_out_of_its_layer() {
    let lab = Lab::new();
    // A root without /etc, /dev, /proc, /sys: their places are made for the step alone.
    let dir = lab.context("c", &[("Dockerfile", "FROM scratch\nCOPY sh /bin/sh\nRUN : >/made && : </etc/hosts && : </proc/self/stat && : >/dev/null\n")]);
    std::fs::copy(lapstrake_testkit::rootfs::busybox_program(), dir.join("sh")).unwrap();
    lab.build(&dir).args(["--push", "-t", &lab.name("out:1")]).ok();
    let layer = &lab.image("out", "1").0.layers[1];
    let blob = lab.registry.storage().blob_path(&layer.digest);
    assert_eq!(tool("tar", &["-tzf", blob.to_str().unwrap()]), "made\n");
}

#[test]
fn processes_that_a_step_leaves_behind_do_not_hold_it() {
    let lab = Lab::new();
    let ran =
        lab.build(lab.dockerfile("FROM @base\nRUN (trap '' TERM HUP; sleep 987.65) & echo started\n")).ok();
    assert_eq!(ran.fate("987.65"), Fate::Done);
}

#[test]
fn output_of_any_shape_is_passed_on() {
    let lab = Lab::new();
    let text = "FROM @base\nRUN printf 'bad \\377 byte\\nno end'; printf 'to stderr\\n' >&2; head -c 300000 /dev/zero | tr '\\0' x\n";
    let ran = lab.build(lab.dockerfile(text)).ok();
    ran.says(&["bad \u{fffd} byte", "no end", "to stderr", "xxxxx"]);
}

#[test]
fn a_deep_chain_of_steps_builds_and_packs() {
    let lab = Lab::new();
    let steps: String = (0..140).map(|n| format!("COPY Dockerfile /f{n}\n")).collect();
    let text = format!("FROM @base\n{steps}RUN ls /f* | wc -l >/count\n");
    let dir = lab.dockerfile(&text);
    // A shell's usual limit of open files is lower than what comparing a deep layer takes.
    lab.build(&dir).args(["--push", "-t", &lab.name("deep:1")]).after("ulimit -Sn 100").ok();
    assert_eq!(lab.image("deep", "1").0.layers.len(), 142);
    assert_eq!(lab.file_of(&dir, "count"), "140\n");
}

#[test]
fn odd_names_and_odd_files_of_a_context_are_taken() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    let lab = Lab::new();
    let text = "FROM @base\nCOPY odd /odd\nCOPY [\"sp ace\", \"/to here/\"]\nCOPY [[]x]/ /glob/\n";
    let dir = lab.context(
        "c",
        &[("Dockerfile", text), ("sp ace", "s"), ("[x]/f*", "g"), ("odd/new\nline", "n"), ("odd/h1", "h")],
    );
    let bytes = OsStr::from_bytes(b"not\xffutf8");
    std::fs::write(dir.join("odd").join(bytes), "b").unwrap();
    std::fs::hard_link(dir.join("odd/h1"), dir.join("odd/h2")).unwrap();
    std::os::unix::fs::symlink("loop", dir.join("odd/loop")).unwrap();
    tool("mkfifo", &[dir.join("odd/fifo").to_str().unwrap()]);
    let _socket = std::os::unix::net::UnixListener::bind(dir.join("odd/sock")).unwrap();
    lab.build(&dir).args(["--push", "-t", &lab.name("odd:1")]).ok();
    // Through the registry and back, so that the layer's names are read too.
    let again = lab.context("again", &[("Dockerfile", &format!("FROM {}\n", lab.name("odd:1")))]);
    let out = lab.path("after");
    lab.build_in("fresh", &again).args(["-o", out.to_str().unwrap()]).ok();
    assert_eq!(std::fs::read_to_string(out.join("odd").join(bytes)).unwrap(), "b");
    for there in ["odd/new\nline", "odd/h2", "odd/loop", "odd/fifo", "to here/sp ace", "glob/f*"] {
        assert!(out.join(there).symlink_metadata().is_ok(), "{there}");
    }
    assert_eq!(std::fs::metadata(out.join("odd/h1")).unwrap().nlink(), 2);
}

#[test]
fn the_builders_umask_is_not_the_images() {
    let lab = Lab::new();
    let text = "FROM @base\nWORKDIR /w/x\nCOPY d /d/e/\nCOPY <<EOF /h/here\nx\nEOF\nRUN echo x >/r; mkdir /rd; umask >>/r\n";
    let dir = lab.context("c", &[("Dockerfile", text), ("d/f", "x")]);
    let push = |state: &str, umask: &str| {
        let name = lab.name(&format!("{state}:1"));
        let build =
            lab.build_in(state, &dir).args(["--push", "-t", &name, "--build-arg", "SOURCE_DATE_EPOCH=1"]);
        build.after(umask).ok();
        lab.registry.storage().manifest(state, "1").unwrap().2
    };
    assert_eq!(push("strict", "umask 077"), push("open", "umask 000"));
}

#[test]
fn a_linked_copy_is_neither_made_again_nor_another_layer_on_a_changed_base() {
    let lab = Lab::new();
    let text = "FROM @base AS base\nRUN mkdir -p /srv/app && echo BASE >/srv/app/base && ln -s /srv /link\n\
                FROM base\nCOPY --link app /srv/app/\nCOPY --link --chown=7:8 one /srv/\n\
                RUN cat /srv/app/base /srv/app/f /srv/one >/all && stat -c %u:%g /srv/one >>/all\n";
    let build = |base: &str, name: &str| {
        let files = [("Dockerfile", &*text.replace("BASE", base)), ("app/f", "f\n"), ("one", "one\n")];
        let dir = lab.context("context", &files);
        let ran = lab.build(&dir).args(["-t", &lab.name(name), "--push"]).ok();
        (ran, lab.image(name, "latest").0.layers)
    };
    let (first, before) = build("old", "first");
    assert_eq!(first.fate("] COPY --link app"), Fate::Done);
    let (second, after) = build("new", "second");
    assert_eq!(second.fate("] COPY --link app"), Fate::Cached, "{}", second.stderr());
    assert_eq!(second.fate("] COPY --link --chown=7:8 one"), Fate::Cached);
    assert_eq!(before.len(), after.len());
    let same: Vec<bool> = before.iter().zip(&after).map(|(a, b)| a.digest == b.digest).collect();
    assert_eq!(same, [true, false, true, true, false], "base, RUN, both copies, RUN: {before:?} {after:?}");
    let dir = lab.path("context");
    assert_eq!(lab.file_of(&dir, "all"), "new\nf\none\n7:8\n");
    // Unpacked anew, from what was pushed.
    let again = format!("FROM {}\nRUN cat /srv/app/base /srv/app/f /srv/one\n", lab.name("second"));
    let again = lab.context("again", &[("Dockerfile", &again)]);
    lab.build_in("fresh", &again).ok().says(&["new", "one"]);
}

#[test]
fn only_steps_of_named_stages_are_run_again() {
    let lab = Lab::new();
    let text = "FROM @base AS one\nRUN echo 1 >/one\nFROM @base AS Two\nRUN echo 2 >/two\n\
                FROM @base\nCOPY --from=one /one /\nCOPY --from=two /two /\n";
    let dir = lab.dockerfile(text);
    lab.build(&dir).ok();
    let ran = lab.build(&dir).args(["--no-cache-filter", "two,none"]).ok();
    assert_eq!((ran.fate("echo 1"), ran.fate("echo 2")), (Fate::Cached, Fate::Done), "{}", ran.stderr());
    lab.build(&dir).args(["--no-cache-filter", "two", "--no-cache"]).fails(2).says(&["--no-cache"]);
}
