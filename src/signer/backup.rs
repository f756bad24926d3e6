//! The backup that a strategy asks for.

use std::path::{Path, PathBuf};

use crate::{
    admin::{Admin, AdminError, DecryptWith, EncryptFor, recipients_in},
    keyring::Document,
    rollout::{BackUp, State},
};

/// Makes a backup, reads it back and records it. If the rollout made the file before, that is
/// verified and recorded.
pub(super) async fn back_up(
    admin: &Admin,
    state: &State,
    to: &BackUp,
) -> Result<Document, AdminError> {
    let file = file(state, to);
    let identities = DecryptWith::from_identity_file(Path::new(&to.identity_file))?;
    let backup = if file.exists() {
        admin.verify_backup(&file, &identities).await?
    } else {
        let recipients = EncryptFor::Recipients(recipients_in(Path::new(&to.recipients_file))?);
        admin.back_up(&file, &recipients, Some(&identities)).await?
    };
    admin.record(&backup).await
}

/// A file of this rollout's own, so that a second try finds the first one's.
fn file(state: &State, to: &BackUp) -> PathBuf {
    let name = format!("{}-{}.age", state.plan.keyring, state.id);
    Path::new(&to.folder).join(name)
}
