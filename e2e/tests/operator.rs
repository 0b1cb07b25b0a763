//! What the operator tells of itself.

use anyhow::{Context, Result};
use lapstrake_e2e::{SYSTEM_NAMESPACE, Test, run};

/// Asks the operator's pod through the API server.
fn ask(test: &Test, port: u16, path: &str) -> Result<String> {
    let answers = test.cluster.ask_operators(port, path)?;
    answers.into_values().next().context("an operator")
}

#[test]
fn it_is_healthy_and_ready_and_its_metrics_count_the_builds() {
    run("operator", async |test| {
        test.build(&test.manifest("build", "ARG BASE\nFROM ${BASE}\nRUN true\n")).await?;
        ask(test, 8081, "healthz")?;
        ask(test, 8081, "readyz")?;
        let metrics = ask(test, 8080, "metrics")?;
        let ours = metrics.lines().filter(|line| line.starts_with("lapstrake_")).count();
        assert!(ours > 5, "{metrics}");
        assert!(metrics.ends_with("# EOF\n"), "in the OpenMetrics format");
        // Names of builds would be labels without a bound.
        assert!(!metrics.contains(&test.namespace), "{metrics}");
        Ok(())
    });
}

#[test]
fn every_line_of_its_log_on_a_build_names_the_build() {
    run("operator-log", async |test| {
        test.build(&test.manifest("named-in-the-log", "ARG BASE\nFROM ${BASE}\nRUN true\n")).await?;
        let log =
            test.cluster.kubectl(&["-n", SYSTEM_NAMESPACE, "logs", "deploy/lapstrake", "--since=5m"])?;
        let ours: Vec<&str> = log.lines().filter(|line| line.contains(&test.namespace)).collect();
        assert!(!ours.is_empty(), "{log}");
        let nameless: Vec<&&str> = ours.iter().filter(|line| !line.contains("named-in-the-log")).collect();
        assert!(nameless.is_empty(), "{nameless:#?}");
        Ok(())
    });
}

#[test]
fn what_matters_is_an_event_on_the_build() {
    run("events", async |test| {
        test.build(&test.manifest("build", "ARG BASE\nFROM ${BASE}\nRUN true\n")).await?;
        for reason in ["Starting", "Succeeded"] {
            test.until_event("build", reason).await?;
        }
        Ok(())
    });
}
