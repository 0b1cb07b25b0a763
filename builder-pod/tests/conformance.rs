//! What the builder exports and pushes, in the eyes of programs that are not ours: the OCI schemas and
//! go-containerregistry (`e2e/conformance`), skopeo, GNU tar.
//!
//! Needs root, Go, skopeo, GNU tar and a static busybox; says so where one is missing.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use lapstrake_oci::Digest;
use lapstrake_testkit::registry::Registry;
use lapstrake_testkit::{TempDir, rootfs, tempdir};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, makedev, mknodat, utimensat,
};
use serde_json::Value;

/// A layer of its own for each way in which a file can come, change and go.
const STEPS: &str = r#"
ADD tree.tar /tree/
RUN mkdir -p /w/gone /w/opaque/old /w/emptied /w/becomes-file/x /w/becomes-link /w/kept /w/again /w/moved/sub && cd /w && \
    echo a > gone/a && echo b > gone/b && echo c > removed && echo o > opaque/old/o && echo e > emptied/e && \
    echo f > becomes-file/x/f && echo d > becomes-directory && echo t > target && ln -s target kept-link && \
    ln -s kept link-becomes-directory && ln -s target link-becomes-file && echo 1 > kept/edited && \
    echo 2 > kept/beside && echo g > again/g && echo m > moved/sub/m && echo h > hard-1 && ln hard-1 hard-2 && \
    mkdir deep && ln hard-1 deep/hard-3 && echo p > set-user && chown 1234:5678 set-user && chmod 6755 set-user && \
    mkfifo pipe && mkfifo two-1 && ln two-1 two-2 && touch -d @1000 kept/edited kept/beside target && touch -d @2000 kept again deep gone
RUN cd /w && rm -r gone/a removed emptied/e && rm -r opaque && mkdir opaque && echo n > opaque/new && \
    rm -r becomes-file && echo f > becomes-file && rm becomes-directory && mkdir becomes-directory && \
    echo i > becomes-directory/inside && rm -r becomes-link && ln -s target becomes-link && \
    rm link-becomes-directory && mkdir link-becomes-directory && echo l > link-becomes-directory/l && \
    rm link-becomes-file && echo l > link-becomes-file && rm again/g && echo G > again/g && mv moved moved-on && \
    rm -r /tree/opaque-tree && mkdir -p /tree/opaque-tree/same && rm /tree/caps-too
RUN cd /w && echo 11 >> kept/edited && touch -d @3000 kept/edited && chmod 700 opaque && chown 7:8 deep && \
    echo x >> hard-2 && chown -h 54321:12345 kept-link && touch -h -d @4000 kept-link && chmod 2770 gone && \
    rm -r becomes-directory && rm pipe && mkfifo -m 604 pipe
RUN cd /w && mkdir emptied-again && rm -r opaque && echo back > opaque
WORKDIR /made/by/workdir
COPY --chown=33:44 --chmod=640 plain /made/plain
"#;

/// Names that must not be in the image: removed in a later step, or mounted for a step only.
const ABSENT: [&str; 9] = [
    "w/gone/a",
    "w/removed",
    "w/emptied/e",
    "w/moved",
    "w/becomes-directory",
    "tree/opaque-tree/old",
    "tree/caps-too",
    "etc/resolv.conf",
    "etc/hosts",
];

#[test]
fn an_image_of_a_tricky_tree_is_the_same_to_everybody() {
    let place = Place::new("FROM {base}\n", STEPS);
    let out = |name: &str| place.dir.path().join(name);
    let path = |name: &str| out(name).display().to_string();
    let digest = place.build(
        &[],
        "state",
        &[
            format!("type=local,dest={}", path("local")),
            format!("type=docker,dest={}", path("docker.tar")),
            format!("type=oci,tar=false,compression=zstd,dest={}", path("zstd")),
            format!("type=oci,tar=false,dest={}", path("layout")),
            format!("type=oci,dest={}", path("oci.tar")),
            "type=registry".to_owned(),
        ],
    );

    the_schemas_hold(&place, &digest);
    skopeo_finds_the_same_digests(&place, &digest);

    let local = tree(&out("local"));
    for absent in ABSENT {
        assert!(!local.contains_key(OsStr::new(absent)), "{absent} is in the image");
    }
    for (name, layers) in [("tar.gz", layers(&out("layout"))), ("tar.zst", layers(&out("zstd")))] {
        let unpacked = out(name);
        unpack(&layers, &unpacked);
        assert_same(
            &format!("the file system as written, and as unpacked from {name}"),
            &local,
            &tree(&unpacked),
        );
    }
    let unpacked = out("docker");
    unpack(&docker_layers(&out("docker.tar"), &out("docker-archive")), &unpacked);
    assert_same(
        "the file system as written, and as unpacked from the docker archive",
        &local,
        &tree(&unpacked),
    );

    // Of what was added, the steps removed a little.
    let mut added = tree(&place.original);
    added.retain(|name, _| !name.as_bytes().starts_with(b"opaque-tree") && name != "caps-too");
    let mut got = below(&local, "tree/");
    got.retain(|name, _| !name.as_bytes().starts_with(b"opaque-tree"));
    assert_same("the tree as packed by tar, and as added", &added, &got);
}

