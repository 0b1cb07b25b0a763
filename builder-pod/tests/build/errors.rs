//! What a user reads when something is wrong.

use std::process::Command;

use crate::lab::{BUILDER, Fate, Lab};

/// What a person reads, and the exit code.
fn plain(lab: &Lab, source: &std::path::Path, more: &[&str]) -> (Option<i32>, String) {
    let mut build = lab.build(source);
    build.0.arg("--progress=plain").args(more);
    let ran = build.run();
    (ran.code, ran.stderr())
}

#[track_caller]
fn says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no {part:?} in:\n{text}");
    }
}

#[test]
fn a_failed_step_names_itself_its_exit_code_its_lines_and_its_last_output() {
    let lab = Lab::new();
    let dir = lab.dockerfile(
        "FROM @base\n\nRUN echo first && \\\n    echo 'about to fail' >&2 && exit 42\nRUN echo never\n",
    );
    let (code, text) = plain(&lab, &dir, &[]);
    assert_eq!(code, Some(10), "{text}");
    says(
        &text,
        &[
            "failed with exit code 42",
            "Dockerfile:3 in [2/3] RUN echo first",
            "3 | > RUN echo first",
            "4 | >     echo 'about",
            "the step's last output:",
            "about to fail",
        ],
    );
    // Which of two streams is read first is chance.
    let output = &text[text.find("the step's last output:").unwrap()..];
    assert!(output.contains("first") && !text.contains("[3/3]"), "{text}");
}

#[test]
fn only_the_last_lines_of_a_long_output_are_repeated() {
    let lab = Lab::new();
    let (_, text) = plain(&lab, &lab.dockerfile("FROM @base\nRUN seq 1 5000; exit 3\n"), &[]);
    let end = &text[text.find("error:").unwrap()..];
    assert!(end.contains("5000") && !end.contains("4000") && end.lines().count() < 40, "{end}");
}

#[test]
fn a_copy_of_what_is_not_there_names_the_copy() {
    let lab = Lab::new();
    let dir = lab.dockerfile("FROM @base\nRUN true\nCOPY here.txt missing.txt /to/\n");
    std::fs::write(dir.join("here.txt"), "x").unwrap();
    let (code, text) = plain(&lab, &dir, &[]);
    assert_eq!(code, Some(10));
    says(
        &text,
        &[
            "\"/missing.txt\": not found",
            "Dockerfile:3:15 in [3/3] COPY here.txt missing.txt /to/",
            "3 | > COPY",
            "] COPY here.txt missing.txt /to/\n",
        ],
    );
}

#[test]
fn a_copy_with_parents_of_what_is_not_there_fails() {
    let lab = Lab::new();
    let (code, text) = plain(&lab, &lab.dockerfile("FROM scratch\nCOPY --parents a/b /\n"), &[]);
    assert_eq!(code, Some(10), "{text}");
    says(&text, &["a/b", "not found", "Dockerfile:2"]);
}

#[test]
fn a_copy_of_an_ignored_file_says_that_it_is_not_there() {
    let lab = Lab::new();
    let dir =
        lab.context("c", &[("Dockerfile", "FROM scratch\nCOPY a /\n"), ("a", ""), (".dockerignore", "a\n")]);
    let (code, text) = plain(&lab, &dir, &[]);
    assert_eq!(code, Some(10));
    says(&text, &["\"/a\": not found", "Dockerfile:2"]);
}

#[test]
fn an_unknown_instruction_shows_its_place_and_a_guess() {
    let lab = Lab::new();
    let (code, text) = plain(&lab, &lab.dockerfile("FROM @base\n  RUUN make\n"), &[]);
    assert_eq!(code, Some(10));
    says(&text, &["unknown instruction: RUUN", "Dockerfile:2:3", "RUUN make", "^^^^", "did you mean RUN?"]);
}

#[test]
fn several_mistakes_are_shown_at_once() {
    let lab = Lab::new();
    let (_, text) = plain(&lab, &lab.dockerfile("FROM @base\nRUUN x\nCOPY only-one\nSHELL sh\n"), &[]);
    says(&text, &["Dockerfile:2:", "Dockerfile:3:", "Dockerfile:4:"]);
}

#[test]
fn what_a_build_is_not_allowed_is_refused_with_its_place() {
    let lab = Lab::new();
    for (line, what) in [
        ("RUN --security=insecure true", "--allow security.insecure"),
        ("RUN --device=vendor.example/gpu=0 true", "--allow device="),
    ] {
        let (code, text) = plain(&lab, &lab.dockerfile(&format!("FROM @base\n{line}\n")), &[]);
        assert_eq!(code, Some(10), "{line}: {text}");
        says(&text, &["Dockerfile:2:", "is not allowed", what]);
    }
}

#[test]
fn a_base_image_that_is_not_there_names_image_and_line() {
    let lab = Lab::new();
    let name = lab.name("none/such:1");
    let (code, text) =
        plain(&lab, &lab.dockerfile(&format!("FROM @base AS a\nFROM {name}\nCOPY --from=a /x /\n")), &[]);
    assert_eq!(code, Some(11), "{text}");
    says(&text, &[&name, "Dockerfile:2:", "not found"]);
    let (code, text) = plain(&lab, &lab.dockerfile("FROM 127.0.0.1:1/x\n"), &[]);
    assert_eq!(code, Some(13), "{text}");
    says(&text, &["127.0.0.1:1", "Dockerfile:1:"]);
}

