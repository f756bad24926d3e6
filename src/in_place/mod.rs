//! Rewraps files in place: a sidecar replaces their ciphertexts with new ones under the primary.
//!
//! A file is replaced atomically, and a ciphertext that fails stays as it is. No key and no
//! plaintext passes through here. docs/scan.md specifies which files are changed, and how.

mod file;
mod replacement;
mod rewrite;
mod segments;
mod sidecar;
mod source;
mod survey;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

pub use sidecar::Sidecar;

use self::{
    file::{Failures, FileRewrap},
    replacement::Leftover,
};
use crate::{
    client::SidecarError,
    scan::{Progress, Visit, walk},
};

/// The most failures that a report lists.
const MAX_FAILURES: usize = 10_000;

/// The result of a run.
#[derive(Debug, Default)]
pub struct Report {
    /// The primary.
    pub primary: u32,
    /// How many files were examined.
    pub examined: u64,
    /// Files that were (or would be) changed, with the number of rewrapped ciphertexts.
    pub changed: Vec<(PathBuf, u64)>,
    /// The ciphertexts, by result.
    pub counts: Counts,
    /// Links, sockets, devices and temporary files that were skipped, with what they are.
    pub skipped: Vec<(PathBuf, &'static str)>,
    /// How many temporary files of killed runs were removed.
    pub leftovers: u64,
    /// What failed, up to a limit.
    pub failures: Vec<Failure>,
    /// The number of all failures.
    pub failed: u64,
    /// Why the run ended early, if it did. Files that it didn't reach are unchanged.
    pub stopped: Option<String>,
}

/// Ciphertexts, by result.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Rewrapped (or would be).
    pub rewrapped: u64,
    /// Already under the primary.
    pub current: u64,
    /// Of other keyrings.
    pub foreign: u64,
    /// Could not be rewrapped, or their file could not be replaced.
    pub failed: u64,
}

/// A ciphertext or file that failed, and is unchanged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The file.
    pub path: PathBuf,
    /// The line of the ciphertext, from 1, in a text file.
    pub line: Option<u64>,
    /// A stable code: the sidecar's, or one listed in docs/scan.md.
    pub code: String,
    /// The reason.
    pub message: String,
}

/// Rewraps the ciphertexts in the files `paths` and in all files beneath the folders `paths`.
///
/// # Errors
/// The sidecar doesn't return the primary; nothing was changed. Later failures are in the report.
pub async fn rewrap(
    paths: &[PathBuf],
    sidecar: &mut Sidecar,
    is_dry_run: bool,
    progress: impl Fn(Progress),
) -> Result<Report, SidecarError> {
    let active = sidecar.active_keyring().await?;
    let mut report = Report {
        primary: active.primary,
        ..Report::default()
    };
    // A path may be given twice.
    let roots: BTreeSet<&PathBuf> = paths.iter().collect();
    for visit in roots.into_iter().flat_map(|root| walk(root, false)) {
        let Some((path, len)) = file_to_examine(visit, is_dry_run, &mut report) else {
            continue;
        };
        progress(Progress::Found(len));
        report.examined += 1;
        let mut counts = report.counts;
        let file = FileRewrap {
            active,
            is_dry_run,
            progress: &progress,
            failures: Failures {
                path: &path,
                report: &mut |failure| report.add_failure(failure),
            },
        };
        let result = file.run(sidecar, &mut counts).await;
        report.counts = counts;
        match result {
            Ok(0) => {}
            Ok(changed) => report.changed.push((path, changed)),
            Err(error) => {
                report.stopped = Some(format!("{}: {error}", path.display()));
                break;
            }
        }
    }
    report.changed.sort();
    report.skipped.sort();
    Ok(report)
}

/// Returns the path and length of a file that can contain ciphertexts of an application. Reports
/// everything else.
fn file_to_examine(visit: Visit, is_dry_run: bool, report: &mut Report) -> Option<(PathBuf, u64)> {
    match visit {
        Visit::File(path, _) if replacement::is_temporary(&path) => {
            remove_temporary(&path, is_dry_run, report);
        }
        Visit::File(path, len) => return Some((path, len)),
        Visit::Skipped(path, what) => report.skipped.push((path, what)),
        Visit::Pipe(path) => report.add_unreadable(path, "a pipe, not a file".into()),
        // Removed since the folder was read, because its original was rewrapped again.
        Visit::Failed(path, _) if replacement::is_temporary(&path) && !path.exists() => {}
        Visit::Failed(path, reason) => report.add_unreadable(path, reason),
    }
    None
}

fn remove_temporary(path: &Path, is_dry_run: bool, report: &mut Report) {
    if is_dry_run {
        return report
            .skipped
            .push((path.into(), "temporary file of a rewrap"));
    }
    match replacement::remove_leftover(path) {
        Ok(Leftover::Removed) => report.leftovers += 1,
        Ok(Leftover::InUse) => report
            .skipped
            .push((path.into(), "temporary file of a rewrap that is running")),
        Err(error) => report.add_failure(Failure {
            path: path.into(),
            line: None,
            code: "leftover".into(),
            message: format!("can't remove this temporary file of a killed rewrap: {error}"),
        }),
    }
}

impl Report {
    fn add_unreadable(&mut self, path: PathBuf, message: String) {
        self.add_failure(Failure {
            path,
            line: None,
            code: "unreadable".into(),
            message,
        });
    }

    fn add_failure(&mut self, failure: Failure) {
        self.failed += 1;
        if self.failures.len() < MAX_FAILURES {
            self.failures.push(failure);
        }
    }
}
