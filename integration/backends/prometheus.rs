//! Prometheus takes the alerts and the metrics, and each alert fires for what it is about.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use crate::support::harness::World;

fn promtool(folder: &Path, arguments: &[&str]) {
    let output = Command::new("promtool")
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "promtool {arguments:?}: {output:?}"
    );
}

/// The rules without annotations, which tests of rules would have to repeat.
fn without_annotations(rules: &str) -> String {
    let mut kept = String::new();
    let mut skipped = None;
    for line in rules.lines() {
        let indentation = line.len() - line.trim_start().len();
        if skipped.is_some_and(|outer| indentation > outer) {
            continue;
        }
        skipped = (line.trim() == "annotations:").then_some(indentation);
        if skipped.is_none() {
            kept += line;
            kept.push('\n');
        }
    }
    kept
}

#[test]
fn every_alert_fires_for_what_is_ill_and_only_for_that() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    promtool(
        repository,
        &["check", "rules", "helm/sidekey/files/alerts.yaml"],
    );
    let folder = tempfile::tempdir().unwrap();
    let rules = fs::read_to_string(repository.join("helm/sidekey/files/alerts.yaml")).unwrap();
    let rules = without_annotations(&rules);
    fs::write(folder.path().join("alerts.yaml"), rules).unwrap();
    for tests in ["sidecars.yaml", "hub.yaml"] {
        let from = repository.join("integration/alerts").join(tests);
        fs::copy(from, folder.path().join(tests)).unwrap();
        promtool(folder.path(), &["test", "rules", tests]);
    }
}

#[test]
fn promtool_accepts_the_expressions_of_dashboards() {
    let boards = Path::new(env!("CARGO_MANIFEST_DIR")).join("helm/sidekey/files/dashboards");
    let mut rules = "groups: [{name: dashboards, rules: [".to_owned();
    for file in fs::read_dir(boards).unwrap() {
        let board: Value =
            serde_json::from_slice(&fs::read(file.unwrap().path()).unwrap()).unwrap();
        for panel in board["panels"].as_array().unwrap() {
            for target in panel["targets"].as_array().unwrap() {
                let expression = target["expr"].as_str().unwrap();
                let expression = expression.replace("$__rate_interval", "5m");
                let position = rules.len();
                // JSON is YAML as well.
                let rule = json!({ "record": format!("at:{position}"), "expr": expression });
                rules += &format!("{rule},\n");
            }
        }
    }
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("rules.yaml"), rules + "]}]\n").unwrap();
    promtool(folder.path(), &["check", "rules", "rules.yaml"]);
}

#[tokio::test]
async fn promtool_accepts_the_metrics() {
    let world = World::with_demo();
    let sidecar = world.start();
    sidecar.client().await.encrypt(b"x").await.ok();
    check_with_promtool(&sidecar.ops("/metrics").1);
}

/// `promtool` is Prometheus' own linter; integration/run installs it.
fn check_with_promtool(metrics: &str) {
    let mut child = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is installed (integration/run does it)");
    child
        .stdin
        .take()
        .unwrap()
        .write_all(metrics.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success() && said.is_empty(), "{said}");
}
