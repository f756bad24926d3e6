//! Rewrapping in place: the ciphertexts of files are exchanged for new ones under the primary, through a sidecar.
//!
//! A file changes whole or not at all, and an item that fails stays as it is. No key and no plaintext is at hand here. docs/scan.md says
//! which files are changed, and how.

mod pieces;
mod replacement;
mod rewrite;
mod sidecar;
mod source;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

pub use sidecar::Sidecar;

use self::{replacement::Leftover, rewrite::Rewrite};
use crate::{
    client::SidecarError,
    scan::{Progress, Visit, walk},
};

/// The most faults that a report lists.
const MOST_FAULTS: usize = 10_000;

/// What was done.
#[derive(Debug, Default)]
pub struct Report {
    /// The version that the ciphertexts are under now.
    pub primary: u32,
    /// How many files were looked at.
    pub examined: u64,
    /// Files that were changed (or would be), and how many ciphertexts in each.
    pub changed: Vec<(PathBuf, u64)>,
    /// What became of the ciphertexts.
    pub items: Items,
    /// Links, pipes, sockets and devices that were left out, with what they are.
    pub skipped: Vec<(PathBuf, &'static str)>,
    /// How many temporary files of runs that were killed are gone now.
    pub leftovers: u64,
    /// What failed, up to some thousands.
    pub faults: Vec<Fault>,
    /// How many failed.
    pub failed: u64,
    /// Why the run ended early, if it did; what was not reached is as it was.
    pub stopped: Option<String>,
}

/// What became of ciphertexts.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Items {
    /// They are under the primary now (or would be).
    pub rewrapped: u64,
    /// They were already.
    pub current: u64,
    /// They are of other keyrings.
    pub foreign: u64,
    /// They could not be rewrapped, or their file could not be changed.
    pub failed: u64,
}

/// Something that was left as it is because it failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The file.
    pub path: PathBuf,
    /// The ciphertext's line, from 1, if it is one among others.
    pub line: Option<u64>,
    /// A stable code: the sidecar's, or one of docs/scan.md.
    pub code: String,
    /// What is wrong.
    pub message: String,
}

/// Rewraps what `paths` hold and everything beneath them. The report says what failed.
///
/// # Errors
/// The sidecar can't say which version is the primary; nothing was done then.
pub async fn rewrap(
    paths: &[PathBuf],
    sidecar: &mut Sidecar,
    is_dry_run: bool,
    progress: impl Fn(Progress),
) -> Result<Report, SidecarError> {
    let in_force = sidecar.in_force().await?;
    let mut report = Report {
        primary: in_force.primary,
        ..Report::default()
    };
    // A path may be given twice, or stand beneath another.
    let roots: BTreeSet<&PathBuf> = paths.iter().collect();
    for visit in roots.into_iter().flat_map(|root| walk(root, false)) {
        let (path, len) = match visit {
            Visit::File(path, len) => (path, len),
            Visit::Skipped(path, what) => {
                report.skipped.push((path, what));
                continue;
            }
            Visit::Pipe(path) => {
                report.fault(Fault {
                    path,
                    line: None,
                    code: "unreadable".into(),
                    message: "is a pipe, and no file".into(),
                });
                continue;
            }
            // Gone since the folder was read, because its original was rewrapped anew.
            Visit::Failed(path, _) if replacement::is_temporary(&path) && !path.exists() => {
                continue;
            }
            Visit::Failed(path, reason) => {
                report.fault(Fault {
                    path,
                    line: None,
                    code: "unreadable".into(),
                    message: reason,
                });
                continue;
            }
        };
        if replacement::is_temporary(&path) {
            sweep(&path, is_dry_run, &mut report);
            continue;
        }
        progress(Progress::Found(len));
        report.examined += 1;
        let mut items = report.items;
        let faults = &mut |fault| report.fault(fault);
        let rewrite = Rewrite {
            path: &path,
            in_force,
            is_dry_run,
            progress: &progress,
            faults,
        };
        let result = rewrite.run(sidecar, &mut items).await;
        report.items = items;
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

fn sweep(path: &Path, is_dry_run: bool, report: &mut Report) {
    if is_dry_run {
        return report
            .skipped
            .push((path.into(), "temporary file of a rewrap"));
    }
    match replacement::remove_leftover(path) {
        Ok(Leftover::Removed) => report.leftovers += 1,
        Ok(Leftover::InUse) => report.skipped.push((
            path.into(),
            "temporary file of another rewrap that runs now",
        )),
        Err(error) => report.fault(Fault {
            path: path.into(),
            line: None,
            code: "leftover".into(),
            message: format!(
                "a rewrap that was killed left this behind, and it can't be removed: {error}"
            ),
        }),
    }
}

impl Report {
    fn fault(&mut self, fault: Fault) {
        self.failed += 1;
        if self.faults.len() < MOST_FAULTS {
            self.faults.push(fault);
        }
    }
}
