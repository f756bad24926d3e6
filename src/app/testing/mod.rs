//! A sidecar inside the test: real HTTP over real sockets, and fakes for everything outside.
//!
//! ```ignore
//! #[tokio::test(start_paused = true)]
//! async fn an_expired_lease_stops_encryption() {
//!     let world = World::with_demo().await;
//!     let app = world.start().await;
//!     let mut client = app.client().await;
//!     client.encrypt(b"hello").await.ok();
//!     world.clock().advance(31 * DAY);
//!     assert_eq!(client.encrypt(b"hello").await.problem(), "lease_expired");
//! }
//! ```
//!
//! - [`World`] is what surrounds the sidecars: KEKs, stores, secrets, time and the log.
//! - [`TestApp`] is one sidecar of it. A world may have several, for example one per wave.
//! - [`Client`] is one HTTP/1.1 or HTTP/2 connection to a sidecar, and [`EventStream`] one
//!   subscription to its events.
//! - [`FakeKek`], [`FakeStore`] and [`FakeSecret`] record their calls, and fail, hang or change as
//!   the test says. Each is made on first use, under the URI that names it.
//! - [`FakeHub`] is a hub that sidecars join.
//!
//! # Time
//!
//! Everything runs on the test's own thread, and time is paused: neither timers nor the clock
//! move unless the test calls [`World::advance`] (timers and clock) or [`World::clock`] (the clock
//! alone, for leases and schedules). [`World::wait`] and [`World::pass_time_until`] move time by
//! milliseconds until something happens. A test that makes no progress for [`PATIENCE`] of real
//! time panics.

#![allow(
    dead_code,
    unused_imports,
    reason = "a toolbox: tests take what they need"
)]

mod client;
mod events;
mod hub;
mod kek;
mod mode;
mod raw;
mod secret;
mod sidecar;
mod store;
mod time;
mod watches;
mod world;

pub(crate) use self::{
    client::{Answer, Client, JSON, OCTETS, RequestBody, channel, unannounced, whole},
    events::{Event, EventStream},
    hub::FakeHub,
    kek::{FakeKek, KekCall},
    raw::RawConnection,
    secret::{FakeLease, FakeSecret},
    sidecar::{StoppingApp, TestApp},
    store::FakeStore,
    time::PATIENCE,
    world::{DAY, HOUR, MINUTE, SECOND, World},
};
