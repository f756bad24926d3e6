//! The report of a rollout: for people as Markdown or HTML, for programs as JSON.

use jiff::Timestamp;
use minijinja::{AutoEscape, Environment, Error, value::Serde};
use serde::Serialize;

use super::{
    assess::Finding,
    state::{Entry, Kind, Phase, State},
};
use crate::encoding::to_hex;

/// Everything that an auditor asks about a rollout.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The keyring.
    pub keyring: String,
    /// Its id.
    pub keyring_id: String,
    /// The rollout's id.
    pub rollout: String,
    /// The version of Sidekey that wrote the report.
    pub build: String,
    /// Who ran it.
    pub requester: String,
    /// The requester's key, if changes were signed.
    pub requester_key: Option<String>,
    /// How it ended, or where it is.
    pub outcome: String,
    /// Whether every step is done.
    pub is_finished: bool,
    /// When it began.
    pub began: Timestamp,
    /// When it ended.
    pub ended: Option<Timestamp>,
    /// The strategy's name.
    pub strategy: String,
    /// The plan's SHA-256, which the manifest carried.
    pub plan_sha256: String,
    /// The generation that the plan was made for.
    pub base_generation: u64,
    /// The digest of that generation.
    pub base_sha256: String,
    /// The last generation that the rollout wrote.
    pub generation: u64,
    /// The digest of that generation.
    pub sha256: String,
    /// The version that was replaced.
    pub replaced: u32,
    /// The version that it brought in.
    pub version: Option<u32>,
    /// What was found before it began.
    pub findings: Vec<Finding>,
    /// The steps that were begun, and those of the plan that were not.
    pub steps: Vec<StepReport>,
    /// The approvals that counted.
    pub approvals: Vec<Event>,
    /// What people asked for.
    pub decisions: Vec<Event>,
    /// What a person should know.
    pub anomalies: Vec<Event>,
}

/// One step in a report.
#[derive(Debug, Clone, Serialize)]
pub struct StepReport {
    /// Its number, from 1.
    pub number: u32,
    /// What it does.
    pub text: String,
    /// When it first began.
    pub began: Option<Timestamp>,
    /// When the last thing in it happened.
    pub last: Option<Timestamp>,
    /// How often it was begun.
    pub attempts: u32,
    /// What happened in it.
    pub results: Vec<String>,
}

/// Something that happened at a time.
#[derive(Debug, Clone, Serialize)]
pub struct Event {
    /// When.
    pub at: Timestamp,
    /// In which step.
    pub step: u32,
    /// What.
    pub text: String,
}

impl Report {
    /// Reports on a rollout, whether or not it is over.
    pub fn of(state: &State) -> Self {
        let plan = &state.plan;
        let events = |is_wanted: fn(&Kind) -> bool| -> Vec<Event> {
            let entries = state.entries.iter();
            entries
                .filter(|entry| is_wanted(&entry.kind))
                .map(event)
                .collect()
        };
        let steps = plan.steps.iter().enumerate().map(|(index, step)| {
            let number = u32::try_from(index + 1).unwrap_or(u32::MAX);
            let entries: Vec<&Entry> = state
                .entries
                .iter()
                .filter(|entry| entry.step == number)
                .collect();
            StepReport {
                number,
                text: step.describe(),
                began: entries
                    .iter()
                    .find(|entry| entry.kind == Kind::Began)
                    .map(|entry| entry.at),
                last: entries.last().map(|entry| entry.at),
                attempts: entries.iter().map(|entry| entry.attempt).max().unwrap_or(0),
                results: entries
                    .iter()
                    .filter(|entry| !matches!(entry.kind, Kind::Began | Kind::Started))
                    .map(|entry| line(entry))
                    .collect(),
            }
        });
        let ended = state.phase.is_over().then(|| state.entries.last());
        Self {
            keyring: plan.keyring.to_string(),
            keyring_id: plan.keyring_id.to_string(),
            rollout: state.id.to_string(),
            build: env!("CARGO_PKG_VERSION").into(),
            requester: plan.requester.name.clone(),
            requester_key: plan.requester.key.map(|key| key.to_string()),
            outcome: format!("The rollout {}.", state.phase),
            is_finished: state.phase == Phase::Finished,
            began: plan.created_at,
            ended: ended.flatten().map(|entry| entry.at),
            strategy: plan.strategy.name.clone(),
            plan_sha256: to_hex(&plan.digest()),
            base_generation: plan.base.generation,
            base_sha256: to_hex(&plan.base.sha256.0),
            generation: state.generation,
            sha256: to_hex(&state.sha256.0),
            replaced: plan.replaced.version,
            version: state.version.as_ref().map(|version| version.version),
            findings: state.findings.clone(),
            steps: steps.collect(),
            approvals: events(|kind| *kind == Kind::Approved),
            decisions: events(|kind| {
                matches!(
                    kind,
                    Kind::Started | Kind::Paused | Kind::Resumed | Kind::Promoted
                )
            }),
            anomalies: events(|kind| {
                matches!(
                    kind,
                    Kind::Anomaly | Kind::Retrying | Kind::Halted | Kind::RollingBack
                )
            }),
        }
    }

    /// Writes the report as Markdown (CommonMark with tables).
    ///
    /// # Errors
    /// A fault in the template.
    pub fn markdown(&self) -> Result<String, Error> {
        self.render("report.md", include_str!("report.md"))
    }

    /// Writes the report as one HTML file that needs no other.
    ///
    /// # Errors
    /// A fault in the template.
    pub fn html(&self) -> Result<String, Error> {
        self.render("report.html", include_str!("report.html"))
    }

    fn render(&self, name: &str, template: &str) -> Result<String, Error> {
        let mut environment = Environment::new();
        environment.set_auto_escape_callback(|name| {
            if name.ends_with(".html") {
                AutoEscape::Html
            } else {
                AutoEscape::None
            }
        });
        environment.add_filter("cell", cell);
        environment.render_named_str(name, template, Serde(self))
    }
}

/// Escapes text for Markdown: it comes from sidecars and people, and forms neither tables, links
/// nor HTML.
fn cell(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' | '\r' => escaped.push(' '),
            '\\' | '|' | '`' | '*' | '_' | '<' | '>' | '[' | ']' | '#' | '&' => {
                escaped.extend(['\\', character]);
            }
            _ => escaped.push(character),
        }
    }
    escaped
}

fn event(entry: &Entry) -> Event {
    Event {
        at: entry.at,
        step: entry.step,
        text: line(entry),
    }
}

/// Describes an entry in one line.
fn line(entry: &Entry) -> String {
    if entry.text.is_empty() {
        entry.kind.to_string()
    } else {
        format!("{}: {}", entry.kind, entry.text)
    }
}
