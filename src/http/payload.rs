//! Payloads: bytes to send, with their share of the body memory.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use zeroize::Zeroizing;

use super::{
    account::Account,
    memory::{MemoryShare, UNTRACKED},
};

/// A part of a buffer, with its share of the body memory.
pub(crate) struct Payload {
    buffer: Buffer,
    range: Range<usize>,
    share: MemoryShare,
}

enum Buffer {
    Shared(Bytes),
    Owned(Vec<u8>),
    Zeroizing(Zeroizing<Vec<u8>>),
}

impl Payload {
    /// Keeps as much of `share` as the buffer needs, and returns the rest now.
    pub(crate) fn new(buffer: Vec<u8>, share: MemoryShare) -> Self {
        Self::tracked(Buffer::Owned(buffer), share)
    }

    /// Like [`Self::new`], but zeroizes the buffer once it has been sent.
    pub(crate) fn zeroizing(buffer: Zeroizing<Vec<u8>>, share: MemoryShare) -> Self {
        Self::tracked(Buffer::Zeroizing(buffer), share)
    }

    fn tracked(buffer: Buffer, mut share: MemoryShare) -> Self {
        let length = buffer.as_slice().len();
        share.shrink_to(buffer.capacity());
        Self {
            buffer,
            range: 0..length,
            share,
        }
    }

    /// Narrows the payload to a part of its buffer.
    pub(crate) fn slice(self, range: Range<usize>) -> Self {
        Self { range, ..self }
    }

    /// Gives the payload a share of `account`'s memory, unless it has one, is small, or shares its
    /// bytes with others. Returns whether there was enough.
    pub(crate) fn charge(&mut self, account: &Arc<Account>) -> bool {
        let is_shared = matches!(self.buffer, Buffer::Shared(_));
        let bytes = self.buffer.capacity();
        if is_shared || bytes <= UNTRACKED || !self.share.is_empty() {
            return true;
        }
        match account.try_reserve(bytes) {
            Some(share) => {
                self.share = share;
                true
            }
            None => false,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.range.len()
    }

    /// Converts into `Bytes`, which allocates only where a share or zeroizing demands it.
    pub(crate) fn into_bytes(self) -> Bytes {
        match self {
            Self {
                buffer: Buffer::Shared(bytes),
                range,
                ..
            } => bytes.slice(range),
            Self {
                buffer: Buffer::Owned(bytes),
                range,
                share,
            } if share.is_empty() => Bytes::from(bytes).slice(range),
            other => Bytes::from_owner(other),
        }
    }
}

impl From<Vec<u8>> for Payload {
    fn from(bytes: Vec<u8>) -> Self {
        Self::new(bytes, MemoryShare::default())
    }
}

impl From<String> for Payload {
    fn from(text: String) -> Self {
        text.into_bytes().into()
    }
}

impl From<&'static str> for Payload {
    fn from(text: &'static str) -> Self {
        Bytes::from_static(text.as_bytes()).into()
    }
}

/// Bytes that may be shared with other payloads, so none holds them alone.
impl From<Bytes> for Payload {
    fn from(bytes: Bytes) -> Self {
        Self {
            range: 0..bytes.len(),
            buffer: Buffer::Shared(bytes),
            share: MemoryShare::default(),
        }
    }
}

impl AsRef<[u8]> for Payload {
    fn as_ref(&self) -> &[u8] {
        &self.buffer.as_slice()[self.range.clone()]
    }
}

impl Buffer {
    /// How much memory it takes.
    fn capacity(&self) -> usize {
        match self {
            Self::Shared(bytes) => bytes.len(),
            Self::Owned(bytes) => bytes.capacity(),
            Self::Zeroizing(bytes) => bytes.capacity(),
        }
    }

    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Shared(bytes) => bytes,
            Self::Owned(bytes) => bytes,
            Self::Zeroizing(bytes) => bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::account::testing::account;

    #[tokio::test]
    async fn a_payload_keeps_only_what_its_buffer_needs() {
        let account = account(10_000);
        let share = account.reserve(9000).await.expect("free");
        let payload = Payload::new(vec![1; 3000], share).slice(10..20);
        assert_eq!(account.free_memory(), 7000);
        let bytes = payload.into_bytes();
        assert_eq!(bytes.len(), 10);
        assert_eq!(account.free_memory(), 7000);
        drop(bytes);
        assert_eq!(account.free_memory(), 10_000);
    }

    #[test]
    fn a_payload_without_a_share_is_charged_unless_it_is_small_or_shared() {
        let account = account(10_000);
        let mut large = Payload::from(vec![7; 3000]);
        assert!(large.charge(&account));
        assert_eq!(account.free_memory(), 7000);
        assert!(large.charge(&account), "once");
        assert_eq!(account.free_memory(), 7000);
        let mut too_large = Payload::from(vec![7; 9000]);
        assert!(!too_large.charge(&account));
        drop(large);
        let mut small = Payload::from(vec![7; UNTRACKED]);
        let mut shared = Payload::from(Bytes::from(vec![7; 9000]));
        assert!(small.charge(&account) && shared.charge(&account));
        assert_eq!(account.free_memory(), 10_000);
    }

    #[test]
    fn small_payloads_are_free() {
        let payload = Payload::new(vec![7; 3], MemoryShare::default());
        assert_eq!((payload.len(), payload.as_ref()), (3, &[7; 3][..]));
    }
}
