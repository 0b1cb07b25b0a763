//! `lapstrake-builder pod`: a request in, an outcome out.

use serde_json::{Value, json};

use crate::lab::{BUILDER, Build, Lab, Running};

/// A request for a Dockerfile, with what `change` makes of it.
pub(crate) fn request(lab: &Lab, dockerfile: &str, change: impl FnOnce(&mut Value)) -> Value {
    let files = json!([{"path": "Dockerfile", "content": dockerfile.replace("@base", &lab.base())}]);
    let registries = lab.path("registries.json");
    std::fs::write(&registries, json!({lab.registry.host(): {"http": true}}).to_string()).unwrap();
    let mut request = json!({
        "apiVersion": "handoff.lapstrake.dev/v1",
        "build": {"name": "app", "namespace": "default", "uid": "u"},
        "run": "r1",
        "source": {"inline": files},
        "output": {"names": [lab.name("pod:1")]},
        "stateDir": lab.path("state"),
        "registriesConfig": registries,
        // Without a limit a state on a disk that is nearly full is emptied after each build.
        "cacheMaxBytes": 10_000_000_000_u64,
        "sandbox": "Privileged",
    });
    change(&mut request);
    request
}

fn start(lab: &Lab, request: &Value) -> Running {
    let (file, outcome) = (lab.path("request.json"), lab.path("outcome"));
    std::fs::write(&file, request.to_string()).unwrap();
    let mut command = std::process::Command::new(BUILDER);
    command.args(["pod", "--request"]).arg(file).arg("--outcome").arg(outcome);
    Build(command).start()
}

/// Exit code and outcome.
pub(crate) fn serve(lab: &Lab, request: &Value) -> (Option<i32>, Value) {
    let code = start(lab, request).wait().code;
    (code, outcome(lab))
}

fn outcome(lab: &Lab) -> Value {
    let text = std::fs::read(lab.path("outcome")).unwrap();
    assert!(text.len() <= 4096, "a termination message holds 4 KiB");
    serde_json::from_slice(&text).unwrap()
}

#[test]
fn a_success_tells_digest_bases_steps_and_times() {
    let lab = Lab::new();
    let asked = request(&lab, "FROM @base\nRUN true\nRUN echo x >/x\n", |_| {});
    let (code, outcome) = serve(&lab, &asked);
    assert_eq!(code, Some(0), "{outcome}");
    let success = &outcome["success"];
    let (_, _, digest) = lab.registry.storage().manifest("pod", "1").unwrap();
    assert_eq!(success["digest"], digest.to_string());
    assert_eq!(success["baseImages"][0]["name"], lab.base());
    assert_ne!(success["baseImages"][0]["pinned"], true, "a tag may move");
    assert_eq!((&success["steps"], &success["cachedSteps"]), (&json!(2), &json!(0)), "{outcome}");
    assert_eq!(success["platform"], "linux/amd64");
    assert!(success["cacheBytes"].as_u64().unwrap() > 100_000, "{outcome}");
    let (code, again) = serve(&lab, &asked);
    assert_eq!(code, Some(0));
    assert_eq!(
        (&again["success"]["steps"], &again["success"]["cachedSteps"]),
        (&json!(2), &json!(2)),
        "{again}"
    );
}

#[test]
fn a_failed_step_is_told_with_its_place_and_a_short_excerpt() {
    let lab = Lab::new();
    let text = "FROM @base\nRUN seq 100000 109999; echo 'the \"last\" words'; exit 5\n";
    let (code, outcome) = serve(&lab, &request(&lab, text, |_| {}));
    assert_eq!(code, Some(10));
    let failure = &outcome["failure"];
    assert_eq!(failure["reason"], "StepFailed");
    assert_eq!((&failure["line"], &failure["exitCode"]), (&json!(2), &json!(5)));
    assert_eq!(failure["file"], "Dockerfile");
    assert!(failure["step"].as_str().unwrap().starts_with("[2/2] RUN seq"));
    assert!(failure["excerpt"].as_str().unwrap().ends_with("the \"last\" words"), "{failure}");
}

#[test]
fn mistakes_in_the_dockerfile_have_line_and_column() {
    let lab = Lab::new();
    let (code, outcome) = serve(&lab, &request(&lab, "FROM @base\nRUUN x\n", |_| {}));
    let failure = &outcome["failure"];
    assert_eq!((code, &failure["reason"]), (Some(10), &json!("DockerfileInvalid")));
    assert_eq!(
        (&failure["line"], &failure["column"], &failure["retryable"]),
        (&json!(2), &json!(1), &json!(false))
    );
}

#[test]
fn time_that_runs_out_and_a_termination_are_told_apart() {
    let lab = Lab::new();
    let text = "FROM @base\nRUN echo waits; sleep 600\n";
    let (code, told) = serve(&lab, &request(&lab, text, |r| r["timeoutSeconds"] = json!(1)));
    assert_eq!((code, &told["failure"]["reason"]), (Some(15), &json!("TimedOut")), "{told}");
    let mut running = start(&lab, &request(&lab, text, |_| {}));
    // The step's name comes first, then what it prints.
    running.until("RUN echo waits");
    running.until(" waits");
    running.signal("TERM");
    assert_eq!(running.wait().code, Some(16));
    assert_eq!(outcome(&lab)["failure"]["reason"], "Canceled");
}

#[test]
fn a_request_that_is_not_understood_is_refused_by_name() {
    let lab = Lab::new();
    type Change = fn(&mut Value);
    let changes: [(Change, &str); 3] = [
        (|r| r["fieldOfTomorrow"] = json!(1), "fieldOfTomorrow"),
        (|r| r["apiVersion"] = json!("handoff.lapstrake.dev/v9"), "v9"),
        (|r| r["output"]["names"] = json!(["Not A Name"]), "Not A Name"),
    ];
    for (change, word) in changes {
        let (code, outcome) = serve(&lab, &request(&lab, "FROM @base\n", change));
        let failure = &outcome["failure"];
        assert_eq!((code, &failure["reason"]), (Some(1), &json!("RequestInvalid")), "{outcome}");
        assert!(failure["message"].as_str().unwrap().contains(word), "{word}: {outcome}");
    }
}

#[test]
fn credentials_come_from_the_files_that_the_request_names() {
    use lapstrake_testkit::registry::{Auth, Options};
    let lab = Lab::with(Options { auth: Auth::token("alice", "s3cr3t-word"), ..Options::default() });
    lab.log_in("alice", "s3cr3t-word");
    let text = "FROM @base\nRUN true\n";
    let (code, told) = serve(&lab, &request(&lab, text, |_| {}));
    assert_eq!((code, &told["failure"]["reason"]), (Some(12), &json!("PullDenied")), "{told}");
    let file = lab.path("docker/config.json");
    let (code, told) = serve(&lab, &request(&lab, text, |r| r["dockerConfigs"] = json!([file])));
    assert_eq!(code, Some(0), "{told}");
    assert!(!told.to_string().contains("s3cr3t-word"));
}