#[test]
fn what_is_copied_from_a_stage_keeps_all_that_it_has() {
    let stages = "FROM {base} AS made\nADD tree.tar /tree/\nFROM scratch\n";
    let place = Place::new(stages, "COPY --from=made /tree /tree\n");
    let out = place.dir.path().join("local");
    place.build(&[], "state", &[format!("type=local,dest={}", out.display())]);
    assert_same("the tree in its stage, and as copied", &tree(&place.original), &below(&tree(&out), "tree/"));
}

#[test]
fn the_same_build_has_the_same_digest_on_one_core_and_on_all() {
    let place = Place::new("FROM {base}\n", STEPS);
    let blobs = |name: &str, before: &[&str]| {
        let layout = |kind: &str| place.dir.path().join(format!("{name}-{kind}"));
        let output =
            |kind: &str| format!("type=oci,tar=false,compression={kind},dest={}", layout(kind).display());
        let digest = place.build(before, name, &[output("zstd"), output("gzip")]);
        let names = |kind: &str| -> BTreeSet<OsString> {
            fs::read_dir(layout(kind).join("blobs/sha256")).unwrap().map(|e| e.unwrap().file_name()).collect()
        };
        (digest, names("gzip"), names("zstd"))
    };
    let env = ["env", "SOURCE_DATE_EPOCH=1700000000"];
    let all = blobs("all", &env);
    let one = blobs("one", &[&env[..], &["taskset", "-c", "0"]].concat());
    assert_eq!(all, one);
}

/// A registry with a base image, and a build context whose archive holds the original tree.
struct Place {
    dir: TempDir,
    original: PathBuf,
    registry: Registry,
    _runtime: tokio::runtime::Runtime,
}

impl Place {
    fn new(from: &str, steps: &str) -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "this test makes devices and runs steps: run it as root"
        );
        let dir = tempdir().unwrap();
        let (original, context) = (dir.path().join("original"), dir.path().join("context"));
        fs::create_dir_all(&original).unwrap();
        fs::create_dir_all(&context).unwrap();
        original_tree(&original);
        let archive = context.join("tree.tar");
        run(tar()
            .args(["--create", "--sparse", "--format=pax", "--sort=name", "--file"])
            .arg(&archive)
            .arg("--directory")
            .arg(&original)
            .arg("."));
        fs::write(context.join("plain"), "plain\n").unwrap();

        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let registry = runtime.block_on(Registry::open());
        registry.put_image("base", "1", &rootfs::busybox_image().unwrap()).unwrap();
        let base = format!("{}/base:1", registry.host());
        fs::write(context.join("Dockerfile"), from.replace("{base}", &base) + steps).unwrap();
        Self { dir, original, registry, _runtime: runtime }
    }

    fn image(&self) -> String {
        format!("{}/app:1", self.registry.host())
    }

    /// Builds with a state directory of that name, `before` in front of the command; the image's digest.
    fn build(&self, before: &[&str], state: &str, outputs: &[String]) -> String {
        let metadata = self.dir.path().join(format!("{state}.json"));
        let words: Vec<&str> =
            before.iter().copied().chain([env!("CARGO_BIN_EXE_lapstrake-builder")]).collect();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).env_remove("SOURCE_DATE_EPOCH");
        command
            .args(["build", "--progress=plain", "--tag", &self.image(), "--root"])
            .arg(self.dir.path().join(state));
        command.arg("--metadata-file").arg(&metadata);
        for output in outputs {
            command.args(["--output", output]);
        }
        run(command.arg(self.dir.path().join("context")));
        let metadata: Value = serde_json::from_slice(&fs::read(metadata).unwrap()).unwrap();
        metadata["containerimage.digest"].as_str().unwrap_or_default().to_owned()
    }
}

