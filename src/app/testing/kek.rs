use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use futures_util::future::BoxFuture;
use jiff::Timestamp;

use super::mode::Mode;
use crate::{
    backend::{BackendError, ErrorKind, Kek},
    crypto::{Dek, KeyringId, SecretKey, WrapContext, unwrap_dek, wrap_dek},
    model::KekUri,
};

/// A KEK in memory.
pub(crate) struct FakeKek {
    uri: KekUri,
    key: SecretKey,
    mode: Mode<ErrorKind>,
    calls: Mutex<Vec<KekCall>>,
    /// Whether it returns a key of its own instead of the one that was wrapped.
    is_exchanging: AtomicBool,
    time: Mutex<Option<Timestamp>>,
}

/// One request to a KEK.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum KekCall {
    Wrap { keyring: KeyringId, version: u32 },
    Unwrap { keyring: KeyringId, version: u32 },
}

impl FakeKek {
    pub(super) fn new(uri: &KekUri) -> Self {
        Self {
            uri: uri.clone(),
            key: SecretKey::generate().expect("randomness"),
            mode: Mode::default(),
            calls: Mutex::default(),
            is_exchanging: AtomicBool::new(false),
            time: Mutex::default(),
        }
    }

    /// Fails every call from now on.
    pub(crate) fn fail(&self, fault: ErrorKind) {
        self.mode.fail(fault);
    }

    /// Hangs every call from now on.
    pub(crate) fn hang(&self) {
        self.mode.hang();
    }

    /// Answers calls again, including those that hang.
    pub(crate) fn work(&self) {
        self.mode.work();
    }

    /// Returns another key at every unwrap from now on, or the right one again.
    pub(crate) fn exchange(&self, is_exchanging: bool) {
        self.is_exchanging.store(is_exchanging, Ordering::Relaxed);
    }

    /// Sets the clock that responses state.
    pub(crate) fn set_time(&self, time: Timestamp) {
        *self.time.lock().unwrap_or_else(PoisonError::into_inner) = Some(time);
    }

    /// Delays every call from now on.
    pub(crate) fn delay(&self, delay: std::time::Duration) {
        self.mode.delay(delay);
    }

    /// Returns all calls so far, and forgets them.
    pub(crate) fn take_calls(&self) -> Vec<KekCall> {
        std::mem::take(&mut self.calls.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn answer(&self, call: KekCall) -> Result<(), BackendError> {
        self.calls
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(call);
        self.mode
            .answer()
            .await
            .map_err(|fault| self.error(fault, "the test makes it fail"))
    }

    fn error(&self, fault: ErrorKind, reason: &str) -> BackendError {
        BackendError::new(fault, &self.uri, reason)
    }
}

impl Kek for FakeKek {
    fn server_time(&self) -> Option<Timestamp> {
        *self.time.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wrap<'a>(
        &'a self,
        dek: &'a Dek,
        context: WrapContext,
    ) -> BoxFuture<'a, Result<Vec<u8>, BackendError>> {
        Box::pin(async move {
            let WrapContext { keyring, version } = context;
            self.answer(KekCall::Wrap { keyring, version }).await?;
            Ok(wrap_dek(&self.key, dek, context).expect("randomness"))
        })
    }

    fn unwrap<'a>(
        &'a self,
        wrap: &'a [u8],
        context: WrapContext,
    ) -> BoxFuture<'a, Result<Dek, BackendError>> {
        Box::pin(async move {
            let WrapContext { keyring, version } = context;
            self.answer(KekCall::Unwrap { keyring, version }).await?;
            if self.is_exchanging.load(Ordering::Relaxed) {
                return Ok(Dek::from_slice(&[7; 32]).expect("32 bytes"));
            }
            unwrap_dek(&self.key, wrap, context)
                .ok_or_else(|| self.error(ErrorKind::Rejected, "not a wrap of this KEK"))
        })
    }
}
