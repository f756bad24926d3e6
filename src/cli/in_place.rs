//! `sidekey rewrap`, for a stream or for files in place.

use std::path::PathBuf;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::{
    client::Transform,
    output::{CliError, Format, columns, exact_path, print, printable},
};
use crate::{
    in_place::{Report, Sidecar, rewrap},
    scan::Progress,
};

#[derive(Debug, Args)]
pub(super) struct Rewrap {
    #[command(flatten)]
    transform: Transform,
    /// Rewrap the ciphertexts in these files and directories in place.
    #[arg(
        long,
        value_name = "PATH",
        num_args = 1..,
        conflicts_with_all = ["text", "lines", "out", "input"]
    )]
    in_place: Vec<PathBuf>,
    /// Report what would change without changing anything.
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
    /// Why the run stopped early.
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

impl Failed {
    fn describe(&self) -> String {
        let line = self.line.map(|line| format!(":{line}")).unwrap_or_default();
        let (path, message) = (printable(&self.path), printable(&self.message));
        format!("  {path}{line}: {message} ({})\n", self.code)
    }
}

impl Rewrap {
    pub(super) async fn run(self, format: Format) -> Result<(), CliError> {
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
            Some(reason) => Err(CliError::failed(format!(
                "stopped at {}\nrun the command again to continue",
                printable(reason)
            ))),
            None if failed > 0 => Err(CliError::failed(format!(
                "{failed} ciphertexts failed and are unchanged"
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
            rewrapped: report.counts.rewrapped,
            current: report.counts.current,
            other_keyrings: report.counts.foreign,
            failed: report.counts.failed,
        },
        changed: report
            .changed
            .into_iter()
            .map(|(path, rewrapped)| Changed {
                path: exact_path(&path),
                rewrapped,
            })
            .collect(),
        skipped: report
            .skipped
            .into_iter()
            .map(|(path, what)| Skipped {
                path: exact_path(&path),
                what,
            })
            .collect(),
        failures: report
            .failures
            .into_iter()
            .map(|failure| Failed {
                path: exact_path(&failure.path),
                line: failure.line,
                code: failure.code,
                message: failure.message,
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
        "{}: {rewrapped} ciphertexts {verb} under version {} in {changed} of {examined} files; \
         {current} already current\n",
        summary.keyring, summary.primary
    ));
    for (count, what) in [
        (failed, "ciphertexts failed and are unchanged"),
        (other_keyrings, "ciphertexts of other keyrings unchanged"),
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
    for failed in &summary.failures {
        text.push_str(&failed.describe());
    }
    text
}

fn style() -> ProgressStyle {
    // The template is valid, so the fallback is never used.
    ProgressStyle::with_template("{spinner} {bytes}/{total_bytes}  {bytes_per_sec}")
        .unwrap_or_else(|_| ProgressStyle::default_spinner())
}