/// Runs a program to its end; shows what it printed where it failed.
fn run(command: &mut Command) -> Output {
    let program = command.get_program().to_string_lossy().into_owned();
    let hint = match program.as_str() {
        "go" => "install it from https://go.dev/dl/ and put it on the PATH",
        "taskset" => "apt-get install util-linux",
        _ => &format!("apt-get install {program}"),
    };
    let output = command.output().unwrap_or_else(|e| panic!("{program}: {e}; {hint}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    output
}

fn tar() -> Command {
    let mut tar = Command::new("tar");
    tar.args(["--numeric-owner", "--xattrs", "--xattrs-include=*"]).env("LC_ALL", "C");
    tar
}

fn the_schemas_hold(place: &Place, digest: &str) {
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("oci-validate");
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("../e2e/conformance");
    run(Command::new("go").args(["build", "-o"]).arg(&program).arg(".").current_dir(module));
    let archive = place.dir.path().join("oci");
    fs::create_dir(&archive).unwrap();
    run(tar().arg("-xf").arg(place.dir.path().join("oci.tar")).arg("-C").arg(&archive));
    for layout in [place.dir.path().join("layout"), archive, place.dir.path().join("zstd")] {
        run(Command::new(&program).arg(layout));
    }
    let by_tag = run(Command::new(&program).args(["--insecure", "--registry", &place.image()]));
    let lines = String::from_utf8(by_tag.stdout).unwrap();
    assert!(lines.contains(digest), "{digest} is what was pushed:\n{lines}");
}

fn skopeo_finds_the_same_digests(place: &Place, digest: &str) {
    let path = |name: &str| place.dir.path().join(name).display().to_string();
    let copy = |name: &str, options: &[&str], from: &str| {
        let to = path(name);
        run(Command::new("skopeo")
            .args(["copy", "--quiet"])
            .args(options)
            .arg(from)
            .arg(format!("dir:{to}")));
        fs::read(Path::new(&to).join("manifest.json")).unwrap()
    };
    let kept = ["--preserve-digests", "--src-tls-verify=false"];
    for (name, from) in [
        ("of-layout", format!("oci:{}", path("layout"))),
        ("of-archive", format!("oci-archive:{}", path("oci.tar"))),
        ("of-registry", format!("docker://{}", place.image())),
    ] {
        assert_eq!(Digest::of(&copy(name, &kept, &from)).to_string(), digest, "{from}");
    }
    // A docker archive has no manifest of its own; the image's identity is its config, which names each layer.
    let config =
        |manifest: &[u8]| serde_json::from_slice::<Value>(manifest).unwrap()["config"]["digest"].clone();
    let docker = copy("of-docker", &[], &format!("docker-archive:{}", path("docker.tar")));
    let layout = fs::read(place.dir.path().join("of-layout/manifest.json")).unwrap();
    assert_eq!(config(&docker), config(&layout));
}

/// The layers of the one image in a layout, lowest first.
fn layers(layout: &Path) -> Vec<PathBuf> {
    let blob = |digest: &Value| layout.join("blobs").join(digest.as_str().unwrap().replace(':', "/"));
    let json = |path: PathBuf| serde_json::from_slice::<Value>(&fs::read(path).unwrap()).unwrap();
    let manifest = json(blob(&json(layout.join("index.json"))["manifests"][0]["digest"]));
    manifest["layers"].as_array().unwrap().iter().map(|layer| blob(&layer["digest"])).collect()
}

fn docker_layers(archive: &Path, into: &Path) -> Vec<PathBuf> {
    fs::create_dir(into).unwrap();
    run(tar().arg("-xf").arg(archive).arg("-C").arg(into));
    let manifest: Value = serde_json::from_slice(&fs::read(into.join("manifest.json")).unwrap()).unwrap();
    manifest[0]["Layers"].as_array().unwrap().iter().map(|layer| into.join(layer.as_str().unwrap())).collect()
}

/// Unpacks layers by GNU tar, and does by hand what tar knows nothing of: whiteouts, and what was a
/// directory becoming something else.
fn unpack(layers: &[PathBuf], root: &Path) {
    fs::create_dir(root).unwrap();
    for layer in layers {
        let listed = run(tar().args(["--list", "--quoting-style=escape", "--file"]).arg(layer));
        let names: Vec<Vec<u8>> =
            listed.stdout.split(|b| *b == b'\n').filter(|l| !l.is_empty()).map(unescape).collect();
        let (marks, entries): (Vec<_>, Vec<_>) =
            names.iter().partition(|name| file_name(name).starts_with(b".wh."));
        for mark in marks {
            let (dir, name) = (root.join(OsStr::from_bytes(parent(mark))), &file_name(mark)[4..]);
            if name == b".wh..opq" {
                fs::read_dir(dir).into_iter().flatten().for_each(|entry| remove(&entry.unwrap().path()));
            } else {
                remove(&dir.join(OsStr::from_bytes(name)));
            }
        }
        for entry in entries {
            let path = root.join(OsStr::from_bytes(entry.strip_suffix(b"/").unwrap_or(entry)));
            let there = fs::symlink_metadata(&path);
            if there.is_ok_and(|there| there.is_dir() != entry.ends_with(b"/")) {
                remove(&path);
            }
        }
        run(tar()
            .args(["--extract", "--same-owner", "--same-permissions", "--delay-directory-restore"])
            .args(["--exclude=.wh.*", "--directory"])
            .arg(root)
            .arg("--file")
            .arg(layer));
    }
}

fn file_name(path: &[u8]) -> &[u8] {
    path.rsplit(|b| *b == b'/').next().unwrap_or(path)
}

fn parent(path: &[u8]) -> &[u8] {
    &path[..path.len() - file_name(path).len()]
}

/// Removes whatever has that name, and complains of nothing where nothing has: a whiteout may be of a
/// file that is below no other.
fn remove(path: &Path) {
    match fs::symlink_metadata(path) {
        Ok(there) if there.is_dir() => fs::remove_dir_all(path).unwrap(),
        Ok(_) => fs::remove_file(path).unwrap(),
        Err(_) => {}
    }
}

/// Undoes tar's quoting style `escape`.
fn unescape(line: &[u8]) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::new(), line);
    while let [first, after @ ..] = rest {
        rest = after;
        if *first != b'\\' {
            out.push(*first);
            continue;
        }
        let octal = after
            .get(..3)
            .and_then(|o| std::str::from_utf8(o).ok())
            .and_then(|o| u8::from_str_radix(o, 8).ok());
        let (byte, length) = match (octal, after.first()) {
            (Some(byte), _) => (byte, 3),
            (None, Some(b'n')) => (b'\n', 1),
            (None, Some(other)) => (*other, 1),
            (None, None) => (b'\\', 0),
        };
        out.push(byte);
        rest = &after[length..];
    }
    out
}

