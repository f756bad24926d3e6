//! The signer's own evidence: it asks the sidecars itself.

use crate::{
    admin::{Admin, AdminError, ask_sidecars},
    fleet::Fleet,
    keyring::Evidence,
};

/// Asks every sidecar for its use of a version.
pub(super) async fn of_disuse(
    admin: &Admin,
    fleet: &Fleet,
    version: u32,
) -> Result<Evidence, AdminError> {
    let current = admin.read().await?;
    let manifest = current.manifest();
    let reports = ask_sidecars(fleet, &manifest.name, manifest.id, version).await;
    Ok(Evidence::Fleet(reports.map_err(AdminError::System)?))
}
