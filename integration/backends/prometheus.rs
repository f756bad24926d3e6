//! The alerts proposed in docs/metrics.md are valid Prometheus rules, and report a failing KEK even
//! while requests succeed.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

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

#[test]
fn the_documented_alerts_are_valid_and_fire_for_an_unhealthy_kek() {
    let page =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md")).unwrap();
    let rules = page
        .split("```yaml\n")
        .nth(1)
        .unwrap()
        .split("```")
        .next()
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("rules.yml"), rules).unwrap();
    promtool(folder.path(), &["check", "rules", "rules.yml"]);
    let test = "rule_files: [rules.yml]\n\
        evaluation_interval: 1m\n\
        tests:\n\
        - interval: 1m\n  \
        input_series:\n  \
        - {series: 'sidekey_kek_circuit_open{kek=\"ill\",pod=\"a\"}', values: '1x90'}\n  \
        - {series: 'sidekey_kek_circuit_open{kek=\"ill\",pod=\"b\"}', values: '0x90'}\n  \
        - {series: 'sidekey_kek_circuit_open{kek=\"well\",pod=\"a\"}', values: '0x90'}\n  \
        - {series: \
        'sidekey_kek_requests_total{kek=\"hung\",operation=\"unwrap\",result=\"overtaken\"}', \
        values: '0+1x90'}\n  \
        - {series: \
        'sidekey_kek_requests_total{kek=\"hung\",operation=\"unwrap\",result=\"ok\"}', \
        values: '0x90'}\n  \
        - {series: \
        'sidekey_kek_requests_total{kek=\"well\",operation=\"unwrap\",result=\"ok\"}', \
        values: '0+1x90'}\n  \
        alert_rule_test:\n  \
        - {eval_time: 10m, alertname: SidekeyKekCircuitOpen, exp_alerts: []}\n  \
        - {eval_time: 80m, alertname: SidekeyKekCircuitOpen, \
        exp_alerts: [{exp_labels: {kek: ill}}]}\n  \
        - {eval_time: 80m, alertname: SidekeyKekOvertaken, \
        exp_alerts: [{exp_labels: {kek: hung}}]}\n";
    fs::write(folder.path().join("test.yml"), test).unwrap();
    promtool(folder.path(), &["test", "rules", "test.yml"]);
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
