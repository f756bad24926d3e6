//! `sidekey rewrap`, of a stream or of files in place.

use std::path::PathBuf;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::{
    client::Transform,
    exact,
    output::{Failure, Format, columns, print, printable},
};
use crate::{
    in_place::{Report, Sidecar, rewrap},
    scan::Progress,
};

#[derive(Debug, Args)]
pub(super) struct Rewrap {
    #[command(flatten)]
    transform: Transform,
    /// Rewrap the ciphertexts of these files, and of everything beneath these folders, where they are.
    #[arg(long, value_name = "PATH", num_args = 1.., conflicts_with_all = ["text", "lines", "out", "input"])]
    in_place: Vec<PathBuf>,
    /// Say what would be changed, and change nothing.
    #[arg(long, requires = "in_place")]
    dry_run: bool,
}

#[derive(Serialize)]
struct Summary {
    keyring: String,
    primary: u32,
    dry_run: bool,
    files: Files,
    ciphertexts: Ciphertexts,
    changed: Vec<Changed>,
    skipped: Vec<Skipped>,
    failures: Vec<Failed>,
    /// None if everything was looked at.
    stopped: Option<String>,
}

#[derive(Serialize)]
struct Files {
    examined: u64,
    changed: usize,
    leftovers_removed: u64,
}

#[derive(Serialize)]
struct Ciphertexts {
    rewrapped: u64,
    current: u64,
    other_keyrings: u64,
    failed: u64,
}

#[derive(Serialize)]
struct Changed {
    path: String,
    rewrapped: u64,
}

#[derive(Serialize)]
struct Skipped {
    path: String,
    what: &'static str,
}

#[derive(Serialize)]
struct Failed {
    path: String,
    line: Option<u64>,
    code: String,
    message: String,
}

impl Rewrap {
    pub(super) async fn run(self, format: Format) -> Result<(), Failure> {
        if self.in_place.is_empty() {
            return self.transform.rewrap(format).await;
        }
        let (socket, keyring, aad) = self.transform.into_parts();
        let mut sidecar = Sidecar::new(socket, keyring.clone(), &aad);
        // Hidden unless standard error is a terminal.
        let bar = ProgressBar::new(0).with_style(style());
        let result = rewrap(
            &self.in_place,
            &mut sidecar,
            self.dry_run,
            |progress| match progress {
                Progress::Found(bytes) => bar.inc_length(bytes),
                Progress::Searched(bytes) => bar.inc(bytes),
            },
        )
        .await;
        bar.finish_and_clear();
        let report = result?;
        let failed = report.failed;
        let summary = summary(keyring, self.dry_run, report);
        print(format, &summary, || describe(&summary))?;
        match &summary.stopped {
            Some(reason) => Err(Failure::failed(format!(
                "stopped at {}\nrun it again to go on",
                printable(reason)
            ))),
            None if failed > 0 => Err(Failure::failed(format!(
                "{failed} failures; what failed is as it was"
            ))),
            None => Ok(()),
        }
    }
}

fn summary(keyring: String, dry_run: bool, report: Report) -> Summary {
    Summary {
        keyring,
        primary: report.primary,
        dry_run,
        files: Files {
            examined: report.examined,
            changed: report.changed.len(),
            leftovers_removed: report.leftovers,
        },
        ciphertexts: Ciphertexts {
            rewrapped: report.items.rewrapped,
            current: report.items.current,
            other_keyrings: report.items.foreign,
            failed: report.items.failed,
        },
        changed: report
            .changed
            .into_iter()
            .map(|(path, rewrapped)| Changed {
                path: exact(&path),
                rewrapped,
            })
            .collect(),
        skipped: report
            .skipped
            .into_iter()
            .map(|(path, what)| Skipped {
                path: exact(&path),
                what,
            })
            .collect(),
        failures: report
            .faults
            .into_iter()
            .map(|fault| Failed {
                path: exact(&fault.path),
                line: fault.line,
                code: fault.code,
                message: fault.message,
            })
            .collect(),
        stopped: report.stopped,
    }
}

fn describe(summary: &Summary) -> String {
    let mut text = String::new();
    if !summary.changed.is_empty() {
        let heading = if summary.dry_run {
            "WOULD BE REWRAPPED"
        } else {
            "REWRAPPED"
        };
        let mut table = vec![vec!["FILE".to_owned(), heading.to_owned()]];
        table.extend(
            summary
                .changed
                .iter()
                .map(|changed| vec![printable(&changed.path), changed.rewrapped.to_string()]),
        );
        text.push_str(&format!("{}\n", columns(&table)));
    }
    let Ciphertexts {
        rewrapped,
        current,
        other_keyrings,
        failed,
    } = summary.ciphertexts;
    let Files {
        examined,
        changed,
        leftovers_removed,
    } = summary.files;
    let verb = if summary.dry_run {
        "would be rewrapped"
    } else {
        "rewrapped"
    };
    text.push_str(&format!(
        "{}: {rewrapped} ciphertexts {verb} under version {} in {changed} of {examined} files; {current} were under it already\n",
        summary.keyring, summary.primary
    ));
    for (count, what) in [
        (failed, "ciphertexts failed and are as they were"),
        (other_keyrings, "ciphertexts of other keyrings left alone"),
        (
            summary.skipped.len() as u64,
            "links and special files skipped",
        ),
        (leftovers_removed, "temporary files of earlier runs removed"),
    ] {
        if count > 0 {
            text.push_str(&format!("{count} {what}\n"));
        }
    }
    for Failed {
        path,
        line,
        code,
        message,
    } in &summary.failures
    {
        let line = line.map(|line| format!(":{line}")).unwrap_or_default();
        text.push_str(&format!(
            "  {}{line}: {} ({code})\n",
            printable(path),
            printable(message)
        ));
    }
    text
}

fn style() -> ProgressStyle {
    // The template is right, so the default is never taken.
    ProgressStyle::with_template("{spinner} {bytes}/{total_bytes}  {bytes_per_sec}")
        .unwrap_or_else(|_| ProgressStyle::default_spinner())
}
