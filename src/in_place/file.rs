//! Rewraps the ciphertexts of one file: examines it, and replaces it if one of them is stale.

use std::{path::Path, sync::Arc};

use super::{
    Counts, Failure,
    replacement::{FileError, Original, Replacement},
    rewrite::Rewrite,
    sidecar::{ActiveKeyring, Sidecar},
    source::Source,
    survey::Survey,
};
use crate::{client::SidecarError, scan::Progress};

/// The rewrap of one file.
pub(super) struct FileRewrap<'r, P> {
    pub(super) active: ActiveKeyring,
    pub(super) is_dry_run: bool,
    pub(super) progress: &'r P,
    pub(super) failures: Failures<'r>,
}

/// Receives what fails in a file.
pub(super) struct Failures<'f> {
    pub(super) path: &'f Path,
    pub(super) report: &'f mut dyn FnMut(Failure),
}

impl Failures<'_> {
    pub(super) fn add(&mut self, line: Option<u64>, code: &str, message: String) {
        (self.report)(Failure {
            path: self.path.into(),
            line,
            code: code.into(),
            message,
        });
    }
}

/// The file is left unchanged.
pub(super) enum Unchanged {
    /// The run continues with the next file.
    File(FileError),
    /// The run stops.
    Sidecar(SidecarError),
}

impl<E: Into<FileError>> From<E> for Unchanged {
    fn from(error: E) -> Self {
        Self::File(error.into())
    }
}

impl<P: Fn(Progress)> FileRewrap<'_, P> {
    /// Rewraps a file, and adds its ciphertexts to `counts`: as failed, if the file can't be
    /// replaced. Returns how many were rewrapped.
    ///
    /// # Errors
    /// The sidecar can't continue. The file is unchanged.
    pub(super) async fn run(
        mut self,
        sidecar: &mut Sidecar,
        counts: &mut Counts,
    ) -> Result<u64, SidecarError> {
        let mut survey = Survey::default();
        let mut own = Counts::default();
        let left = self.file(sidecar, &mut survey, &mut own).await.err();
        if left.is_some() {
            (own.rewrapped, own.failed) = (0, survey.stale);
        }
        counts.rewrapped += own.rewrapped;
        counts.current += survey.current;
        counts.foreign += survey.foreign;
        counts.failed += own.failed + survey.cut_off;
        match left {
            None => Ok(own.rewrapped),
            Some(Unchanged::File(error)) => {
                self.failures.add(None, error.code(), error.to_string());
                Ok(0)
            }
            Some(Unchanged::Sidecar(error)) => Err(error),
        }
    }

    /// Counts the ciphertexts that were rewrapped, and those that failed.
    async fn file(
        &mut self,
        sidecar: &mut Sidecar,
        survey: &mut Survey,
        counts: &mut Counts,
    ) -> Result<(), Unchanged> {
        let original = Original::open(self.failures.path)?;
        survey.examine(&original, self.active, self.progress, &mut self.failures)?;
        if survey.stale == 0 {
            return Ok(());
        }
        if survey.is_binary && !survey.is_whole {
            return Err(FileError::Binary(survey.stale).into());
        }
        if self.is_dry_run {
            counts.rewrapped = survey.stale;
            return Ok(());
        }
        (self.progress)(Progress::Found(original.len()));
        let mut rewrite = Rewrite {
            sidecar,
            active: self.active,
            original: &original,
            replacement: Replacement::of(&original)?,
            counts,
            progress: self.progress,
            failures: &mut self.failures,
        };
        if survey.is_whole {
            let source = Source {
                file: Arc::clone(&original.file),
                from: 0,
                to: original.len(),
                is_text: false,
            };
            rewrite.single(&source, None).await?;
        } else {
            rewrite.text().await?;
        }
        // Otherwise the replacement equals the original.
        if rewrite.counts.rewrapped > 0 {
            rewrite.replacement.commit(&original)?;
        }
        Ok(())
    }
}
