//! Records the errors of the SDK's attempts, so that a time-out can report them and other
//! credentials are looked up after a refusal.

use std::{
    marker::PhantomData,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use aws_sdk_kms::{
    config::{
        ConfigBag, Intercept, RuntimeComponents,
        interceptors::{
            BeforeSerializationInterceptorContextRef, BeforeTransmitInterceptorContextRef,
            FinalizerInterceptorContextRef,
        },
    },
    error::{BoxError, ProvideErrorMetadata},
};

use super::{
    credentials::{ReloadingCredentials, is_refusal},
    errors::explain_service_error,
};
use crate::backend::{ErrorKind, error::Failure, last_error};

/// Records the error of each attempt at the operation that fails with `E`.
///
/// While it is throttled, the SDK may delay even the first attempt of the next request for longer
/// than callers wait. The reason for such a delay is the error of the request before.
#[derive(Debug)]
pub(super) struct AttemptRecorder<E> {
    throttled: Mutex<Option<Failure>>,
    credentials: Arc<ReloadingCredentials>,
    errors: PhantomData<fn() -> E>,
}

impl<E> AttemptRecorder<E> {
    pub(super) fn new(credentials: &Arc<ReloadingCredentials>) -> Self {
        Self {
            throttled: Mutex::default(),
            credentials: Arc::clone(credentials),
            errors: PhantomData,
        }
    }

    fn throttled(&self) -> MutexGuard<'_, Option<Failure>> {
        self.throttled
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl<E> Intercept for AttemptRecorder<E>
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    fn name(&self) -> &'static str {
        "AttemptRecorder"
    }

    fn read_before_execution(
        &self,
        _: &BeforeSerializationInterceptorContextRef<'_>,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        if let Some(previous) = &*self.throttled() {
            last_error::record(&delayed(previous));
        }
        Ok(())
    }

    fn read_before_attempt(
        &self,
        _: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        if let Some(previous) = &*self.throttled() {
            last_error::clear(&delayed(previous));
        }
        Ok(())
    }

    fn read_after_attempt(
        &self,
        context: &FinalizerInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        match context.output_or_error() {
            Some(Ok(_)) => *self.throttled() = None,
            Some(Err(error)) => {
                let error = error
                    .as_operation_error()
                    .and_then(|error| error.downcast_ref::<E>());
                if error.and_then(E::code).is_some_and(is_refusal) {
                    self.credentials.refused();
                }
                if let Some(failure) = error.map(explain_service_error) {
                    last_error::record(&failure);
                    *self.throttled() =
                        Some(failure).filter(|failure| failure.kind == ErrorKind::Throttled);
                }
            }
            None => {}
        }
        Ok(())
    }
}

/// The reason for a request that has not been attempted yet.
fn delayed(previous: &Failure) -> Failure {
    let message = format!(
        "{} (the previous request; this one is delayed)",
        previous.message
    );
    Failure::new(ErrorKind::Throttled, message)
}
