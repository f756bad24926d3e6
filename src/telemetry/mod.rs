//! What is measured and logged: the metrics registry and the log's form. Modules register their own metrics here.

mod logging;

use std::time::Duration;

use jiff::Timestamp;
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusRecorder};

pub use logging::init as init_logging;

/// A label: name and value.
pub type LabelPair<'a> = (&'static str, &'a str);

/// How often [`Registry::upkeep`] wants to be called, so that histograms hold no more than this much time's samples.
pub const UPKEEP_INTERVAL: Duration = Duration::from_secs(1);

/// From 10 µs, below what a message costs, to 10 s, above every time-out on the request path.
const BUCKETS: [f64; 19] = [
    0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025,
    0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// The metrics of one sidecar, in Prometheus' text format (version 0.0.4).
///
/// Handles are made once and then cost an atomic operation; making one takes a lock, so the request path never does.
pub struct Registry {
    recorder: PrometheusRecorder,
}

impl Default for Registry {
    fn default() -> Self {
        let builder = match PrometheusBuilder::new().set_buckets(&BUCKETS) {
            Ok(builder) => builder,
            Err(error) => unreachable!("the list of buckets isn't empty: {error}"),
        };
        Self {
            recorder: builder.build_recorder(),
        }
    }
}

const METADATA: Metadata<'static> = Metadata::new("sidekey", Level::INFO, None);

impl Registry {
    /// Says what a counter counts.
    pub fn describe_counter(&self, name: &'static str, help: &'static str) {
        self.recorder
            .describe_counter(KeyName::from_const_str(name), None, help.into());
    }

    /// Says what a gauge shows.
    pub fn describe_gauge(&self, name: &'static str, help: &'static str) {
        self.recorder
            .describe_gauge(KeyName::from_const_str(name), None, help.into());
    }

    /// Says what a histogram is of.
    pub fn describe_histogram(&self, name: &'static str, help: &'static str) {
        self.recorder
            .describe_histogram(KeyName::from_const_str(name), None, help.into());
    }

    /// A counter, at 0 if it is new.
    pub fn counter(&self, name: &'static str, labels: &[LabelPair<'_>]) -> Counter {
        self.recorder
            .register_counter(&key(name, labels), &METADATA)
    }

    /// A gauge, at 0 if it is new.
    pub fn gauge(&self, name: &'static str, labels: &[LabelPair<'_>]) -> Gauge {
        self.recorder.register_gauge(&key(name, labels), &METADATA)
    }

    /// A histogram of seconds.
    pub fn histogram(&self, name: &'static str, labels: &[LabelPair<'_>]) -> Histogram {
        self.recorder
            .register_histogram(&key(name, labels), &METADATA)
    }

    /// Everything, as text.
    pub fn render(&self) -> String {
        self.recorder.handle().render()
    }

    /// Sorts the samples since the last time into their buckets.
    pub fn upkeep(&self) {
        self.recorder.handle().run_upkeep();
    }
}

/// A time as metrics show it: seconds since the epoch.
pub fn seconds(time: Timestamp) -> f64 {
    time.as_millisecond() as f64 / 1000.0
}

fn key(name: &'static str, labels: &[LabelPair<'_>]) -> Key {
    let labels: Vec<Label> = labels
        .iter()
        .map(|(name, value)| Label::new(*name, (*value).to_owned()))
        .collect();
    Key::from_parts(name, labels)
}
