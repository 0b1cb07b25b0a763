//! The image itself: config and history as BuildKit writes them, file trees exact to the bit.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use lapstrake_oci::{Digest, ImageConfig};
use lapstrake_testkit::registry::Options;

use crate::lab::{Lab, tool};
use crate::userns::{Mode, PodPlace};

fn created_by(config: &ImageConfig) -> Vec<(String, bool)> {
    let text = |h: &lapstrake_oci::History| (h.created_by.clone().unwrap_or_default(), h.empty_layer);
    config.history.iter().map(text).collect()
}

#[test]
fn config_and_history_are_what_buildkit_writes() {
    let lab = Lab::new();
    let text = "FROM @base\nARG V=1\nENV A=b\nLABEL l=m\nWORKDIR /w\nCOPY --chmod=644 Dockerfile d\nRUN echo $V >v\n\
                RUN [\"true\"]\nUSER nobody\nEXPOSE 80 53/udp\nVOLUME /data\nSTOPSIGNAL SIGINT\nSHELL [\"/bin/sh\", \"-ec\"]\n\
                HEALTHCHECK --interval=5s CMD wget -q localhost\nENTRYPOINT [\"/bin/sh\"]\nCMD [\"-c\", \"id\"]\n";
    lab.build(lab.dockerfile(text)).args(["--push", "-t", &lab.name("out:1")]).ok();
    let (manifest, config) = lab.image("out", "1");
    let expected = [
        ("ARG V=1", true),
        ("ENV A=b", true),
        ("LABEL l=m", true),
        ("WORKDIR /w", false),
        ("COPY --chmod=644 Dockerfile d # buildkit", false),
        ("RUN |1 V=1 /bin/sh -c echo $V >v # buildkit", false),
        ("RUN |1 V=1 true # buildkit", false),
        ("USER nobody", true),
        ("EXPOSE [53/udp 80/tcp]", true),
        ("VOLUME [/data]", true),
        ("STOPSIGNAL SIGINT", true),
        ("SHELL [/bin/sh -ec]", true),
        (
            "HEALTHCHECK {Test:[CMD-SHELL wget -q localhost] Interval:5s Timeout:0s StartPeriod:0s StartInterval:0s Retries:0}",
            true,
        ),
        ("ENTRYPOINT [\"/bin/sh\"]", true),
        ("CMD [\"-c\" \"id\"]", true),
    ];
    let expected: Vec<_> = expected.iter().map(|(text, empty)| ((*text).to_owned(), *empty)).collect();
    // The busybox base has a layer without a history: it gets an entry of its own.
    let history = created_by(&config);
    assert_eq!(history[0], (String::new(), false));
    assert_eq!(history[1..], expected);
    assert!(config.history.iter().skip(1).all(|h| h.comment.as_deref() == Some("buildkit.dockerfile.v0")));
    let c = &config.config;
    assert_eq!(c.env, ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "A=b"]);
    assert_eq!((c.user.as_str(), c.working_dir.as_str(), c.stop_signal.as_str()), ("nobody", "/w", "SIGINT"));
    assert_eq!(c.exposed_ports.keys().collect::<Vec<_>>(), ["53/udp", "80/tcp"]);
    assert_eq!(c.entrypoint.as_deref().unwrap(), ["/bin/sh"]);
    assert_eq!(c.cmd.as_deref().unwrap(), ["-c", "id"]);
    layers_match_history(&lab, "out");
    assert_eq!(manifest.layers.len(), 5, "the base and a layer for each step");
}

#[track_caller]
fn layers_match_history(lab: &Lab, repository: &str) {
    let (manifest, config) = lab.image(repository, "1");
    assert_eq!(manifest.layers.len(), config.rootfs.diff_ids.len());
    let own = config.history.iter().filter(|h| !h.empty_layer).count();
    assert_eq!(own, manifest.layers.len());
    for (layer, diff_id) in manifest.layers.iter().zip(&config.rootfs.diff_ids) {
        let blob = lab.registry.storage().blob_path(&layer.digest);
        let tar = std::process::Command::new("gzip")
            .arg("-dc")
            .stdin(std::fs::File::open(blob).unwrap())
            .output()
            .unwrap();
        assert_eq!(Digest::of(&tar.stdout), *diff_id);
    }
}

