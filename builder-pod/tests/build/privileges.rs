//! What steps are given beyond the usual, where the build allows it: devices, and everything.

use crate::lab::{Fate, Lab};

#[test]
fn a_step_without_a_sandbox_has_all_capabilities_and_no_filter() {
    let lab = Lab::new();
    let text = "FROM @base\nRUN grep -E 'Cap(Eff|Bnd|Amb)|Seccomp:' /proc/self/status >/usual\n\
                RUN --security=insecure grep -E 'Cap(Eff|Bnd|Amb)|Seccomp:' /proc/self/status >/all && \
                mkdir /m && mount -t tmpfs none /m && touch /m/f && umount /m\n\
                USER 1000\nRUN --security=insecure grep CapEff /proc/self/status\n";
    let dir = lab.dockerfile(text);
    let refused = lab.build(&dir).fails(10);
    refused.says(&["security.insecure is not allowed", "Dockerfile:3:", "--allow security.insecure"]);
    assert_eq!(refused.fate("/usual"), Fate::Absent, "it is told before anything runs");

    let out = lab.path("files");
    let ran = lab.build(&dir).args(["--allow", "security.insecure", "-o", out.to_str().unwrap()]).ok();
    let read = |name: &str| std::fs::read_to_string(out.join(name)).unwrap();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    let (usual, all) = (read("usual"), read("all"));
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    assert_eq!(field(&all, "CapEff"), field(&own, "CapBnd"), "{all}");
    assert_eq!(
        (field(&usual, "Seccomp:"), field(&all, "Seccomp:")),
        ("2".to_owned(), field(&own, "Seccomp:"))
    );
    assert!(ran.stderr().contains(&format!("CapEff:\\t{}", field(&all, "CapEff"))), "{}", ran.stderr());
    // A step in a sandbox is another one.
    assert_eq!(field(&usual, "CapAmb").trim_matches('0'), "");
}

const SPEC: &str = r#"
cdiVersion: "0.6.0"
kind: vendor.example/thing
devices:
- name: first
  containerEdits:
    deviceNodes:
    - {path: /dev/thing, hostPath: /dev/null}
    mounts:
    - {hostPath: @dir/lib, containerPath: /opt/thing, options: [ro]}
    env: [THING=first]
"#;

#[test]
fn a_device_brings_its_node_its_files_and_its_variables() {
    let lab = Lab::new();
    let specs = lab.context("cdi", &[]);
    lab.context("cdi/lib", &[("driver", "of the thing")]);
    std::fs::write(specs.join("thing.yaml"), SPEC.replace("@dir", specs.to_str().unwrap())).unwrap();
    let text = "FROM @base\n\
                RUN --device=vendor.example/thing=first,required --device=vendor.example/none=x \
                echo gone >/dev/thing && test -c /dev/thing && cat /opt/thing/driver >/out && echo $THING >>/out && \
                ! touch /opt/thing/x\n";
    let dir = lab.dockerfile(text);
    let given = ["--cdi-spec-dir", specs.to_str().unwrap(), "--allow"];
    let build = |allow: &str| lab.build(&dir).args(given).args([allow]);
    let refused = build("device=vendor.example/none").fails(10);
    refused.says(&[
        "device vendor.example/thing=first is not allowed",
        "--allow device=vendor.example/thing=first",
    ]);

    let out = lab.path("files");
    let ran = build("device").args(["-o", out.to_str().unwrap()]).ok();
    assert_eq!(std::fs::read_to_string(out.join("out")).unwrap(), "of the thingfirst\n");
    assert!(!out.join("dev/thing").exists() && !out.join("opt/thing").exists(), "nothing stays in the image");
    ran.says(&["device vendor.example/none=x is not known here"]);

    let text = "FROM @base\nRUN --device=vendor.example/thing=second,required true\n";
    let dir = lab.context("second", &[("Dockerfile", text)]);
    let failed = lab.build(&dir).args(given).args(["device"]).run();
    failed.says(&[
        "required device vendor.example/thing=second",
        "vendor.example/thing=first",
        "Dockerfile:2",
    ]);
}