/// Every file below a root, and all that there is to know of it.
type Tree = BTreeMap<OsString, String>;

fn tree(root: &Path) -> Tree {
    let mut files = Tree::new();
    let mut first_names = BTreeMap::new();
    walk(root, Path::new(""), &mut first_names, &mut files);
    files
}

fn walk(root: &Path, dir: &Path, first_names: &mut BTreeMap<u64, PathBuf>, files: &mut Tree) {
    let mut names: Vec<OsString> =
        fs::read_dir(root.join(dir)).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    for name in names {
        let below = dir.join(name);
        let path = root.join(&below);
        let meta = fs::symlink_metadata(&path).unwrap();
        let kind = meta.file_type();
        let what = if kind.is_dir() {
            "directory".to_owned()
        } else if kind.is_symlink() {
            format!("symlink to {:?}", fs::read_link(&path).unwrap())
        } else if kind.is_file() {
            format!("file of {} bytes {}", meta.len(), Digest::of(&fs::read(&path).unwrap()))
        } else if kind.is_fifo() {
            "fifo".to_owned()
        } else {
            let letter = if kind.is_char_device() { 'c' } else { 'b' };
            format!("device {letter} {}:{}", rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()))
        };
        let first = match kind.is_dir() || meta.nlink() < 2 {
            true => String::new(),
            false => format!(
                ", {} names, first {:?}",
                meta.nlink(),
                first_names.entry(meta.ino()).or_insert(below.clone())
            ),
        };
        let text = format!(
            "{what}, {:04o} {}:{} at {}{first}{}",
            meta.mode() & 0o7777,
            meta.uid(),
            meta.gid(),
            meta.mtime(),
            xattrs(&path)
        );
        if kind.is_dir() {
            walk(root, &below, first_names, files);
        }
        files.insert(below.into_os_string(), text);
    }
}

