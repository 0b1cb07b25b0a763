//! Scanners, and what they are given.

use crate::lab::Lab;

/// Writes for each file system that it is given which files of ours are in it.
const SCANNER: &str = r#"FROM @base
COPY --chmod=755 <<"EOF" /scan
#!/bin/sh
set -e
for d in "$BUILDKIT_SCAN_SOURCE" ${BUILDKIT_SCAN_SOURCE_EXTRAS:+"$BUILDKIT_SCAN_SOURCE_EXTRAS"/*}; do
  test -d "$d" || continue
  printf '{"_type":"https://in-toto.io/Statement/v0.1","predicateType":"https://spdx.dev/Document","predicate":{"has":"%s"}}' \
    "$(cd "$d" && ls | grep our | tr '\n' ' ')" > "$BUILDKIT_SCAN_DESTINATION/$(basename "$d").spdx.json"
done
EOF
ENTRYPOINT ["/scan"]
"#;

/// `base` is a stage of the result that asks for itself, `other` is part of nothing.
const STAGES: &str = "ARG BUILDKIT_SBOM_SCAN_STAGE=base,other\nARG BUILDKIT_SBOM_SCAN_CONTEXT\n\
    FROM @base AS base\nRUN touch /our-tool /our-thing\nFROM @base AS other\nRUN touch /our-other\n\
    FROM scratch\nARG BUILDKIT_SBOM_SCAN_CONTEXT=true\nCOPY --from=base /our-thing /\nCOPY our-source /\n";

#[test]
fn a_scanner_is_given_the_stages_and_the_context_that_the_file_asks_for() {
    let lab = Lab::new();
    let scanner = lab.name("scanner:1");
    lab.build(lab.dockerfile(SCANNER)).args(["--push", "-t", &scanner]).ok();
    let context = lab.context("stages", &[("Dockerfile", STAGES), ("our-source", "x")]);
    let sbom = format!("--sbom=generator={scanner}");
    let found = |out: &str, more: &[&str]| {
        let out = lab.path(out);
        let mut build = lab.build(&context).args(["-o", out.to_str().unwrap(), &sbom]);
        for argument in more {
            build = build.args([*argument]);
        }
        build.ok();
        let mut found: Vec<_> = std::fs::read_dir(&out)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|of| of == "json"))
            .map(|path| {
                let statement: serde_json::Value =
                    serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                (name, statement["predicate"]["has"].as_str().unwrap_or_default().trim().to_owned())
            })
            .collect();
        found.sort();
        found
    };
    let of = |name: &str, has: &str| (format!("sbom{name}.spdx.json"), has.to_owned());
    let core = of("", "our-source our-thing");
    let all = [of("-base", "our-thing our-tool"), of("-context", "our-source"), core.clone()];
    assert_eq!(found("asked", &[]), all);
    let none = ["--build-arg=BUILDKIT_SBOM_SCAN_STAGE=false", "--build-arg=BUILDKIT_SBOM_SCAN_CONTEXT=false"];
    assert_eq!(found("none", &none), [core]);
}
