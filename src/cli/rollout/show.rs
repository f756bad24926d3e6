//! Reading rollouts: status, list and report.

use std::{fs, path::PathBuf};

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::{
    progress::text,
    target::{FleetTarget, failed},
};
use crate::{
    cli::{
        output::{CliError, Format, columns, print, printable, write_out},
        target::AccessArgs,
    },
    crypto::RolloutId,
    rollout::{self, Order, State},
    runner::{Record, RunnerId},
};

/// How many of the last entries `status` shows.
const SHOWN: usize = 12;

#[derive(Debug, Args)]
pub(in crate::cli) struct Show {
    #[command(flatten)]
    on: FleetTarget,
    #[command(flatten)]
    access: AccessArgs,
}

#[derive(Serialize)]
struct Status<'a> {
    rollout: RolloutId,
    keyring: String,
    phase: &'a rollout::Phase,
    step: u32,
    of: usize,
    step_text: String,
    attempt: u32,
    version: Option<u32>,
    generation: u64,
    waiting_for: &'a [String],
    order: Option<OrderStatus<'a>>,
    runner: Option<&'a RunnerId>,
    entries: &'a [rollout::Entry],
}

#[derive(Serialize)]
struct OrderStatus<'a> {
    digest: String,
    #[serde(flatten)]
    order: &'a Order,
    approvals: usize,
    required: u32,
}

#[derive(Serialize)]
struct Listed {
    rollout: RolloutId,
    keyring: String,
    began: jiff::Timestamp,
    strategy: String,
    by: String,
    phase: rollout::Phase,
}

impl Show {
    async fn record(&self) -> Result<Option<Record>, CliError> {
        let journal = self.on.journal(&self.access)?;
        let stored = journal.read().await.map_err(failed)?;
        Ok(stored.map(|stored| stored.record))
    }

    pub(super) async fn status(self, format: Format) -> Result<(), CliError> {
        let record = self.record().await?;
        let record = record.ok_or_else(|| failed("there is no rollout"))?;
        let state = &record.state;
        let first = state.entries.len().saturating_sub(SHOWN);
        let status = Status {
            rollout: state.id,
            keyring: state.plan.keyring.to_string(),
            phase: &state.phase,
            step: state.number(),
            of: state.plan.steps.len(),
            step_text: state.present().describe(),
            attempt: state.attempt,
            version: state.version.as_ref().map(|version| version.version),
            generation: state.generation,
            waiting_for: &state.waiting_for,
            order: order_status(state),
            runner: record.runner.as_ref(),
            entries: &state.entries[first..],
        };
        print(format, &status, || status_text(&status))
    }

    pub(super) async fn list(self, format: Format) -> Result<(), CliError> {
        let mut listed = Vec::new();
        if let Some(record) = self.record().await? {
            listed.extend(std::iter::once(record.state).chain(record.earlier).map(row));
        }
        print(format, &listed, || {
            let mut rows = vec![
                ["ROLLOUT", "KEYRING", "BEGAN", "STRATEGY", "BY", "STATE"]
                    .map(str::to_owned)
                    .to_vec(),
            ];
            rows.extend(listed.iter().map(|row| {
                vec![
                    row.rollout.to_string(),
                    row.keyring.clone(),
                    row.began.to_string(),
                    row.strategy.clone(),
                    row.by.clone(),
                    row.phase.to_string(),
                ]
            }));
            columns(&rows)
        })
    }
}

fn row(state: State) -> Listed {
    Listed {
        rollout: state.id,
        keyring: state.plan.keyring.to_string(),
        began: state.plan.created_at,
        strategy: state.plan.strategy.name,
        by: state.plan.requester.name,
        phase: state.phase,
    }
}

fn order_status(state: &State) -> Option<OrderStatus<'_>> {
    let order = state.order.as_ref()?;
    Some(OrderStatus {
        digest: order.digest_hex(),
        order,
        approvals: state.approvals.len(),
        required: state.plan.strategy.approvals.as_ref()?.required,
    })
}

fn status_text(status: &Status<'_>) -> String {
    let mut lines = vec![
        format!("rollout {} of keyring {}", status.rollout, status.keyring),
        format!("it {}", status.phase),
        format!(
            "step {} of {}: {}",
            status.step, status.of, status.step_text
        ),
    ];
    for reason in status.waiting_for {
        lines.push(format!("waiting for {}", printable(reason)));
    }
    if let Some(order) = &status.order {
        lines.push(format!(
            "order {}: {} version {}, {} of {} approvals, until {}",
            order.digest,
            order.order.action,
            order.order.version,
            order.approvals,
            order.required,
            order.order.not_after
        ));
    }
    match status.runner {
        Some(runner) => lines.push(format!(
            "run by process {} on {}, last heard of at {}",
            runner.pid, runner.host, runner.alive_at
        )),
        None => lines.push("no process runs it".into()),
    }
    lines.extend(status.entries.iter().map(|entry| text(entry, status.of)));
    lines.join("\n") + "\n"
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Report {
    #[command(flatten)]
    show: Show,
    /// The rollout, if it isn't the last one.
    #[arg(long, value_name = "ID")]
    rollout: Option<RolloutId>,
    /// The format of the report.
    #[arg(long, value_enum, default_value = "markdown")]
    format: ReportFormat,
    /// Write it to this file instead of standard output.
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ReportFormat {
    Markdown,
    Html,
    Json,
}

impl Report {
    pub(super) async fn run(self) -> Result<(), CliError> {
        let record = self.show.record().await?;
        let record = record.ok_or_else(|| failed("there is no rollout"))?;
        let mut states = std::iter::once(record.state).chain(record.earlier);
        let state = match self.rollout {
            None => states.next(),
            Some(id) => states.find(|state| state.id == id),
        };
        let state = state.ok_or_else(|| failed("there is no such rollout (`rollout list`)"))?;
        let report = rollout::Report::of(&state);
        let text = match self.format {
            ReportFormat::Markdown => report.markdown().map_err(failed)?,
            ReportFormat::Html => report.html().map_err(failed)?,
            ReportFormat::Json => serde_json::to_string_pretty(&report).map_err(failed)? + "\n",
        };
        match self.to {
            None => write_out(&text),
            Some(file) => fs::write(&file, text)
                .map_err(|error| failed(format!("can't write {}: {error}", file.display()))),
        }
    }
}