fn xattrs(path: &Path) -> String {
    let mut buffer = vec![0; 64 << 10];
    let length = rustix::fs::llistxattr(path, &mut buffer[..]).unwrap();
    let mut names: Vec<Vec<u8>> =
        buffer[..length].split(|b| *b == 0).filter(|n| !n.is_empty()).map(<[u8]>::to_vec).collect();
    names.sort();
    let mut text = String::new();
    for name in names {
        let length = rustix::fs::lgetxattr(path, &name[..], &mut buffer[..]).unwrap();
        text += &format!(", {}={:?}", String::from_utf8_lossy(&name), OsStr::from_bytes(&buffer[..length]));
    }
    text
}

/// The part of a tree below a directory, under the names that it has there.
fn below(tree: &Tree, dir: &str) -> Tree {
    let inside = |(name, text): (&OsString, &String)| {
        let name = OsString::from_vec(name.as_bytes().strip_prefix(dir.as_bytes())?.to_vec());
        Some((name, text.replace(&format!("first \"{dir}"), "first \"")))
    };
    tree.iter().filter_map(inside).collect()
}

fn assert_same(what: &str, left: &Tree, right: &Tree) {
    let names: BTreeSet<&OsString> = left.keys().chain(right.keys()).collect();
    let absent = "absent".to_owned();
    let lines: Vec<String> = names
        .into_iter()
        .map(|name| (name, left.get(name).unwrap_or(&absent), right.get(name).unwrap_or(&absent)))
        .filter(|(_, left, right)| left != right)
        .map(|(name, left, right)| format!("{name:?}\n  {left}\n  {right}"))
        .collect();
    assert!(lines.is_empty(), "{what}: {} of {} files differ\n{}", lines.len(), left.len(), lines.join("\n"));
    assert!(left.len() > 30, "{what}: {} files are no tricky tree", left.len());
}

/// All that a file system can hold and an archive may lose.
fn original_tree(root: &Path) {
    let at = |name: &str| root.join(name);
    let write = |name: &str, content: &[u8]| fs::write(at(name), content).unwrap();
    let mode =
        |name: &str, mode: u32| fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).unwrap();
    for dir in ["dir/deeper", "empty", "sticky", "set-group", "opaque-tree/old", "opaque-tree/same"] {
        fs::create_dir_all(at(dir)).unwrap();
    }
    for name in [
        "plain",
        "set-user",
        "no-rights",
        "opaque-tree/old/o",
        "caps-too",
        "with space",
        "new\nline",
        "-dash",
        "..dots",
    ] {
        write(name, name.as_bytes());
    }
    for name in ["quote'\"back\\slash*?[x]", "umlaut-ü-漢字", ".wh", "tab\there", " leading"] {
        write(name, b"");
    }
    fs::write(root.join(OsStr::from_bytes(b"latin-\xe9-\xff")), "not utf-8").unwrap();
    write("noise", &noise(3 << 20));
    mode("set-user", 0o6755);
    mode("no-rights", 0);
    mode("sticky", 0o1777);
    mode("set-group", 0o2775);
    long_names(root);
    links(root);
    devices(root);
    let mut sparse = File::create(at("sparse")).unwrap();
    for data in [1 << 20, 5 << 20] {
        sparse.seek(SeekFrom::Start(data)).unwrap();
        sparse.write_all(b"data between holes").unwrap();
    }
    sparse.set_len(16 << 20).unwrap();
    for (name, owner) in
        [("plain", (54321, 12345)), ("empty", (4_000_000_000, 3_000_000_000)), ("sparse", (65534, 0))]
    {
        chown(at(name), Some(owner.0), Some(owner.1)).unwrap();
    }
    attributes(root);
    for (name, seconds) in [
        ("plain", -1_000_000_000),
        ("no-rights", 10_000_000_000),
        ("empty", -1),
        ("sticky", 0),
        ("symlink", -86_400),
        ("sparse", 4_294_967_296),
        ("char", 1),
        ("dir/deeper", 8_589_934_592),
        ("dir", 1_000_000_000),
    ] {
        // A fraction of a second is lost by a layer; it must not round up.
        let time = Timespec { tv_sec: seconds, tv_nsec: 900_000_000 };
        let times = Timestamps { last_access: time, last_modification: time };
        utimensat(CWD, at(name), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}

/// Bytes that no compressor makes smaller, the same each time.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..length).map(|_| next()).collect()
}