#[test]
fn an_image_without_the_platform_lists_those_that_it_has() {
    use lapstrake_oci::{Platform, media_type};
    let lab = Lab::new();
    let index =
        lapstrake_testkit::image::index(&[(crate::lab::busybox(), Platform::new("linux", "s390x", None))]);
    let storage = lab.registry.storage();
    storage.put_manifest("busybox", Some("only-s390x"), media_type::OCI_INDEX, &index).unwrap();
    let (code, text) =
        plain(&lab, &lab.dockerfile(&format!("FROM {}\n", lab.name("busybox:only-s390x"))), &[]);
    assert_eq!(code, Some(11), "{text}");
    says(&text, &["linux/amd64", "linux/s390x", "Dockerfile:1:"]);
}

#[test]
fn an_unknown_target_and_stage_are_named_with_a_guess() {
    let lab = Lab::new();
    let dir = lab.dockerfile("FROM @base AS build\nFROM @base\nCOPY --from=biuld /x /\n");
    let (code, text) = plain(&lab, &dir, &["--target", "buil"]);
    assert_eq!(code, Some(10), "{text}");
    says(&text, &["buil", "build"]);
}

#[test]
fn a_context_without_a_dockerfile_says_what_to_do() {
    let lab = Lab::new();
    let (code, text) = plain(&lab, &lab.context("empty", &[("x", "")]), &[]);
    assert_eq!(code, Some(10));
    says(&text, &["no file Dockerfile", "--file"]);
}

#[test]
fn mistakes_on_the_command_line_exit_with_2() {
    let lab = Lab::new();
    let dir = lab.dockerfile("FROM scratch\n");
    for args in [
        &["-t", "Not A Name"][..],
        &["--output", "type=floppy"],
        &["--platform", "linux/amd64,linux/arm64/v8/more"],
        &["--push"],
        &["--no-such-flag"],
    ] {
        assert_eq!(plain(&lab, &dir, args).0, Some(2), "{args:?}");
    }
    assert_eq!(plain(&lab, &lab.path("nowhere"), &[]).0, Some(2));
}

#[test]
fn help_tells_the_exit_codes() {
    let help = Command::new(BUILDER).args(["build", "--help"]).output().unwrap();
    says(&String::from_utf8(help.stdout).unwrap(), &["Exit codes:", "12  refused", "--metadata-file"]);
}

#[test]
fn an_unused_argument_is_told_once() {
    let lab = Lab::new();
    let dir = lab.dockerfile("FROM @base AS a\nRUN true\nFROM @base\nCOPY --from=a /etc/passwd /p\n");
    let (_, text) = plain(&lab, &dir, &["--build-arg", "TYPO=1"]);
    assert_eq!(text.matches("TYPO").count(), 1, "{text}");
}

#[test]
fn a_program_that_is_not_there_and_an_unknown_user_are_the_users() {
    let lab = Lab::new();
    let (code, text) = plain(&lab, &lab.dockerfile("FROM @base\nRUN [\"/no/such\"]\n"), &[]);
    assert_eq!(code, Some(10), "{text}");
    says(&text, &["/no/such", "Dockerfile:2"]);
    let (code, text) = plain(&lab, &lab.dockerfile("FROM @base\nUSER nemo\nRUN true\n"), &[]);
    assert_eq!(code, Some(10), "{text}");
    says(&text, &["nemo", "Dockerfile:3"]);
    let (code, text) = plain(&lab, &lab.dockerfile("FROM @base\nCOPY --chown=nemo Dockerfile /\n"), &[]);
    assert_eq!(code, Some(10), "{text}");
    says(&text, &["nemo", "Dockerfile:2"]);
}

#[test]
fn an_error_in_json_progress_ends_the_step_as_failed() {
    let lab = Lab::new();
    let ran = lab.build(lab.dockerfile("FROM @base\nRUN exit 9\n")).fails(10);
    assert_eq!(ran.fate("RUN exit 9"), Fate::Failed);
}

#[test]
fn a_long_script_does_not_flood_the_message() {
    let lab = Lab::new();
    let script = "echo line >/dev/null\n".repeat(2000);
    let (code, text) =
        plain(&lab, &lab.dockerfile(&format!("FROM @base\nRUN <<EOF\n{script}exit 4\nEOF\n")), &[]);
    assert_eq!(code, Some(10), "{text}");
    let end = &text[text.find("error:").unwrap()..];
    assert!(end.contains("exit code 4") && end.lines().count() < 40 && end.len() < 3000, "{end}");
    let script = format!("echo {}\n", "x".repeat(60_000)).repeat(4);
    let (code, text) = plain(&lab, &lab.dockerfile(&format!("FROM @base\nRUN <<EOF\n{script}EOF\n")), &[]);
    assert_eq!(code, Some(10), "the kernel's limit for an argument is the user's to keep to");
    says(&text, &["Argument list too long", "Dockerfile:2"]);
}

#[test]
fn programs_of_this_machine_run_in_an_image_for_another_platform() {
    // As BuildKit has it: the kernel looks at the program, not at what the image says of itself.
    let lab = Lab::new();
    let (code, text) = plain(&lab, &lab.dockerfile("FROM @base\nRUN true\n"), &["--platform", "linux/arm64"]);
    assert_eq!(code, Some(0), "{text}");
}
