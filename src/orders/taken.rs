//! The orders that were taken, so that each begins one rollout at most, whatever the hub says.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    crypto::{KeyringId, RolloutId},
    files::{Allowed, read_private, replace_durably},
    rollout::StartOrder,
};

/// The longest list, in bytes.
const LIMIT: usize = 1 << 20;
/// How many orders of a keyring are taken while they are valid.
const MOST: usize = 1024;
const WHAT: &str = "the list of orders that were taken";

/// The orders of a keyring that were taken and are still valid, in a file.
#[derive(Debug, Clone)]
pub(super) struct TakenOrders {
    file: PathBuf,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Taken {
    id: RolloutId,
    /// After this, it is refused anyway.
    not_after: Timestamp,
}

impl TakenOrders {
    pub(super) fn in_folder(folder: &Path, keyring: KeyringId) -> Self {
        Self {
            file: folder.join(format!("{keyring}.orders.json")),
        }
    }

    /// Returns whether an order was taken and is still valid.
    ///
    /// # Errors
    /// The file can't be used.
    pub(super) fn contains(&self, order: &StartOrder) -> Result<bool, String> {
        let taken = self
            .read()
            .map_err(|reason| format!("{}: {reason}", self.file.display()))?;
        Ok(taken.iter().any(|known| known.id == order.id))
    }

    /// Remembers an order, durably. Returns false if it was taken before.
    ///
    /// # Errors
    /// The file can't be used, or there are too many orders. Then the order must not be taken.
    pub(super) fn take(&self, order: &StartOrder, now: Timestamp) -> Result<bool, String> {
        let failed = |reason: String| format!("{}: {reason}", self.file.display());
        let mut taken = self.read().map_err(failed)?;
        if taken.iter().any(|known| known.id == order.id) {
            return Ok(false);
        }
        taken.retain(|known| known.not_after >= now);
        if taken.len() >= MOST {
            return Err(format!(
                "{MOST} orders were taken that are still valid; wait"
            ));
        }
        taken.push(Taken {
            id: order.id,
            not_after: order.not_after,
        });
        self.write(&taken)
            .map_err(|error| failed(error.to_string()))?;
        Ok(true)
    }

    fn read(&self) -> Result<Vec<Taken>, String> {
        match fs::symlink_metadata(&self.file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            _ => {}
        }
        let bytes = read_private(&self.file, WHAT, Allowed::Owner, LIMIT)
            .map_err(|error| error.to_string())?;
        serde_json::from_slice(&bytes).map_err(|error| format!("it is damaged: {error}"))
    }

    fn write(&self, taken: &[Taken]) -> io::Result<()> {
        if let Some(folder) = self.file.parent() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder)?;
        }
        let json = serde_json::to_vec(taken)?;
        replace_durably(&self.file, &json, |file| file.sync_all())
    }
}

#[cfg(test)]
mod tests {
    use jiff::ToSpan;

    use super::*;
    use crate::rollout::{Intent, Requester, Strategy};

    fn order(id: u8, not_after: Timestamp) -> StartOrder {
        StartOrder {
            id: RolloutId([id; 16]),
            keyring: "demo".parse().expect("a name"),
            keyring_id: KeyringId([1; 16]),
            intent: Intent::Rotate,
            strategy: Strategy::built_in("quick").expect("built in"),
            requester: Requester {
                name: "ann".into(),
                key: None,
            },
            not_after,
        }
    }

    #[test]
    fn an_order_is_taken_once_as_long_as_it_is_valid() {
        let folder = tempfile::tempdir().expect("a folder");
        let now = Timestamp::from_second(1_700_000_000).expect("in range");
        let soon = now.checked_add(1.minute()).expect("in range");
        let taken = || TakenOrders::in_folder(&folder.path().join("state"), KeyringId([1; 16]));
        assert_eq!(taken().take(&order(1, soon), now), Ok(true));
        // By another process, after this one was killed.
        assert_eq!(taken().take(&order(1, soon), now), Ok(false));
        assert_eq!(taken().take(&order(2, soon), soon), Ok(true));
        assert_eq!(taken().read().expect("readable").len(), 2);
        let later = soon.checked_add(1.second()).expect("in range");
        let next = later.checked_add(1.minute()).expect("in range");
        assert_eq!(taken().take(&order(3, next), later), Ok(true));
        assert_eq!(
            taken().read().expect("readable").len(),
            1,
            "late ones are void"
        );

        fs::write(&taken().file, "{").expect("damaged");
        let error = taken().take(&order(4, next), later).expect_err("damaged");
        assert!(error.contains("damaged"), "{error}");
    }
}