fn long_names(root: &Path) {
    // At the bounds of ustar's fields, and far beyond them.
    for length in [99, 100, 101, 155, 156, 255] {
        fs::write(root.join("l".repeat(length)), "long").unwrap();
        symlink("t".repeat(length), root.join(format!("long-link-{length}"))).unwrap();
    }
    let deep = root.join("d".repeat(150)).join("e".repeat(255)).join("ü".repeat(100));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("f".repeat(255)), "deep").unwrap();
    fs::hard_link(deep.join("f".repeat(255)), deep.join("g".repeat(200))).unwrap();
    symlink(format!("{}x", "../".repeat(400)), root.join("far-link")).unwrap();
}

fn links(root: &Path) {
    let link = |target: &str, name: &str| symlink(target, root.join(name)).unwrap();
    link("loop-b", "loop-a");
    link("loop-a", "loop-b");
    link("self", "self");
    link("/nowhere/at all", "dangling");
    link("../../../../../etc/passwd", "up");
    link("dir/", "symlink");
    lchown(root.join("symlink"), Some(54321), Some(12345)).unwrap();
    fs::write(root.join("dir/hard-1"), "hard").unwrap();
    fs::hard_link(root.join("dir/hard-1"), root.join("dir/deeper/hard-2")).unwrap();
    fs::hard_link(root.join("dir/hard-1"), root.join("a-hard-0")).unwrap();
    fs::write(root.join("empty-hard-1"), "").unwrap();
    fs::hard_link(root.join("empty-hard-1"), root.join("empty-hard-2")).unwrap();
    fs::hard_link(root.join("dangling"), root.join("dangling-too")).unwrap();
}

fn devices(root: &Path) {
    let make = |name: &str, kind, mode: u32, device| {
        let path = root.join(name);
        mknodat(CWD, &path, kind, Mode::RUSR, device).unwrap_or_else(|e| panic!("mknod {name}: {e}"));
        chown(&path, Some(54321), Some(6)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    };
    make("char", FileType::CharacterDevice, 0o666, makedev(1, 3));
    make("char-large", FileType::CharacterDevice, 0o600, makedev(250, 70_000));
    make("block", FileType::BlockDevice, 0o660, makedev(7, 200));
    make("fifo", FileType::Fifo, 0o1604, 0);
}

fn attributes(root: &Path) {
    let set = |name: &str, key: &str, value: &[u8]| {
        let set = rustix::fs::lsetxattr(root.join(name), key, value, XattrFlags::empty());
        set.unwrap_or_else(|e| panic!("setxattr {name} {key}: {e}"));
    };
    // cap_net_bind_service,cap_net_raw=ep, as the kernel stores it: revision 2, effective.
    let capabilities = [1u32 | 0x0200_0000, 1 << 10 | 1 << 13, 0, 0, 0].map(u32::to_le_bytes).concat();
    for name in ["caps", "caps-too"] {
        fs::write(root.join(name), "capable").unwrap();
        chown(root.join(name), Some(0), Some(54321)).unwrap();
        fs::set_permissions(root.join(name), fs::Permissions::from_mode(0o4755)).unwrap();
        set(name, "security.capability", &capabilities);
    }
    set("dir", "user.note", b"of a directory");
    set("dir/deeper/hard-2", "user.note", b"of all its names");
    set("plain", "user.empty", b"");
    set("plain", "user.binary", b"a=b\n12 c=d\n\0\xff end");
    set("plain", "user.key=with equals", b"value");
    set("plain", "user.100%3D", b"%");
    set("plain", "user.long", &[b'x'; 900]);
}
