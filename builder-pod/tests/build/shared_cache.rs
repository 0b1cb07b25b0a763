//! Caches that go from one state directory to another: what is found in them, what travels, what is said.

use std::path::{Path, PathBuf};

use lapstrake_testkit::registry::{Ask, Auth, Options};

use crate::lab::{Fate, Lab};

const APP: &str = "\
FROM @base AS build
WORKDIR /src
COPY lib lib
RUN cat lib/* >/src/lib.o
COPY main main
RUN cat lib.o main >/src/app
FROM @base
COPY --from=build /src/app /app
RUN echo ran >/ran
";

/// Instructions of [`APP`] that run where no cache has them.
const ALL: usize = 7;

fn app(lab: &Lab) -> PathBuf {
    lab.context("app", &[("Dockerfile", APP), ("lib/a", "a"), ("lib/b", "b"), ("main", "main")])
}

fn local(kind: &str, dir: &Path, more: &str) -> String {
    format!("type=local,{kind}={}{more}", dir.display())
}

#[test]
fn a_second_machine_runs_nothing_with_a_cache_in_a_registry() {
    let lab = Lab::new();
    let dir = app(&lab);
    for (form, mode) in
        [("image-manifest=true", "max"), ("image-manifest=false", "max"), ("oci-mediatypes=false", "min")]
    {
        let reference = lab.name("app/cache:1");
        let first = lab
            .build_in(&format!("one-{form}"), &dir)
            .args(["--cache-to", &format!("type=registry,ref={reference},mode={mode},{form}")])
            .ok();
        assert_eq!(first.ran().len(), ALL, "{}", first.stderr());
        let second = lab.build_in(&format!("two-{form}"), &dir).args(["--cache-from", &reference]).ok();
        match mode {
            "max" => assert!(second.ran().is_empty(), "{form}: {}", second.stderr()),
            // The stage that is only copied from runs again: its layers are in no result.
            _ => assert!(
                !second.ran().iter().any(|step| step.contains("echo ran")),
                "{form}: {}",
                second.stderr()
            ),
        }
        assert_eq!(second.fate("RUN echo ran"), Fate::Cached, "{form}");
    }
}

#[test]
fn a_second_machine_runs_nothing_with_a_cache_in_a_directory_and_makes_the_same_files() {
    let lab = Lab::new();
    let dir = app(&lab);
    let cache = lab.path("cache");
    lab.build_in("one", &dir).args(["--cache-to", &local("dest", &cache, ",mode=max,tag=app")]).ok();
    let out = lab.path("files");
    let second = lab
        .build_in("two", &dir)
        .args(["--cache-from", &local("src", &cache, ",tag=app"), "-o", out.to_str().unwrap()])
        .ok();
    assert!(second.ran().is_empty(), "{}", second.stderr());
    assert_eq!(std::fs::read_to_string(out.join("app")).unwrap(), "abmain");
    assert_eq!(std::fs::read_to_string(out.join("ran")).unwrap(), "ran\n");
    // What was fetched is a record of this machine's own now.
    let third = lab.build_in("two", &dir).ok();
    assert!(third.ran().is_empty(), "{}", third.stderr());
}

/// What the index of a layout names.
fn named(layout: &Path) -> Vec<String> {
    let bytes = std::fs::read(layout.join("index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    let all = index["manifests"].as_array().unwrap().iter();
    all.map(|one| one["digest"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_cache_that_is_written_again_of_one_that_was_read_is_the_same() {
    let lab = Lab::new();
    let dir = app(&lab);
    let (first, again) = (lab.path("first"), lab.path("again"));
    let to = |dir: &Path| local("dest", dir, ",mode=max");
    lab.build_in("one", &dir).args(["--cache-to", &to(&first)]).ok();
    let second = lab
        .build_in("two", &dir)
        .args(["--cache-from", &local("src", &first, ""), "--cache-to", &to(&again)])
        .ok();
    // The copy of a stage was found by its definition, so that nobody asked for what it reads.
    assert!(second.ran().is_empty(), "{}", second.stderr());
    assert_eq!(named(&again), named(&first));
}

/// How many blobs of a layout are packed by gzip, and how many by zstd.
fn packed(layout: &Path) -> [usize; 2] {
    let mut found = [0, 0];
    for entry in std::fs::read_dir(layout.join("blobs/sha256")).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        found[0] += usize::from(bytes.starts_with(&[0x1f, 0x8b]));
        found[1] += usize::from(bytes.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]));
    }
    found
}

#[test]
fn a_cache_in_zstd_keeps_what_is_packed_already_unless_forced_and_is_read_like_any_other() {
    let lab = Lab::new();
    let dir = app(&lab);
    let [plain, mixed, forced, fresh] = ["plain", "mixed", "forced", "fresh"].map(|name| lab.path(name));
    let to = |dir: &Path, more: &str| local("dest", dir, &format!(",mode=max{more}"));
    lab.build_in("one", &dir).args(["--cache-to", &to(&plain, "")]).ok();
    let [layers, none] = packed(&plain);
    assert!(layers > 0 && none == 0);
    lab.build_in("one", &dir).args(["--cache-to", &to(&mixed, ",compression=zstd")]).ok();
    assert_eq!(packed(&mixed), [layers, 0], "they have a blob each");
    lab.build_in("one", &dir)
        .args(["--cache-to", &to(&forced, ",compression=zstd,force-compression=true")])
        .ok();
    assert_eq!(packed(&forced), [0, layers]);
    // What never had a blob is packed as asked; the base image's layers have theirs.
    lab.build_in("two", &dir).args(["--cache-to", &to(&fresh, ",compression=zstd,compression-level=7")]).ok();
    let [of_the_base, made] = packed(&fresh);
    assert!(of_the_base < made && of_the_base + made == layers, "{of_the_base} {made} {layers}");

    for (number, cache) in [mixed, forced, fresh].iter().enumerate() {
        let out = lab.path(&format!("files-{number}"));
        let build = lab.build_in(&format!("empty-{number}"), &dir);
        let read = build.args(["--cache-from", &local("src", cache, ""), "-o", out.to_str().unwrap()]).ok();
        assert!(read.ran().is_empty(), "{}", read.stderr());
        assert_eq!(std::fs::read_to_string(out.join("app")).unwrap(), "abmain");
    }
}

#[test]
fn a_cache_whose_layers_are_gone_fails_no_build() {
    let lab = Lab::new();
    let dir = app(&lab);
    let cache = lab.path("cache");
    lab.build_in("one", &dir).args(["--cache-to", &local("dest", &cache, ",mode=max")]).ok();
    // Layers are packed; manifest and config, which promise them, are not.
    for entry in std::fs::read_dir(cache.join("blobs/sha256")).unwrap() {
        let file = entry.unwrap().path();
        if std::fs::read(&file).unwrap().starts_with(&[0x1f, 0x8b]) {
            std::fs::remove_file(&file).unwrap();
        }
    }
    let from = local("src", &cache, "");
    let out = lab.path("files");
    let second = lab.build_in("two", &dir).args(["--cache-from", &from, "-o", out.to_str().unwrap()]).ok();
    second.says(&["lacks what it promised"]);
    assert_eq!(second.ran().len(), ALL, "{}", second.stderr());
    assert_eq!(std::fs::read_to_string(out.join("app")).unwrap(), "abmain");
    let pushed = lab.name("app/pushed:1");
    let third = lab.build_in("three", &dir).args(["--cache-from", &from, "--push", "--tag", &pushed]).ok();
    third.says(&["lacks what it promised"]);
    assert_eq!(
        lab.image("app/pushed", "1").0.layers.len(),
        lab.image("app/pushed", "1").1.rootfs.diff_ids.len()
    );
}

#[test]
fn what_the_target_registry_has_already_is_not_downloaded() {
    let lab = Lab::new();
    let dir = app(&lab);
    let (cache, image) = (lab.name("app/cache:1"), lab.name("app/image:1"));
    let to = format!("type=registry,ref={cache},mode=max");
    lab.build_in("one", &dir).args(["--push", "-t", &image, "--cache-to", &to]).ok();
    let first = lab.registry.storage().manifest("app/image", "1").unwrap().2;
    for (state, name) in [("two", "app/image"), ("three", "elsewhere/image")] {
        lab.registry.clear_log();
        let target = lab.name(&format!("{name}:2"));
        let built = lab.build_in(state, &dir).args(["--push", "-t", &target, "--cache-from", &cache]).ok();
        assert!(built.ran().is_empty(), "{}", built.stderr());
        let layers: Vec<_> = lab
            .registry
            .log()
            .into_iter()
            .filter(|entry| entry.ask == Ask::BlobGet)
            .map(|entry| entry.path)
            .collect();
        let (manifest, _) = lab.image(name, "2");
        for layer in &manifest.layers {
            let digest = layer.digest.to_string();
            assert!(!layers.iter().any(|path| path.contains(&digest)), "layer {digest} was downloaded");
        }
        assert_eq!(
            lab.registry.storage().manifest(name, "2").unwrap().2,
            first,
            "the same image, to the byte"
        );
    }
}

#[test]
fn only_what_a_changed_step_works_on_is_fetched() {
    let lab = Lab::new();
    let text = "FROM @base AS big\nRUN dd if=/dev/zero of=/big bs=1k count=300 2>/dev/null\n\
                FROM @base\nCOPY --from=big /big /big\nRUN echo one >/one\nCOPY last /last\nRUN cat /last >/end\n";
    let dir = lab.context("c", &[("Dockerfile", text), ("last", "1")]);
    let cache = lab.name("cache:1");
    lab.build_in("one", &dir).args(["--cache-to", &format!("type=registry,ref={cache},mode=max")]).ok();
    std::fs::write(dir.join("last"), "2").unwrap();
    lab.registry.clear_log();
    let second = lab.build_in("two", &dir).args(["--cache-from", &cache]).ok();
    assert_eq!(second.ran(), ["COPY last /last", "RUN cat /last >/end"], "{}", second.stderr());
    // Base image, COPY --from and RUN echo; not the stage that was copied from, not what came after.
    let configs = 2;
    assert_eq!(lab.registry.count(Ask::BlobGet), configs + 3);
}

#[test]
fn an_image_carries_its_own_cache() {
    let lab = Lab::new();
    let dir = app(&lab);
    let image = lab.name("app/inline:1");
    lab.build_in("one", &dir).args(["--push", "-t", &image, "--cache-to", "type=inline"]).ok();
    let (manifest, _) = lab.image("app/inline", "1");
    let config = std::fs::read_to_string(lab.registry.storage().blob_path(&manifest.config.digest)).unwrap();
    assert!(config.contains("moby.buildkit.cache.v0"), "{config}");
    let second = lab.build_in("two", &dir).args(["--cache-from", &image]).ok();
    assert_eq!(second.fate("RUN echo ran"), Fate::Cached, "{}", second.stderr());
    // The cache of a base image is not the cache of what is made of it.
    let derived = lab.context("derived", &[("Dockerfile", &format!("FROM {image}\nLABEL a=b\n"))]);
    lab.build(&derived).args(["--push", "-t", &lab.name("derived:1")]).ok();
    let (manifest, _) = lab.image("derived", "1");
    let config = std::fs::read_to_string(lab.registry.storage().blob_path(&manifest.config.digest)).unwrap();
    assert!(!config.contains("moby.buildkit.cache.v0"), "{config}");
}

#[test]
fn a_cache_that_is_missing_or_damaged_is_told_of_and_fails_nothing() {
    let lab = Lab::new();
    let dir = lab.dockerfile("FROM @base\nRUN echo one\n");
    let built = lab.build(&dir).args(["--cache-from", &lab.name("no/cache:1")]).ok();
    built.says(&["importing cache manifest from", "is not used"]);
    assert_eq!(built.ran(), ["RUN echo one"]);
    let cache = lab.path("cache");
    lab.build(&dir).args(["--cache-to", &local("dest", &cache, "")]).ok();
    for entry in std::fs::read_dir(cache.join("blobs/sha256")).unwrap() {
        let path = entry.unwrap().path();
        if std::fs::read(&path).unwrap().starts_with(b"{\"layers\"") {
            std::fs::write(&path, "{}").unwrap();
        }
    }
    let built = lab.build_in("two", &dir).args(["--cache-from", &local("src", &cache, "")]).ok();
    built.says(&["is not what its name says"]);
    assert_eq!(built.ran(), ["RUN echo one"]);
    // An image without a cache is none.
    let built = lab.build_in("three", &dir).args(["--cache-from", &lab.base()]).ok();
    built.says(&["neither a cache nor an image with an inline cache"]);
}

#[test]
fn several_caches_are_looked_into_together() {
    let lab = Lab::new();
    let caches: Vec<String> = ["one", "two"]
        .iter()
        .map(|word| {
            let dir = lab.dockerfile(&format!("FROM @base\nRUN echo {word}\n"));
            let cache = lab.name(&format!("cache-{word}:1"));
            lab.build_in(word, &dir).args(["--cache-to", &format!("type=registry,ref={cache}")]).ok();
            cache
        })
        .collect();
    let text = "FROM @base AS one\nRUN echo one\nFROM @base AS two\nRUN echo two\nFROM scratch\n\
                COPY --from=one /bin/busybox /one\nCOPY --from=two /bin/busybox /two\n";
    let dir = lab.dockerfile(text);
    let built =
        lab.build_in("both", &dir).args(["--cache-from", &caches[0], "--cache-from", &caches[1]]).ok();
    assert_eq!(built.fate("RUN echo one"), Fate::Cached, "{}", built.stderr());
    assert_eq!(built.fate("RUN echo two"), Fate::Cached, "{}", built.stderr());
}

#[test]
fn a_cache_that_can_not_be_written_fails_the_build_unless_that_is_ignored() {
    let lab = Lab::new();
    let dir = lab.dockerfile("FROM @base\nRUN echo one\n");
    let nowhere = lab.path("file");
    std::fs::write(&nowhere, "").unwrap();
    let to = local("dest", &nowhere.join("x"), "");
    assert_ne!(lab.build(&dir).args(["--cache-to", &to]).run().code, Some(0));
    lab.build(&dir).args(["--cache-to", &format!("{to},ignore-error=true")]).ok().says(&["was not written"]);
}

#[test]
fn a_cache_holds_layers_as_the_image_has_them() {
    let lab = Lab::new();
    let dir = lab.dockerfile("FROM @base\nRUN echo one >/one\n");
    let (cache, image) = (lab.name("cache:1"), lab.name("image:1"));
    let build = |state: &str, more: [&str; 4]| {
        lab.build_in(state, &dir)
            .env("SOURCE_DATE_EPOCH", "1000000000")
            .args(["--push", "-t", &image])
            .args(more)
            .ok()
    };
    let to = format!("type=registry,ref={cache},mode=max");
    build("one", ["--cache-to", &to, "--progress", "json"]);
    let first = lab.registry.storage().manifest("image", "1").unwrap().2;
    let (of_image, _) = lab.image("image", "1");
    let (_, bytes, _) = lab.registry.storage().manifest("cache", "1").unwrap();
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    assert!(of_image.layers.iter().all(|layer| text.contains(&layer.digest.to_string())), "{text}");
    let again = build("two", ["--cache-from", &cache, "--progress", "json"]);
    assert!(again.ran().is_empty(), "{}", again.stderr());
    assert_eq!(
        lab.registry.storage().manifest("image", "1").unwrap().2,
        first,
        "the same image, to the byte"
    );
}

#[test]
fn a_registry_that_refuses_is_named_and_fails_only_what_must_be_written() {
    let lab = Lab::new();
    let strict = lab.another_registry(Options { auth: Auth::basic("alice", "right"), ..Options::default() });
    let cache = format!("{}/cache:1", strict.host());
    let dir = lab.dockerfile("FROM @base\nRUN echo one\n");
    let built = lab.build(&dir).args(["--cache-from", &cache]).ok();
    built.says(&["is not used", strict.host().as_str(), "401"]);
    let failed = lab.build(&dir).args(["--cache-to", &cache]).run();
    assert_ne!(failed.code, Some(0));
    failed.says(&[strict.host().as_str(), "401"]);
}

#[test]
fn a_second_machine_lays_a_linked_copy_over_another_base_without_making_it() {
    let lab = Lab::new();
    let dockerfile = |base: &str| format!("FROM @base\nRUN echo {base} >/base\nCOPY --link lib /lib2/\n");
    let (one, two) = (dockerfile("one"), dockerfile("two"));
    let context = |name: &str, text: &str| lab.context(name, &[("Dockerfile", text), ("lib/a", "a")]);
    let reference = lab.name("linked/cache:1");
    let push = |state: &str, dir: &Path, name: &str, cache: [&str; 2]| {
        let ran = lab.build_in(state, dir).args(cache).args(["-t", &lab.name(name), "--push"]).ok();
        (ran, lab.image(name, "latest").0.layers)
    };
    let export = format!("type=registry,ref={reference},mode=max");
    let (_, before) = push("one", &context("one", &one), "first", ["--cache-to", &export]);
    let (second, after) = push("two", &context("two", &two), "second", ["--cache-from", &reference]);
    assert_eq!(second.fate("] COPY --link"), Fate::Cached, "{}", second.stderr());
    assert_ne!(before[1].digest, after[1].digest);
    assert_eq!(before[2].digest, after[2].digest, "the linked copy's layer is the same one");
    // The same again: nothing at all is to be done.
    let (third, _) = push("three", &context("one", &one), "third", ["--cache-from", &reference]);
    assert!(third.ran().is_empty(), "{}", third.stderr());
}
