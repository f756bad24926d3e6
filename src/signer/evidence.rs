//! The signer's own evidence: it asks the fleet itself.

use crate::{
    admin::{Admin, AdminError, ask_fleet},
    fleet::Fleet,
    keyring::Evidence,
};

/// Asks the fleet for its use of a version.
pub(super) async fn of_disuse(
    admin: &Admin,
    fleet: &Fleet,
    version: u32,
) -> Result<Evidence, AdminError> {
    let current = admin.read().await?;
    let evidence = ask_fleet(fleet, current.manifest(), version, admin.now()).await;
    Ok(Evidence::Fleet(evidence.map_err(AdminError::System)?))
}
