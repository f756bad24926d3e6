//! Keeps the dates of responses: AWS's clock.

use std::sync::Arc;

use aws_sdk_s3::{
    config::{
        ConfigBag, Intercept, RuntimeComponents,
        interceptors::BeforeDeserializationInterceptorContextRef,
    },
    error::BoxError,
};

use crate::backend::server_clock::ServerClock;

/// Sets a clock to the date of each response.
#[derive(Debug)]
pub(super) struct DateRecorder(Arc<ServerClock>);

impl DateRecorder {
    pub(super) fn new(clock: &Arc<ServerClock>) -> Self {
        Self(Arc::clone(clock))
    }
}

impl Intercept for DateRecorder {
    fn name(&self) -> &'static str {
        "DateRecorder"
    }

    fn read_after_transmit(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        self.0.set(context.response().headers().get("date"));
        Ok(())
    }
}
