//! What a builder pod may do, and what a step in it may not.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::Pod;
use lapstrake_crds::{Sandbox, label};
use lapstrake_e2e::{SYSTEM_NAMESPACE, Test, run_in};
use serde_json::{Value, json};

fn in_both(name: &str, test: impl AsyncFn(&Test, Sandbox) -> Result<()>) {
    for sandbox in [Sandbox::UserNamespace, Sandbox::Baseline] {
        let mut labels = BTreeMap::new();
        if sandbox == Sandbox::Baseline {
            labels.insert(label::POD_SECURITY_ENFORCE.to_owned(), "baseline".to_owned());
        }
        let name = format!("{name}-{}", sandbox.as_str().to_lowercase());
        run_in(&name, labels, async |here| test(here, sandbox).await);
    }
}

/// Everything in a pod that would reach the node.
fn reaches_the_node(pod: &Pod) -> Result<Vec<String>> {
    let pod = serde_json::to_value(pod)?;
    let spec = &pod["spec"];
    let mut found = Vec::new();
    for field in ["hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"] {
        if spec[field] == true {
            found.push(field.to_owned());
        }
    }
    if spec["hostUsers"] != false {
        found.push("hostUsers".to_owned());
    }
    if spec["automountServiceAccountToken"] != false {
        found.push("automountServiceAccountToken".to_owned());
    }
    for volume in spec["volumes"].as_array().into_iter().flatten() {
        let text = volume.to_string();
        if volume.get("hostPath").is_some() || text.contains("serviceAccountToken") {
            found.push(text);
        }
    }
    for container in spec["containers"].as_array().into_iter().flatten() {
        let context = &container["securityContext"];
        if context["privileged"] == true {
            found.push("privileged".to_owned());
        }
        if container["volumeDevices"].is_array() || container["ports"].to_string().contains("hostPort") {
            found.push("devices or host ports".to_owned());
        }
        if context["capabilities"]["drop"] != json!(["ALL"]) {
            found.push("capabilities that are not dropped".to_owned());
        }
        if context["readOnlyRootFilesystem"] != true {
            found.push("a root that can be written".to_owned());
        }
    }
    Ok(found)
}