#[test]
fn the_same_input_and_epoch_give_the_same_digest_from_different_states() {
    let lab = Lab::new();
    let text = "FROM @base\nWORKDIR /w\nCOPY . .\nRUN date +%N >/dev/null; echo x >x; mkdir d; ln x d/hard; ln -s x s; touch -d '2001-01-01 00:00:00' old\nADD . /added/\nCMD [\"x\"]\n";
    let dir = lab.context("c", &[("Dockerfile", text), ("f", "1"), ("sub/g", "2")]);
    let push = |state: &str, name: &str| {
        lab.build_in(state, &dir)
            .args(["--push", "-t", &lab.name(name), "--build-arg", "SOURCE_DATE_EPOCH=1700000000"])
            .ok();
    };
    push("one", "first:1");
    tool("touch", &["-d", "2031-01-01", dir.join("f").to_str().unwrap()]);
    tool("touch", &["-d", "2031-01-01", dir.join("sub").to_str().unwrap()]);
    push("two", "second:1");
    let (first, second) = (lab.image("first", "1"), lab.image("second", "1"));
    assert_eq!(first.1.created.as_deref(), Some("2023-11-14T22:13:20Z"));
    let ids = |image: &(lapstrake_oci::Manifest, ImageConfig)| image.1.rootfs.diff_ids.clone();
    assert_eq!(ids(&first), ids(&second));
    let digest = |name: &str| lab.registry.storage().manifest(name, "1").unwrap().2;
    assert_eq!(digest("first"), digest("second"));
    push("one", "again:1");
    assert_eq!(digest("first"), digest("again"));
    let env = lab
        .build_in("one", &dir)
        .args(["--push", "-t", &lab.name("env:1")])
        .env("SOURCE_DATE_EPOCH", "1700000000");
    env.ok();
    assert_eq!(digest("first"), digest("env"), "the environment says it as well");
}

/// Makes what is hard to carry: each line of it was once lost by some tool.
const TRICKY: &str = r#"FROM @base
RUN mkdir -p /t/lower/dir /t/opaque/old /t/replaced && cd /t && \
    echo gone >lower/gone && echo stays >lower/stays && echo x >opaque/old/x && echo f >replaced/f && \
    echo linked >lower/linked && ln lower/linked lower/linked2 && echo up >modes
RUN <<EOF
set -e
cd /t
rm lower/gone
rm -r opaque && mkdir opaque && echo new >opaque/new
rm -r replaced && echo "now a file" >replaced
chmod 4711 modes
ln lower/linked lower/linked3
echo hard >h1; ln h1 h2; mkdir sub; ln h1 sub/h3
echo s >setgid; chmod 2755 setgid
mkdir sticky; chmod 1777 sticky
ln -s loop2 loop1; ln -s loop1 loop2; ln -s /nowhere/at/all dangling; ln -s .. up
mkfifo fifo; chmod 0600 fifo
name=$(printf 'n%.0s' $(seq 1 250))
mkdir -p $name/$name; echo deep >$name/$name/$name
printf 'sp ace\ttab' >"sp ace	tab"
echo umlaut >"ümläut"
truncate -s 64M sparse; echo end >>sparse
echo odd >odd; chown 12345:54321 odd; chown 4294967294:1 dangling -h
chown 77777:1 sticky
touch -d '1999-12-31 23:59:58' old
touch -d '2100-01-02 03:04:05' future
mkdir empty; : >nothing
echo '.wh.' >not-a-whiteout
chmod 000 nothing
EOF
"#;

/// Extended attributes but those of overlay itself.
fn attributes(path: &Path) -> String {
    let mut names = vec![0; 4096];
    let len = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let mut all = String::new();
    for name in names[..len].split(|b| *b == 0).filter(|n| !n.is_empty()) {
        let name = std::str::from_utf8(name).unwrap();
        let mut value = vec![0; 4096];
        let len = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
        if !name.contains("overlay.") {
            all += &format!(" {name}={:?}", &value[..len]);
        }
    }
    all
}

