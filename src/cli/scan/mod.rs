//! `sidekey scan`.

mod known;
mod report;

use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
    str::FromStr,
    thread,
};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use self::{
    known::{Known, VersionFilter, name},
    report::{describe, summarize},
};
use super::{
    output::{CliError, Format, path_for_display, print},
    runtime::block_on,
};
use crate::{
    crypto::to_hex,
    model::Location,
    scan::{Options, Progress, Report, Root, Search, scan},
};

#[derive(Debug, Args)]
pub(super) struct Scan {
    /// Files, directories to search recursively, pipes, or `-` for standard input.
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Identify the keyring stored here by name, and find its ciphertexts in every form.
    #[arg(long, value_name = "LOCATION", value_parser = Location::from_str)]
    location: Vec<Location>,
    /// Identify the keyrings in this config file, and use its backend settings.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Identify the keyrings of the sidecar at this socket.
    #[arg(long, value_name = "PATH", env = "SIDEKEY_SOCKET")]
    socket: Option<PathBuf>,
    /// List every file with ciphertexts, and every path that was not searched.
    #[arg(long)]
    files: bool,
    /// Exit with 3 if a ciphertext of this version is found, and with 1 if nothing was searched.
    #[arg(long, value_name = "[KEYRING:]N", value_parser = VersionFilter::from_str)]
    fail_if_version: Vec<VersionFilter>,
    /// Exit with 1 if a path is missing, was skipped or can't be searched.
    ///
    /// Compressed files and files encrypted by other tools can't be searched.
    #[arg(long)]
    fail_if_unseen: bool,
    /// Follow symbolic links.
    #[arg(long)]
    follow: bool,
    /// Number of search threads; by default, one per CPU.
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
}

impl Scan {
    pub(super) fn run(self, format: Format) -> Result<(), CliError> {
        let known = block_on(known::load(
            &self.location,
            self.config.as_deref(),
            self.socket.as_deref(),
        ))?;
        self.fail_if_version
            .iter()
            .try_for_each(|filter| filter.check(&known))?;
        let search =
            Search::new(known.iter().map(|known| known.id.tag())).map_err(CliError::failed)?;
        let roots: Vec<Root> = self.paths.iter().map(|path| root(path)).collect();
        let options = Options {
            follow_links: self.follow,
            threads: self
                .threads
                .or_else(|| thread::available_parallelism().ok())
                .unwrap_or(NonZeroUsize::MIN),
            lists_files: self.files,
        };
        // Hidden unless standard error is a terminal.
        let bar = ProgressBar::new(0).with_style(style());
        let report = scan(&roots, &search, options, &|progress| match progress {
            Progress::Found(bytes) => bar.inc_length(bytes),
            Progress::Searched(bytes) => bar.inc(bytes),
        });
        bar.finish_and_clear();
        // Decided before the report is consumed, returned after it is printed.
        let verdict = self.verdict(&known, &report);
        let summary = summarize(known, report, self.files);
        print(format, &summary, || describe(&summary))?;
        verdict
    }

    /// The result that decides the exit code.
    fn verdict(&self, known: &[Known], report: &Report) -> Result<(), CliError> {
        let unwanted = self.unwanted(known, report);
        if !unwanted.is_empty() {
            return Err(CliError::refused(format!(
                "found ciphertexts of {}",
                unwanted.join("; ")
            )));
        }
        if !report.failures.is_empty() {
            return Err(CliError::failed(format!(
                "{} paths could not be read",
                report.failures.len()
            )));
        }
        let is_proof = self.fail_if_unseen || !self.fail_if_version.is_empty();
        if is_proof && !report.empty.is_empty() {
            let paths: Vec<String> = report
                .empty
                .iter()
                .map(|path| path_for_display(path))
                .collect();
            return Err(CliError::failed(format!(
                "nothing to search in {}; check that it is mounted and was written completely",
                paths.join(", ")
            )));
        }
        if self.fail_if_unseen && report.opaque + report.skipped > 0 {
            return Err(CliError::failed(format!(
                "{} paths could not be searched",
                report.opaque + report.skipped
            )));
        }
        Ok(())
    }

    /// Descriptions of the found versions that match `--fail-if-version`.
    fn unwanted(&self, known: &[Known], report: &Report) -> Vec<String> {
        let matches = |tag: [u8; 4], version: u32| {
            self.fail_if_version
                .iter()
                .any(|filter| filter.matches(known, tag, version))
        };
        report
            .counts_by_key
            .0
            .iter()
            .filter(|((tag, version), _)| matches(*tag, *version))
            .map(|((tag, version), counts)| {
                let keyring = name(known, *tag)
                    .unwrap_or_else(|| format!("an unknown keyring ({})", to_hex(tag)));
                let files = report
                    .files_by_key
                    .get(&(*tag, *version))
                    .copied()
                    .unwrap_or_default();
                format!(
                    "version {version} of {keyring}: {} ciphertexts in {files} files",
                    counts.total()
                )
            })
            .collect()
    }
}

fn root(path: &Path) -> Root {
    if path.as_os_str() == "-" {
        Root::Stdin
    } else {
        Root::Path(path.into())
    }
}

fn style() -> ProgressStyle {
    // The template is valid, so the fallback is never used.
    ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}