#[test]
fn a_builder_pod_has_nothing_privileged_no_token_and_an_unprivileged_root() {
    in_both("pod", async |test, sandbox| {
        let dockerfile =
            "ARG BASE\nFROM ${BASE}\nRUN echo asleep; sed 's/^/STEP-MAP /' /proc/self/uid_map; sleep 5\n";
        test.apply(&test.manifest("build", dockerfile)).await?;
        let pod = test.until_log("build", "asleep").await?;
        let seen = test.pods.get(&pod).await?;
        assert_eq!(reaches_the_node(&seen)?, Vec::<String>::new());
        let context = serde_json::to_value(&seen)?["spec"]["containers"][0]["securityContext"].clone();
        let added: Vec<&str> = context["capabilities"]["add"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        assert_eq!(added.contains(&"SYS_ADMIN"), sandbox == Sandbox::UserNamespace, "{added:?}");

        let inside =
            |file: &str| test.cluster.kubectl(&["exec", "-n", &test.namespace, &pod, "--", "cat", file]);
        let map = inside("/proc/1/uid_map")?;
        let numbers: Vec<u64> = map.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        assert!(numbers.len() == 3 && numbers[0] == 0 && numbers[1] >= 65536, "root of the pod is {map}");
        println!("{sandbox:?}: uid_map of the pod: {}", map.trim());
        if inside("/var/run/secrets/kubernetes.io/serviceaccount/token").is_ok() {
            bail!("the pod has a token");
        }
        let built = test.ready("build").await?;
        let log = test.log(&built).await?;
        let step = log.lines().find_map(|line| line.split_once("STEP-MAP ")).context("the step's map")?.1;
        println!("{sandbox:?}: uid_map of a step: {}", step.trim());
        Ok(())
    });
}

/// Ways out that a step tries: what it is, and a command that succeeds only if it works.
const WAYS_OUT: &[(&str, &str)] = &[
    ("mount a tmpfs", "mount -t tmpfs none /mnt"),
    (
        "mount the node's disk",
        "for d in /dev/vda /dev/sda /dev/nvme0n1 /dev/xvda; do mount $d /mnt && exit 0; done; exit 1",
    ),
    ("bind a folder over another", "mount --bind / /mnt"),
    ("unmask /proc", "umount /proc/kcore || umount /proc/sys || umount /proc/sysrq-trigger"),
    ("remount /proc/sys for writing", "mount -o remount,rw /proc/sys"),
    ("restart the node by sysrq", "echo b > /proc/sysrq-trigger"),
    ("have the kernel run a program at a crash", "echo '|/bin/sh' > /proc/sys/kernel/core_pattern"),
    ("change a setting of the kernel", "echo 1 > /proc/sys/vm/drop_caches"),
    ("make a disk's device node and read it", "mknod /disk b 8 0 && dd if=/disk of=/dev/null bs=512 count=1"),
    ("make a memory device node and read it", "mknod /mem c 1 1 && dd if=/mem of=/dev/null bs=1 count=1"),
    ("read the kernel's memory", "dd if=/proc/kcore of=/dev/null bs=1 count=1"),
    ("read the kernel's log", "dmesg || dd if=/dev/kmsg of=/dev/null bs=1 count=1"),
    (
        "load a module",
        "perl -e 'exit(syscall(175, 0, 0, \"\") == 0 || $!{EFAULT} ? 0 : 1)' || echo x > /proc/sys/kernel/modprobe",
    ),
    ("trace another process", "perl -e 'exit(syscall(101, 16, 1, 0, 0) == 0 ? 0 : 1)'"),
    (
        "signal the builder",
        "for p in /proc/[0-9]*; do case $p:$(readlink $p/exe) in /proc/1:*) ;; *lapstrake*) kill -9 ${p#/proc/} && exit 0 ;; esac; done; exit 1",
    ),
    ("see processes that are not the step's", "test $(ls -d /proc/[0-9]* | wc -l) -gt 20"),
    ("find a socket of the builder", "grep -q lapstrake /proc/net/unix || ls /run/*.sock /var/run/*.sock"),
    ("read the builder's state", "ls /var/lib/lapstrake/* || ls /proc/1/root/var/lib/lapstrake/*"),
    (
        "read the builder's request and credentials",
        "cat /etc/lapstrake/request.json || ls /run/lapstrake/docker",
    ),
    (
        "find snapshots of other steps",
        "grep -q snapshots /proc/self/mountinfo && ls $(sed -n 's/.*upperdir=\\([^,]*\\).*/\\1/p' /proc/self/mountinfo)",
    ),
    (
        "leave by chroot",
        "mkdir -p /jail && perl -e 'chroot(\"/jail\") or exit 1; chdir(\"..\") for 1..50; chroot(\".\") or exit 1; exit(-e \"/var/lib/lapstrake/blobs\" ? 0 : 1)'",
    ),
    ("join namespaces of process 1", "nsenter -t 1 -m -u -n -i true && test -e /var/lib/lapstrake/blobs"),
    (
        "write to the node's /sys",
        "echo 1 > /sys/kernel/profiling || echo 0 > /sys/block/vda/queue/nr_requests || echo x > /sys/kernel/uevent_helper",
    ),
    (
        "have a cgroup run a program",
        "mount -t cgroup -o memory none /mnt || find /sys/fs/cgroup -name release_agent -writable | grep -q .",
    ),
    (
        "open a file by its handle",
        "perl -e 'exit(syscall(304, -100, pack(\"IIQ\", 8, 1, 2), 0) >= 0 ? 0 : 1)'",
    ),
    (
        "load a BPF program or watch the node",
        "perl -e 'exit(syscall(321, 0, pack(\"IIIIx96\", 1, 4, 4, 1), 72) >= 0 || syscall(298, pack(\"IIx104\", 0, 112), -1, 0, -1, 0) >= 0 ? 0 : 1)'",
    ),
    ("set the clock", "date -s @1"),
    (
        "turn off the machine",
        "perl -e 'exit(syscall(169, 0xfee1dead, 672274793, 0x89abcdef, 0) == 0 ? 0 : 1)'",
    ),
    ("use a token of the cluster", "cat /var/run/secrets/kubernetes.io/serviceaccount/token"),
];

#[test]
fn a_step_that_tries_to_get_out_gets_nowhere() {
    in_both("ways-out", async |test, sandbox| {
        let mut dockerfile = String::from("ARG BASE\nFROM ${BASE}\nRUN <<'END'\n");
        for (name, command) in WAYS_OUT {
            dockerfile += &format!(
                "if ( {command} ) >/tmp/said 2>&1; then echo \"OUT: {name}\"; cat /tmp/said; else echo \"kept in: {name}\"; fi\n"
            );
        }
        dockerfile += "END\n";
        let manifest = test
            .manifest("build", &dockerfile)
            .set("/spec/args", json!([]))
            .arg("BASE", &test.base("debian:bookworm"));
        let built = test.build(&manifest).await?;
        let log = test.log(&built).await?;
        let out: Vec<&str> = log.lines().filter(|line| line.contains(" OUT: ")).collect();
        assert!(out.is_empty(), "{sandbox:?}: {out:#?}\n{log}");
        let kept = log.lines().filter(|line| line.contains(" kept in: ")).count();
        assert_eq!(kept, WAYS_OUT.len(), "each way was tried:\n{log}");
        assert!(kept >= 20);
        Ok(())
    });
}

#[test]
fn the_operator_may_not_read_secrets_nor_make_anything_but_builder_pods() {
    run_in("rights", BTreeMap::new(), async |test| {
        let who = format!("--as=system:serviceaccount:{SYSTEM_NAMESPACE}:lapstrake");
        // `can-i` says no by its exit code.
        // A name behind a slash would be that of an object: a subresource has a flag of its own.
        let may = |verb: &str, what: &str| {
            let (resource, subresource) = what.split_once('/').unwrap_or((what, ""));
            let subresource = format!("--subresource={subresource}");
            let arguments = ["auth", "can-i", verb, resource, &subresource, "-n", &test.namespace, &who];
            test.cluster.kubectl(&arguments).is_ok()
        };
        assert!(may("create", "pods") && may("patch", "imagebuilds/status"), "what it lives by");
        let too_much: Vec<_> = [
            ("get", "secrets"),
            ("list", "secrets"),
            ("watch", "secrets"),
            ("create", "secrets"),
            ("create", "pods/exec"),
            ("create", "serviceaccounts/token"),
            ("create", "deployments.apps"),
            ("create", "jobs.batch"),
            ("create", "rolebindings.rbac.authorization.k8s.io"),
            ("impersonate", "serviceaccounts"),
            ("delete", "namespaces"),
            ("update", "nodes"),
            ("create", "persistentvolumes"),
        ]
        .into_iter()
        .filter(|(verb, what)| may(verb, what))
        .collect();
        assert!(too_much.is_empty(), "{too_much:?}");
        Ok(())
    });
}
