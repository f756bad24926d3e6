//! Protection from replicas that lag behind.

use super::request::number;
use crate::{
    backend::{BackendError, ErrorKind, FetchedValue, HeldValue},
    model::SecretSource,
};

/// Remembers a version that was read after a later one.
///
/// The first such read is rejected, because a replica may lag behind. The second one is accepted,
/// because then the provider was restored from a backup.
#[derive(Default)]
pub(super) struct RollbackCheck {
    doubted: Option<String>,
}

impl RollbackCheck {
    /// # Errors
    /// The version's number is below the one in memory, and that was read for the first time.
    pub(super) fn check(
        &mut self,
        source: &SecretSource,
        held: Option<HeldValue<'_>>,
        fetched: &FetchedValue,
    ) -> Result<(), BackendError> {
        let numbers = held
            .and_then(|held| number(held.version))
            .zip(number(&fetched.version));
        if numbers.is_none_or(|(held, fetched)| fetched >= held)
            || self.doubted.as_ref() == Some(&fetched.version)
        {
            self.doubted = None;
            return Ok(());
        }
        self.doubted = Some(fetched.version.clone());
        let message = format!(
            "the provider returned version {} after a later one; reading again to \
             confirm",
            fetched.version
        );
        Err(BackendError::new(ErrorKind::Unavailable, source, message))
    }
}
