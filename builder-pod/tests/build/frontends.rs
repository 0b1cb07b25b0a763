//! Frontends that are images: BuildKit's own, compiled as released, run for a single build.

use std::fs;

use lapstrake_testkit::peer;

use crate::lab::{Fate, Lab};

/// The image of BuildKit's Dockerfile frontend, in the lab's registry.
fn frontend(lab: &Lab) -> String {
    let dir = lab.context("frontend", &[(
        "Dockerfile",
        "FROM scratch\nCOPY dockerfile-frontend /bin/\n\
         LABEL moby.buildkit.frontend.network.none=true\n\
         LABEL moby.buildkit.frontend.caps=moby.buildkit.frontend.inputs,moby.buildkit.frontend.subrequests,moby.buildkit.frontend.contexts\n\
         ENTRYPOINT [\"/bin/dockerfile-frontend\"]\n",
    )]);
    fs::copy(peer::frontend(), dir.join("dockerfile-frontend")).expect("the program is copied");
    let name = lab.name("frontend:1");
    lab.build(&dir).args(["--tag", &name, "--push"]).ok();
    name
}

#[test]
fn a_build_asks_the_frontend_that_its_file_names() {
    let lab = Lab::new();
    let image = frontend(&lab);
    let file = "FROM @base AS build\nARG WORD\nRUN --mount=type=secret,id=s wc -c < /run/secrets/s > /length\n\
        RUN echo $WORD > /word && hostname > /name\nCOPY --from=more words /more\nCOPY . /context/\n\
        FROM scratch AS files\nCOPY --from=build /length /word /name /more /context/kept /\nCOPY --from=build /context /context\n\
        FROM build\nLABEL a=b\n";
    let file = format!("# syntax={image}\n{}", file.replace("@base", &lab.base()));
    let dir = lab.context(
        "asked",
        &[
            ("Dockerfile", &file),
            ("kept", "kept\n"),
            ("left", "left\n"),
            (".dockerignore", "left\n"),
            ("more/words", "more\n"),
        ],
    );
    fs::write(lab.path("secret"), "12345").expect("write");
    let secret = format!("id=s,src={}", lab.path("secret").display());
    let more = format!("more={}", dir.join("more").display());
    let out = lab.path("out");
    let dest = format!("type=local,dest={}", out.display());
    let build = || {
        let build = lab.build(&dir).args(["--secret", &secret, "--build-context", &more]);
        build.args(["--build-arg", "WORD=asked", "--opt", "hostname=box"])
    };
    build().args(["--target", "files", "--output", &dest]).ok();
    for (name, content) in
        [("length", "5\n"), ("word", "asked\n"), ("name", "box\n"), ("more", "more\n"), ("kept", "kept\n")]
    {
        assert_eq!(fs::read_to_string(out.join(name)).expect(name), content);
    }
    assert!(out.join("context/more/words").exists());
    assert!(!out.join("context/left").exists(), "what is ignored was taken");

    let name = lab.name("asked:1");
    let ran = build().args(["--tag", &name, "--push"]).ok();
    assert_eq!(ran.fate("RUN echo"), Fate::Cached);
    let (manifest, config) = lab.image("asked", "1");
    assert_eq!(config.config.labels["a"], "b");
    assert_eq!(manifest.layers.len(), config.rootfs.diff_ids.len());
}

#[test]
fn a_frontend_is_named_by_a_build_argument_and_reads_a_file_from_elsewhere() {
    let lab = Lab::new();
    let image = frontend(&lab);
    let dir = lab.context("plain", &[("a", "a\n")]);
    fs::write(lab.path("Dockerfile"), "FROM scratch\nCOPY a /\n").expect("write");
    let file = lab.path("Dockerfile").display().to_string();
    let out = lab.path("out");
    let dest = format!("type=local,dest={}", out.display());
    let syntax = format!("BUILDKIT_SYNTAX={image}");
    let both = ["--platform", "linux/amd64,linux/arm64"];
    lab.build(&dir).args(["--file", &file, "--build-arg", &syntax, "--output", &dest]).args(both).ok();
    for platform in ["linux_amd64", "linux_arm64"] {
        assert_eq!(fs::read_to_string(out.join(platform).join("a")).expect(platform), "a\n");
    }
}

#[test]
fn what_goes_wrong_in_another_frontend_is_told_as_ever() {
    let lab = Lab::new();
    let image = frontend(&lab);
    let broken = lab.dockerfile(&format!("# syntax={image}\nFROM scratch\nCOPPY a b\n"));
    let ran = lab.build(&broken).fails(10);
    ran.says(&["unknown instruction: COPPY", "Dockerfile:3"]);

    let failing = format!("# syntax={image}\nFROM {}\nRUN echo so far; exit 7\n", lab.base());
    lab.build(lab.dockerfile(&failing)).fails(10).says(&["so far", "exit code 7"]);

    let missing = format!("# syntax={}\nFROM scratch\n", lab.name("no-frontend:1"));
    lab.build(lab.dockerfile(&missing)).fails(11).says(&["no-frontend"]);

    let no_frontend = format!("# syntax={}\nFROM scratch\n", lab.base());
    lab.build(lab.dockerfile(&no_frontend))
        .fails(10)
        .says(&["frontend ", "/run\": no such file or directory"]);
}
