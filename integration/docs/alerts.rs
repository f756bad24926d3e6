//! Alerts and dashboards use only metrics and labels that the binaries export, and every alert says
//! where it is explained and has a test.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use hyper::Method;
use saphyr::{LoadableYamlNode, Yaml};
use serde_json::Value;

use crate::support::{
    harness::World,
    hub::{HubWorld, Reporter},
};

const ALERTS: &str = include_str!("../../helm/sidekey/files/alerts.yaml");
const EXPLAINED: &str = include_str!("../../docs/alerts.md");
const METRICS: &str = include_str!("../../docs/metrics.md");

/// What Prometheus adds to every series, and the bounds of a histogram's buckets.
const OF_TARGETS: [&str; 5] = ["namespace", "pod", "job", "instance", "container"];

fn folder(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The documented metrics with their labels, as Prometheus sees them: a histogram is three. Another
/// test compares the names with the sources.
fn exported() -> BTreeMap<String, BTreeSet<String>> {
    let mut metrics = BTreeMap::new();
    for row in METRICS
        .lines()
        .filter(|line| line.starts_with("| `sidekey_"))
    {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let name = cells[1].trim_matches('`');
        let labels: BTreeSet<String> = cells[3]
            .split('`')
            .skip(1)
            .step_by(2)
            .map(str::to_owned)
            .collect();
        if cells[2] != "histogram" {
            metrics.insert(name.to_owned(), labels);
            continue;
        }
        for (suffix, extra) in [("_bucket", Some("le")), ("_sum", None), ("_count", None)] {
            let labels = labels.iter().cloned().chain(extra.map(str::to_owned));
            metrics.insert(format!("{name}{suffix}"), labels.collect());
        }
    }
    metrics
}

/// A rule of the file: `alert` or `record`, its name, and the rule.
fn rules<'a>(document: &'a Yaml<'a>) -> Vec<(&'static str, &'a str, &'a Yaml<'a>)> {
    let groups = document["groups"].as_sequence().unwrap();
    let rules = groups
        .iter()
        .flat_map(|group| group["rules"].as_sequence().unwrap());
    rules
        .map(|rule| {
            let kind = if rule.contains_mapping_key("alert") {
                "alert"
            } else {
                "record"
            };
            (kind, rule[kind].as_str().unwrap(), rule)
        })
        .collect()
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    let is_part = |char: char| char.is_ascii_alphanumeric() || "_:".contains(char);
    text.split(move |char| !is_part(char))
        .filter(|word| !word.is_empty())
}

/// The text between the first pair of these brackets.
fn between(text: &str, open: char, close: char) -> &str {
    let start = text.find(open).unwrap() + 1;
    &text[start..start + text[start..].find(close).unwrap()]
}

/// Checks an expression, and returns the labels that its metrics have.
fn check(
    expression: &str,
    known: &BTreeMap<String, BTreeSet<String>>,
    of: &str,
) -> BTreeSet<String> {
    let mut labels: BTreeSet<String> = OF_TARGETS.map(str::to_owned).into();
    let mut seen = 0;
    for (at, name) in words(expression)
        .filter(|word| word.contains("sidekey_"))
        .map(|word| (word.as_ptr() as usize - expression.as_ptr() as usize, word))
    {
        let own = known
            .get(name)
            .unwrap_or_else(|| panic!("{of}: no metric {name}"));
        labels.extend(own.iter().cloned());
        seen += 1;
        let rest = &expression[at + name.len()..];
        if !rest.starts_with('{') {
            continue;
        }
        for matcher in between(rest, '{', '}').split(',') {
            let label = words(matcher).next().unwrap();
            let is_known = own.contains(label) || OF_TARGETS.contains(&label);
            assert!(is_known, "{of}: {name} has no label {label}");
        }
    }
    assert!(seen > 0, "{of}: no metric of Sidekey in {expression}");
    // It names a label of its own.
    let counted = expression.split("count_values").skip(1);
    labels.extend(counted.map(|rest| between(rest, '"', '"').to_owned()));
    for clause in ["by", "on", "group_left", "without"] {
        for (at, _) in expression.match_indices(&format!("{clause} (")) {
            for label in words(between(&expression[at..], '(', ')')) {
                assert!(
                    labels.contains(label),
                    "{of}: no label {label} in {expression}"
                );
            }
        }
    }
    labels
}

fn check_template(template: &str, opening: &str, labels: &BTreeSet<String>, of: &str) {
    for rest in template.split(opening).skip(1) {
        let label = words(rest).next().unwrap();
        assert!(
            labels.contains(label),
            "{of}: no label {label} in {template}"
        );
    }
}

/// The anchors of the page's headings.
fn explained() -> BTreeSet<String> {
    let headings = EXPLAINED
        .lines()
        .filter_map(|line| line.strip_prefix("### "));
    headings.map(str::to_lowercase).collect()
}

