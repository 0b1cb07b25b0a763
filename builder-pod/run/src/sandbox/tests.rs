use super::*;

fn facts(map: &str, effective: CapabilitySet) -> Facts {
    let users = IdMap::parse(map).expect("map");
    Facts { euid: 0, groups: users.clone(), users, effective, pid: 1 }
}

const MACHINE: &str = "0 0 4294967295";
const POD: &str = "0 3926654976 65536";

/// What a pod of the mode `Baseline` has.
fn pod_capabilities() -> CapabilitySet {
    CapabilitySet::SYS_CHROOT
        | CapabilitySet::SETUID
        | CapabilitySet::SETGID
        | CapabilitySet::CHOWN
        | CapabilitySet::DAC_OVERRIDE
        | CapabilitySet::FOWNER
        | CapabilitySet::MKNOD
        | CapabilitySet::SETFCAP
        | CapabilitySet::KILL
}

#[test]
fn auto_takes_what_the_process_really_has() {
    let plan = |facts: &Facts| choose(Mode::Auto, facts).expect("available");
    let laptop = Facts { pid: 100, ..facts(MACHINE, CapabilitySet::all()) };
    assert_eq!(plan(&laptop), Plan { mode: Mode::Root, nest: false, split: false });
    let pod = facts(POD, pod_capabilities() | CapabilitySet::SYS_ADMIN);
    assert_eq!(plan(&pod), Plan { mode: Mode::UserNamespace, nest: true, split: true });
    let baseline = facts(POD, pod_capabilities());
    assert_eq!(plan(&baseline), Plan { mode: Mode::Baseline, nest: true, split: true });
    let full = facts(POD, CapabilitySet::all());
    assert_eq!(plan(&full), Plan { mode: Mode::UserNamespace, nest: false, split: true });
}

#[test]
fn a_runtime_that_ignores_host_users_is_found_out() {
    for mode in [Mode::UserNamespace, Mode::Baseline] {
        let error = choose(mode, &facts(MACHINE, CapabilitySet::all())).expect_err("root of the node");
        assert!(error.to_string().contains("hostUsers: false"), "{error}");
    }
    let plain_pod = facts(MACHINE, pod_capabilities());
    let error = choose(Mode::Auto, &plain_pod).expect_err("no user namespace");
    assert!(error.to_string().contains("hostUsers: false"), "{error}");
}

#[test]
fn missing_sys_admin_points_at_baseline() {
    let error = choose(Mode::UserNamespace, &facts(POD, pod_capabilities())).expect_err("no SYS_ADMIN");
    assert!(error.way_out.contains("Baseline"), "{error}");
}

#[test]
fn another_user_than_root_is_refused() {
    let someone = Facts { euid: 1000, ..facts(POD, CapabilitySet::empty()) };
    let error = choose(Mode::Auto, &someone).expect_err("not root");
    assert!(error.reason.contains("user 1000"), "{error}");
}

#[test]
fn a_refused_proc_mount_points_at_proc_mount() {
    let error = explain(RunError::Sandbox {
        stage: Stage::Proc,
        message: "fsmount proc: operation not permitted".to_owned(),
        errno: Errno::PERM.raw_os_error(),
    });
    assert!(error.way_out.contains("procMount: Unmasked"), "{error}");
}
