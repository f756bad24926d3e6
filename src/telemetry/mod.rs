//! The metrics registry and the log. Modules register their own metrics.

mod logging;
mod lossy;
mod upkeep;

use jiff::Timestamp;
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusRecorder};

pub use logging::{
    change_filter, flush_log, init as init_logging, log_line, log_panics, lost_log_lines,
};
pub use upkeep::keep_up;

/// A label's name and value.
pub type LabelPair<'a> = (&'static str, &'a str);

/// From 10 µs, less than any message takes, to 10 s, the default time-outs of the request path.
const BUCKETS: [f64; 19] = [
    0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025,
    0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// The metrics of one sidecar, in Prometheus's text format (version 0.0.4).
///
/// A handle is created once, under a lock; recording is an atomic operation. The request path
/// creates no handles.
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
    /// Sets the help text of a counter.
    pub fn describe_counter(&self, name: &'static str, help: &'static str) {
        self.recorder
            .describe_counter(KeyName::from_const_str(name), None, help.into());
    }

    /// Sets the help text of a gauge.
    pub fn describe_gauge(&self, name: &'static str, help: &'static str) {
        self.recorder
            .describe_gauge(KeyName::from_const_str(name), None, help.into());
    }

    /// Sets the help text of a histogram.
    pub fn describe_histogram(&self, name: &'static str, help: &'static str) {
        self.recorder
            .describe_histogram(KeyName::from_const_str(name), None, help.into());
    }

    /// Returns a counter, which starts at 0.
    pub fn counter(&self, name: &'static str, labels: &[LabelPair<'_>]) -> Counter {
        self.recorder
            .register_counter(&key(name, labels), &METADATA)
    }

    /// Returns a gauge, which starts at 0.
    pub fn gauge(&self, name: &'static str, labels: &[LabelPair<'_>]) -> Gauge {
        self.recorder.register_gauge(&key(name, labels), &METADATA)
    }

    /// Returns a histogram of seconds.
    pub fn histogram(&self, name: &'static str, labels: &[LabelPair<'_>]) -> Histogram {
        self.recorder
            .register_histogram(&key(name, labels), &METADATA)
    }

    /// Returns all metrics as text.
    pub fn render(&self) -> String {
        self.recorder.handle().render()
    }

    /// Moves buffered samples into their buckets.
    pub fn upkeep(&self) {
        self.recorder.handle().run_upkeep();
    }
}

/// Returns a time as metrics show it: seconds since the Unix epoch.
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