#[test]
fn alerts_use_what_is_exported_and_lead_to_their_explanation() {
    let documents = Yaml::load_from_str(ALERTS).unwrap();
    let mut known = exported();
    let mut anchors = BTreeSet::new();
    for (kind, name, rule) in rules(&documents[0]) {
        let labels = check(rule["expr"].as_str().unwrap(), &known, name);
        if kind == "record" {
            known.insert(name.to_owned(), labels);
            continue;
        }
        let severity = rule["labels"]["severity"].as_str().unwrap();
        assert!(
            ["critical", "warning", "info"].contains(&severity),
            "{name}: {severity}"
        );
        let annotations = &rule["annotations"];
        check_template(
            annotations["summary"].as_str().unwrap(),
            "$labels.",
            &labels,
            name,
        );
        let anchor = name.to_lowercase();
        let runbook = annotations["runbook_url"].as_str().unwrap();
        assert_eq!(runbook, format!("docs/alerts.md#{anchor}"));
        assert!(anchors.insert(anchor), "{name} is there twice");
    }
    assert_eq!(anchors, explained());
}

#[test]
fn every_alert_has_a_test_that_it_fires_and_one_that_it_does_not() {
    let documents = Yaml::load_from_str(ALERTS).unwrap();
    let mut missing: BTreeSet<(String, bool)> = rules(&documents[0])
        .into_iter()
        .filter(|(kind, _, _)| *kind == "alert")
        .flat_map(|(_, name, _)| [(name.to_owned(), true), (name.to_owned(), false)])
        .collect();
    for file in fs::read_dir(folder("integration/alerts")).unwrap() {
        let text = fs::read_to_string(file.unwrap().path()).unwrap();
        let documents = Yaml::load_from_str(&text).unwrap();
        for test in documents[0]["tests"].as_sequence().unwrap() {
            for case in test["alert_rule_test"].as_sequence().unwrap() {
                let fires = !case["exp_alerts"].as_sequence().unwrap().is_empty();
                missing.remove(&(case["alertname"].as_str().unwrap().to_owned(), fires));
            }
        }
    }
    assert_eq!(missing, BTreeSet::new());
}

/// Calls `visit` with every string in a dashboard, and the name of its member.
fn strings(value: &Value, name: &str, visit: &mut impl FnMut(&str, &str)) {
    match value {
        Value::String(text) => visit(name, text),
        Value::Array(items) => items.iter().for_each(|item| strings(item, name, visit)),
        Value::Object(members) => members
            .iter()
            .for_each(|(name, it)| strings(it, name, visit)),
        _ => {}
    }
}

#[test]
fn dashboards_use_what_is_exported() {
    let mut known = exported();
    let documents = Yaml::load_from_str(ALERTS).unwrap();
    for (kind, name, rule) in rules(&documents[0]) {
        if kind == "record" {
            let labels = check(rule["expr"].as_str().unwrap(), &known, name);
            known.insert(name.to_owned(), labels);
        }
    }
    let mut shown = BTreeSet::new();
    let mut uids = BTreeSet::new();
    for file in fs::read_dir(folder("helm/sidekey/files/dashboards")).unwrap() {
        let file = file.unwrap().path();
        let board: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        assert!(uids.insert(board["uid"].as_str().unwrap().to_owned()));
        let of = file.display().to_string();
        for panel in board["panels"].as_array().unwrap() {
            for target in panel["targets"].as_array().into_iter().flatten() {
                let expression = target["expr"].as_str().unwrap();
                let labels = check(expression, &known, &of);
                shown.extend(words(expression).map(str::to_owned));
                check_template(target["legendFormat"].as_str().unwrap(), "{{", &labels, &of);
            }
        }
        for variable in board["templating"]["list"].as_array().unwrap() {
            strings(variable, "", &mut |name, text| {
                if name == "query" && text.starts_with("label_values(") {
                    let labels = check(text, &known, &of);
                    let label = words(text).last().unwrap();
                    assert!(labels.contains(label), "{of}: no label {label} in {text}");
                }
            });
        }
    }
    // The two that matter most are there.
    assert!(shown.contains("sidekey_keyring_generation") && shown.contains("sidekey_hub_streams"));
}

/// Checks the labels of every series in an answer of `/metrics`, and returns the metrics' names.
fn check_series(metrics: &str) -> BTreeSet<String> {
    let known = exported();
    let mut seen = BTreeSet::new();
    for series in metrics
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
    {
        let name = words(series).next().unwrap();
        let own = known.get(name).unwrap_or_else(|| panic!("{series}"));
        let labels: BTreeSet<String> = match series[name.len()..].strip_prefix('{') {
            Some(rest) => rest[..rest.rfind('}').unwrap()]
                .split("\",")
                .map(|pair| pair.split('=').next().unwrap().to_owned())
                .collect(),
            None => BTreeSet::new(),
        };
        assert_eq!(labels, *own, "{series}");
        seen.insert(name.to_owned());
    }
    seen
}

#[tokio::test]
async fn series_have_the_documented_labels() {
    let world = World::with_demo();
    let sidecar = world.start();
    let mut client = sidecar.client().await;
    let encrypted = client.encrypt(b"x").await.ok();
    client.decrypt(&encrypted.body).await.ok();
    let seen = check_series(&sidecar.ops("/metrics").1);
    assert!(seen.len() > 30, "{seen:?}");

    let world = HubWorld::new();
    let hub = world.start();
    let reporter = Reporter::new(1);
    reporter.report(&hub, 1, false).await.ok();
    // A second stream of a name, another key: what is refused has series as well.
    reporter.report(&hub, 1, true).await;
    let metrics = hub.ask(Method::GET, "/metrics", &Value::Null).await.ok();
    let seen = check_series(std::str::from_utf8(&metrics.body).unwrap());
    assert!(seen.contains("sidekey_hub_reports_total"), "{seen:?}");
}