/// All that can be said of a file tree: type, mode, owner, size, time, link, content, attributes.
fn listing(root: &Path) -> BTreeMap<PathBuf, String> {
    fn walk(
        root: &Path,
        dir: &Path,
        out: &mut BTreeMap<PathBuf, String>,
        inodes: &mut BTreeMap<u64, PathBuf>,
    ) {
        let mut entries: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
        entries.sort();
        for path in entries {
            let meta = std::fs::symlink_metadata(&path).unwrap();
            let name = path.strip_prefix(root).unwrap().to_owned();
            // Layers carry whole seconds, as BuildKit's do.
            let mut line =
                format!("{:o} {}:{} {} {:x}", meta.mode(), meta.uid(), meta.gid(), meta.mtime(), meta.rdev());
            if meta.is_symlink() {
                line += &format!(" -> {}", std::fs::read_link(&path).unwrap().display());
            }
            if meta.is_file() {
                line += &format!(" {} {}", meta.len(), Digest::of(&std::fs::read(&path).unwrap()));
                if meta.nlink() > 1 {
                    line += &format!(
                        " as {}",
                        inodes.entry(meta.ino()).or_insert_with(|| name.clone()).display()
                    );
                }
            }
            line += &attributes(&path);
            if meta.is_dir() {
                walk(root, &path, out, inodes);
            }
            out.insert(name, line);
        }
    }
    let mut out = BTreeMap::new();
    walk(root, root, &mut out, &mut BTreeMap::new());
    out
}

#[test]
fn a_tricky_tree_survives_the_way_through_a_registry() {
    let lab = Lab::new();
    let dir = lab.dockerfile(TRICKY);
    let before = lab.path("before");
    lab.build(&dir).args(["-o", before.to_str().unwrap(), "--push", "-t", &lab.name("tricky:1")]).ok();
    layers_match_history(&lab, "tricky");
    // Another builder, which has only what the registry gives.
    let after = lab.path("after");
    let again = lab.context("again", &[("Dockerfile", &format!("FROM {}\n", lab.name("tricky:1")))]);
    lab.build_in("fresh", &again).args(["-o", after.to_str().unwrap()]).ok();
    let (before_list, after_list) = (listing(&before.join("t")), listing(&after.join("t")));
    assert_eq!(before_list, after_list);
    let t = after.join("t");
    assert!(!t.join("lower/gone").exists() && !t.join("opaque/old").exists() && t.join("replaced").is_file());
    let ino = |p: &str| std::fs::metadata(t.join(p)).unwrap().ino();
    assert_eq!((ino("h1"), ino("lower/linked")), (ino("sub/h3"), ino("lower/linked3")));
    assert_eq!(before_list.len(), 33);
    assert!(std::fs::metadata(t.join("sparse")).unwrap().blocks() < 1024, "a hole stays a hole");
}

#[test]
fn skopeo_copies_what_was_pushed_and_tar_unpacks_it() {
    let lab = Lab::new();
    lab.build(lab.dockerfile(TRICKY)).args(["--push", "-t", &lab.name("tricky:1")]).ok();
    let from = format!("docker://{}", lab.name("tricky:1"));
    let to = lab.path("copy");
    tool("skopeo", &["copy", "--src-tls-verify=false", &from, &format!("oci:{}:latest", to.display())]);
    let inspected = tool("skopeo", &["inspect", "--tls-verify=false", &from]);
    assert!(inspected.contains("\"linux\""), "{inspected}");
    let (manifest, _) = lab.image("tricky", "1");
    let root = lab.path("unpacked");
    std::fs::create_dir(&root).unwrap();
    // The last layer alone: tar knows nothing of whiteouts.
    let blob = to.join("blobs/sha256").join(manifest.layers[2].digest.hex());
    tool("tar", &["-xzpf", blob.to_str().unwrap(), "-C", root.to_str().unwrap(), "--numeric-owner"]);
    assert!(root.join("t/opaque/.wh.old").exists(), "what the directory made anew hides is marked");
    assert!(root.join("t/lower/.wh.gone").exists(), "the removed file is marked");
    assert_eq!(std::fs::metadata(root.join("t/sparse")).unwrap().len(), (64 << 20) + 4);
}

