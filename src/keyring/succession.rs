//! Whether one manifest can have come of another.

use super::{Document, Rejection, State};

/// Whether `newer` can have come of `older`, as far as the two alone can tell.
///
/// # Errors
/// How they contradict each other: two keyrings, a fork, a version that vanished, came back or has another key.
pub fn succeeds(older: &Document, newer: &Document) -> Result<(), Rejection> {
    let (before, after) = (older.manifest(), newer.manifest());
    if before.id != after.id || before.name != after.name {
        return Err(Rejection::OtherKeyring {
            expected: format!("{} ({})", before.name, before.id),
            found: after.name.clone(),
            found_id: after.id,
        });
    }
    if before.generation == after.generation && older.canonical() != newer.canonical() {
        return Err(Rejection::Forked(after.generation));
    }
    for version in &before.versions {
        let number = version.version;
        let now = after.version(number).ok_or(Rejection::Vanished(number))?;
        if now.check != version.check {
            return Err(Rejection::Exchanged(number));
        }
        if version.state == State::Destroyed && now.state != State::Destroyed {
            return Err(Rejection::Resurrected(number));
        }
    }
    Ok(())
}
