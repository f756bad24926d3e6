//! One copy of a document for everyone who takes it at the same time.

use std::{
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Instant;

use crate::http::{account::Account, memory::MemoryShare};

/// For how long requests share a copy, while an earlier response with it is being sent.
const FRESH: Duration = Duration::from_secs(1);

/// A document of which responses share copies. A peer that leaves responses unread therefore makes
/// the process hold one copy a second, rather than one a request.
#[derive(Default)]
pub(super) struct SharedCopy(Mutex<Option<(Instant, Weak<Copy>)>>);

/// The text, with its share of the body memory.
struct Copy {
    bytes: Vec<u8>,
    _share: MemoryShare,
}

/// A reference that keeps the copy until the response is sent.
struct CopyBytes(Arc<Copy>);

impl AsRef<[u8]> for CopyBytes {
    fn as_ref(&self) -> &[u8] {
        &self.0.bytes
    }
}

impl SharedCopy {
    /// Returns a copy that is being sent, or a new one. None if there is no memory for it.
    pub(super) fn bytes<E>(
        &self,
        account: &Arc<Account>,
        write: impl FnOnce() -> Result<Vec<u8>, E>,
    ) -> Result<Option<Bytes>, E> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = last
            .as_ref()
            .filter(|(at, _)| at.elapsed() < FRESH)
            .and_then(|(_, copy)| copy.upgrade());
        if let Some(copy) = fresh {
            return Ok(Some(Bytes::from_owner(CopyBytes(copy))));
        }
        let bytes = write()?;
        let Some(share) = account.try_reserve(bytes.capacity()) else {
            return Ok(None);
        };
        let copy = Arc::new(Copy {
            bytes,
            _share: share,
        });
        *last = Some((Instant::now(), Arc::downgrade(&copy)));
        Ok(Some(Bytes::from_owner(CopyBytes(copy))))
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;
    use crate::http::account::testing::account;

    /// Returns what a request gets whose own copy would be `text`.
    fn get(copy: &SharedCopy, account: &Arc<Account>, text: u8) -> Option<Bytes> {
        let write = || Ok::<_, Infallible>(vec![text; 3000]);
        copy.bytes(account, write)
            .unwrap_or_else(|never| match never {})
    }

    #[tokio::test(start_paused = true)]
    async fn a_copy_is_shared_while_it_is_fresh_and_being_sent() {
        let (copy, account) = (SharedCopy::default(), account(10_000));
        let first = get(&copy, &account, 1).expect("memory");
        assert_eq!(get(&copy, &account, 2).expect("shared")[0], 1);
        assert_eq!(account.free_memory(), 7000);
        tokio::time::advance(FRESH).await;
        assert_eq!(get(&copy, &account, 3).expect("memory")[0], 3);
        drop(first);
        assert_eq!(account.free_memory(), 10_000);
        assert_eq!(
            get(&copy, &account, 4).expect("memory")[0],
            4,
            "none is being sent"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn copies_that_are_not_taken_are_charged() {
        let (copy, account) = (SharedCopy::default(), account(10_000));
        let mut held = Vec::new();
        while let Some(bytes) = get(&copy, &account, 0) {
            held.push(bytes);
            tokio::time::advance(FRESH).await;
        }
        assert_eq!(held.len(), 3);
    }
}