#[test]
fn capabilities_attributes_and_devices_are_carried() {
    let lab = Lab::new();
    let dir = lab.context("c", &[("Dockerfile", "FROM scratch\nCOPY . /\n"), ("program", "#!\n")]);
    let program = dir.join("program");
    tool("mknod", &[dir.join("null").to_str().unwrap(), "c", "1", "3"]);
    tool("setcap", &["cap_net_bind_service=ep", program.to_str().unwrap()]);
    rustix::fs::setxattr(&program, "user.note", b"kept", rustix::fs::XattrFlags::empty()).unwrap();
    lab.build(&dir).args(["--push", "-t", &lab.name("caps:1")]).ok();
    let again = lab.context("again", &[("Dockerfile", &format!("FROM {}\n", lab.name("caps:1")))]);
    let out = lab.path("after");
    lab.build_in("fresh", &again).args(["-o", out.to_str().unwrap()]).ok();
    let shown = tool("getcap", &[out.join("program").to_str().unwrap()]);
    assert!(shown.contains("cap_net_bind_service=ep"), "{shown}");
    assert_eq!(listing(&out), listing(&dir));
    assert!(attributes(&out.join("program")).contains("user.note"), "a context's own attributes are kept");
}

#[test]
fn an_image_of_scratch_without_files_has_no_layers() {
    let lab = Lab::with(Options::default());
    lab.build(lab.dockerfile("FROM scratch\nLABEL a=b\nCMD [\"x\"]\n"))
        .args(["--push", "-t", &lab.name("none:1")])
        .ok();
    let (manifest, config) = lab.image("none", "1");
    assert!(manifest.layers.is_empty() && config.rootfs.diff_ids.is_empty());
    assert_eq!(config.config.labels["a"], "b");
    assert_eq!(config.config.env, ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]);
}

#[test]
fn a_base_images_history_and_layers_stay_as_they_came() {
    let lab = Lab::new();
    lab.build(lab.dockerfile("FROM @base\nRUN echo 1 >/one\nCMD [\"a\"]\n"))
        .args(["--push", "-t", &lab.name("lower:1")])
        .ok();
    let upper = lab.context(
        "upper",
        &[("Dockerfile", &format!("FROM {}\nRUN echo 2 >/two\nENTRYPOINT [\"e\"]\n", lab.name("lower:1")))],
    );
    lab.build_in("other", &upper).args(["--push", "-t", &lab.name("upper:1")]).ok();
    let (low, low_config) = lab.image("lower", "1");
    let (up, up_config) = lab.image("upper", "1");
    assert_eq!(up.layers[..low.layers.len()], low.layers[..]);
    assert_eq!(up_config.history[..low_config.history.len()], low_config.history[..]);
    assert_eq!(up.layers.len(), low.layers.len() + 1);
    assert_eq!(up_config.config.cmd, None, "ENTRYPOINT clears an inherited CMD");
}

#[test]
fn the_image_is_the_same_whatever_sandbox_its_steps_ran_in() {
    let lab = Lab::new();
    // Owners that a pod's user namespace has.
    let text = TRICKY.replace("77777:1", "7777:1").replace("4294967294:1", "65000:1");
    let place = PodPlace::new(&lab, &text);
    let digest = |mode: Option<Mode>| {
        let ran = place.build(&lab, mode).ok();
        String::from_utf8(ran.stdout).unwrap()
    };
    let root = digest(None);
    assert!(root.starts_with("sha256:"), "{root}");
    assert_eq!(digest(Some(Mode::UserNamespace)), root);
    assert_eq!(digest(Some(Mode::Baseline)), root);
}
