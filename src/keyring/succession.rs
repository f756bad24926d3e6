//! Whether one manifest may follow another.

use super::{Document, Rejection, State};

/// How an accepted manifest relates to the active one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Succession {
    /// The same generation with the same content.
    Unchanged,
    /// A newer generation, or the first.
    Newer,
}

/// Checks that `newer` may follow `older`, as far as the two alone can show.
///
/// # Errors
/// [`Rejection`]: the manifests belong to two keyrings, or are a fork; or a version is missing, is
/// present again after it was destroyed, or has another key.
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
            return Err(Rejection::KeyReplaced(number));
        }
        if version.state == State::Destroyed && now.state != State::Destroyed {
            return Err(Rejection::Resurrected(number));
        }
    }
    Ok(())
}
