//! What a build says when a step can't be made, beside what buildkitd 0.34.2 says of the same. From it
//! `docs/build-errors.md` is made: `LAPSTRAKE_WRITE_DOCS=1 cargo test -p lapstrake-builder --test build advice`.

use std::fmt::Write as _;
use std::path::Path;

use crate::lab::Lab;

const HEAD: &str = "\
# What is said when a build fails

[What a file alone tells](diagnostics.md) is found before anything runs. These are the errors that only a build can find. The last
line of each is the way out, as far as it can be told from what is there; the status of the ImageBuild has it too, with line and
column.

Below is what buildkitd 0.34.2 says of the same builds, without the Dockerfile's lines, which it shows as well. The page is made by a
test (`builder-pod/tests/build/advice.rs`).
";

struct Case {
    title: &'static str,
    dockerfile: &'static str,
    flags: &'static [&'static str],
    ignored: &'static str,
    /// The last line of buildctl, with the id of what is looked into left out.
    buildkit: &'static str,
}

const CHECKSUM: &str =
    "error: failed to solve: failed to compute cache key: failed to calculate checksum of ref …: ";

/// The context is `requirements.txt`, `src/main.py` and `token`.
const CASES: &[Case] = &[
    Case {
        title: "A file whose name is nearly right",
        dockerfile: "FROM busybox:1\nWORKDIR /app\nCOPY reqirements.txt ./\nRUN true\n",
        flags: &[],
        ignored: "",
        buildkit: "CHECKSUM\"/reqirements.txt\": not found",
    },
    Case {
        title: "The case of a directory",
        dockerfile: "FROM busybox:1\nCOPY --chmod=755 \\\n  Src/main.py ./\n",
        flags: &[],
        ignored: "",
        buildkit: "CHECKSUM\"/Src/main.py\": not found",
    },
    Case {
        title: "A file that is in another directory",
        dockerfile: "FROM busybox:1\nCOPY main.py ./\n",
        flags: &[],
        ignored: "",
        buildkit: "CHECKSUM\"/main.py\": not found",
    },
    Case {
        title: "A file that is ignored",
        dockerfile: "FROM busybox:1\nCOPY src/main.py ./\n",
        flags: &[],
        ignored: "src\n",
        buildkit: "CHECKSUM\"/src/main.py\": not found",
    },
    Case {
        title: "A file of another stage",
        dockerfile: "FROM busybox:1 AS build\nRUN mkdir /out && touch /out/server\nFROM busybox:1\n\
                     COPY --from=build /out/sever /\n",
        flags: &[],
        ignored: "",
        buildkit: "CHECKSUM\"/out/sever\": not found",
    },
    Case {
        title: "A secret by another name",
        dockerfile: "FROM busybox:1\nRUN --mount=type=secret,id=npm_token,required cat /run/secrets/npm_token\n",
        flags: &["--secret=id=npm-token,src=@context/token"],
        ignored: "",
        buildkit: "error: failed to solve: secret npm_token: not found",
    },
    Case {
        title: "A secret that the step did not call required",
        dockerfile: "FROM busybox:1\nRUN --mount=type=secret,id=token cat /run/secrets/token\n",
        flags: &[],
        ignored: "",
        buildkit: "error: failed to solve: process \"/bin/sh -c cat /run/secrets/token\" did not complete \
                   successfully: exit code: 1",
    },
    Case {
        title: "An agent that was not given",
        dockerfile: "FROM busybox:1\nRUN --mount=type=ssh,required true\n",
        flags: &[],
        ignored: "",
        buildkit: "error: failed to solve: no SSH key \"\" forwarded from the client",
    },
    Case {
        title: "A command that is not there",
        dockerfile: "FROM busybox:1\nRUN ech hello\n",
        flags: &[],
        ignored: "",
        buildkit: "error: failed to solve: process \"/bin/sh -c ech hello\" did not complete successfully: exit \
                   code: 127",
    },
];

/// What we say, from the error on.
fn ours(lab: &Lab, number: usize, case: &Case) -> String {
    let dockerfile = case.dockerfile.replace("busybox:1", "@base");
    let context = lab.context(
        &format!("context-{number}"),
        &[
            ("Dockerfile", &dockerfile),
            ("requirements.txt", "flask\n"),
            ("src/main.py", "print()\n"),
            ("token", "t0ken\n"),
            (".dockerignore", case.ignored),
        ],
    );
    let mut build = lab.build(&context);
    build.0.arg("--progress=plain");
    for flag in case.flags {
        build.0.arg(flag.replace("@context", context.to_str().unwrap()));
    }
    let ran = build.run();
    assert_ne!(ran.code, Some(0), "{}", case.title);
    let text = ran.stderr().replace(&lab.base(), "busybox:1");
    text[text.find("\nerror: ").unwrap_or_else(|| panic!("no error in {text}")) + 1..].trim_end().to_owned()
}

#[test]
fn each_error_names_its_place_and_the_way_out_and_the_page_shows_it() {
    let lab = Lab::new();
    let mut page = HEAD.to_owned();
    for (number, case) in CASES.iter().enumerate() {
        let said = ours(&lab, number, case);
        assert!(said.contains("= help: "), "{}: no way out in\n{said}", case.title);
        assert!(said.contains("--> Dockerfile:"), "{}: no place in\n{said}", case.title);
        let _ = write!(page, "\n## {}\n\n```dockerfile\n{}```\n", case.title, case.dockerfile);
        if !case.ignored.is_empty() {
            let _ = write!(page, "\nWith `.dockerignore`: `{}`.\n", case.ignored.trim());
        }
        if let [flag] = case.flags {
            let _ = write!(page, "\nWith `{}`.\n", flag.replace("@context/", ""));
        }
        let buildkit = case.buildkit.replace("CHECKSUM", CHECKSUM);
        let _ =
            write!(page, "\nBuildKit:\n\n```text\n{buildkit}\n```\n\nLapstrake:\n\n```text\n{said}\n```\n");
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/build-errors.md");
    if std::env::var_os("LAPSTRAKE_WRITE_DOCS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let written = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        written == page,
        "LAPSTRAKE_WRITE_DOCS=1 cargo test -p lapstrake-builder --test build advice\n{page}"
    );
}
